"""Memory and time of long texts in a causal model on OpenVINO: python bench/long_texts.py FOLDER

For each length: by what RSS grows, at most, over that after a text of 100 tokens. The model has the shape of
Qwen3-Reranker-0.6B in Q8_0 (bench/models.py).
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from pathlib import Path

import models
import numpy as np

from rerankd import processes
from rerankd.backends.openvino.causal import CausalModel
from rerankd.backends.worker.passes import Reading

LABELS = (1, 2)


class Peak(threading.Thread):
    """Watches the RSS of this process, in bytes, until `stop` is set."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.highest, self.stop = 0, threading.Event()

    def run(self) -> None:
        while not self.stop.wait(0.005):
            self.highest = max(self.highest, processes.memory_bytes(os.getpid()) or 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1000, 3000, 6000])
    options = parser.parse_args()
    path = models.qwen3(options.folder, headed=False)
    model = CausalModel(path, LABELS, threads=os.cpu_count() or 1, precision=options.precision)
    draw = np.random.default_rng(0)

    def scored(tokens: int) -> tuple[int, float]:
        ids = draw.integers(0, model.rows, tokens).astype(np.int32)
        peak, started = Peak(), time.perf_counter()
        peak.start()
        model.start([Reading(ids, tokens)])()
        peak.stop.set()
        peak.join()
        return peak.highest, time.perf_counter() - started

    start, _ = scored(100)
    print(f"{options.precision}, {start >> 20} MiB after 100 tokens")
    for tokens in options.tokens:
        highest, seconds = scored(tokens)
        print(f"{tokens} tokens: {highest - start >> 20} MiB more, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
