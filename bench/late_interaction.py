"""What a request costs whose documents a late-interaction model has read before, over HTTP.

    python bench/late_interaction.py            a model of answerai-colbert-small's shape, random weights
    python bench/late_interaction.py MODEL      a folder with a late-interaction model
    python bench/late_interaction.py --shape modernbert

Each round sends a new query with 100 documents that are new, then a new query with the same ones. The score
cache does not help with either. Prints the medians and their ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))
import checkpoints
import late

# The sizes of answerai-colbert-small-v1 and GTE-ModernColBERT-v1: layers, width, inner width; then of
# their vectors.
SHAPES = {"bert": ("stanford-bert", 12, 384, 1536), "modernbert": ("pylate-modernbert", 22, 768, 1152)}
VECTORS = {"bert": 96, "modernbert": 128}


def made(shape: str, model: Path) -> Path:
    """A late-interaction model of these sizes with random weights. Its vocabulary is small, so a text has
    twice the tokens that it would have with a real one."""
    tensors: checkpoints.Tensors = {}
    source = np.random.default_rng(1)
    sizes = late.enlarged(SHAPES[shape][0], model, *SHAPES[shape][1:])
    if "linear.weight" in sizes:
        sizes["linear.weight"][0] = VECTORS[shape]
    else:
        late.dense(model / "1_Dense", VECTORS[shape], SHAPES[shape][2], 1, {})
    for name, size in sizes.items():
        values = (
            source.normal(0, 0.02, size) if len(size) > 1 else np.full(size, float("norm" in name.lower()))
        )
        if name.endswith("bias"):
            values = np.zeros(size)
        tensors[name] = ("F32", size, values.astype(np.float32).tobytes())
    checkpoints.write(model / "model.safetensors", tensors)
    lengths = {"doc_maxlen": 300} if shape == "bert" else {"document_length": 300}
    checkpoints.edit(model / (late.ARTIFACT_FILE if shape == "bert" else late.PYLATE_FILE), **lengths)
    return model


@contextlib.contextmanager
def served(model: str, home: Path) -> Iterator[str]:
    """rerankd with product defaults on a free port."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    environment = os.environ | {"RERANKD_MODEL": model, "RERANKD_PORT": str(port), "RERANKD_HOME": str(home)}
    process = subprocess.Popen([sys.executable, "-m", "rerankd", "serve"], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            if process.poll() is not None:
                raise SystemExit("rerankd has ended")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def text(words: int, source: random.Random) -> str:
    return " ".join(source.choice(WORDS) for _ in range(words))


WORDS = [
    word
    for pair in json.loads((TESTS / "golden" / "pairs.json").read_text())
    for word in pair["document"].split()
]


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("model", nargs="?")
    flags.add_argument("--shape", choices=[*SHAPES], default="bert")
    flags.add_argument("--words", type=int, default=50, help="words of a document")
    flags.add_argument("--rounds", type=int, default=3)
    options = flags.parse_args()
    source = random.Random(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        model = options.model or str(made(options.shape, Path(folder) / options.shape))
        url = stack.enter_context(served(model, Path(folder) / "home"))
        client = stack.enter_context(httpx.Client(timeout=600))
        new, known, again = [], [], []
        for _ in range(options.rounds):
            documents = [text(options.words, source) for _ in range(100)]
            for times, count in ((new, 1), (known, 3)):
                for _ in range(count):
                    body = {"query": text(6, source), "documents": documents}
                    started = time.perf_counter()
                    client.post(f"{url}/v1/rerank", json=body).raise_for_status()
                    times.append(time.perf_counter() - started)
            started = time.perf_counter()
            client.post(f"{url}/v1/rerank", json=body).raise_for_status()
            again.append(time.perf_counter() - started)
        status = client.get(f"{url}/v1/status").json()["models"][0]
        unknown_s, known_s, cached_s = map(statistics.median, (new, known, again))
        print(f"engine: {status['engine']['program']}")
        print(f"100 documents of {options.words} words, unknown: {unknown_s * 1000:.0f} ms")
        print(f"the same, known, another query: {known_s * 1000:.1f} ms ({known_s / unknown_s:.1%})")
        print(f"the same query again, from the score cache: {cached_s * 1000:.1f} ms")
        print(f"kept: {status['engine']['document_vectors']}")


if __name__ == "__main__":
    main()
