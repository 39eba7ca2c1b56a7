"""rerankd's PyTorch backend on a GPU, without a network: python bench/gpu.py [correct] [http] [mixed]

    pip install 'rerankd[torch]' && pip install --no-deps dashscope
    python bench/gpu.py --out gpu.json

Models with random weights and the shapes of real ones are made on the machine. `correct` compares scores with
transformers' in float32, `http` measures throughput and latency through the service, `mixed` applies a mixed
load for minutes and kills the engine twice. Each row is written to the JSON file when it is measured; a part
that fails or takes too long does not lose the others' results. Without a GPU, or with --tiny, the models are
tiny, which checks the script alone.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import gpu_correct
import gpu_http
import gpu_mixed
import gpu_report
import gpu_tokenizers
import torch
import transformers
from gpu_bench import Bench
from gpu_meters import Gpu
from gpu_models import SHAPES, folder_for_models

# The parts, and the most seconds that each may take; `mixed` has --minutes in addition.
PARTS: Mapping[str, tuple[Callable[[Bench, float], None], float]] = {
    "correct": (gpu_correct.run, 150.0),
    "http": (gpu_http.run, 265.0),
    "mixed": (gpu_mixed.run, 80.0),
}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[*SHAPES], help="models of http")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="file for the results")
    parser.add_argument("--models", type=Path, help="folder for the models; kept (default: a temporary one)")
    parser.add_argument(
        "--home", type=Path, help="the service's data folder and logs; kept (default: the same)"
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a measurement of throughput")
    parser.add_argument("--minutes", type=float, default=3.0, help="length of the mixed load")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--engine", default="auto", help="--engine of rerankd serve")
    parser.add_argument("--tiny", action="store_true", help="tiny models")
    found = parser.parse_args()
    if unknown := [one for one in found.parts if one not in PARTS]:
        parser.error(f"unknown part: {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    return found


def main() -> int:
    """Returns 1 if something failed."""
    chosen = options()
    is_card = torch.cuda.is_available()
    is_tiny = chosen.tiny or not is_card
    if not is_tiny and not gpu_tokenizers.is_complete():
        sys.exit(
            "The tokenizers need the vocabulary in the package dashscope: pip install --no-deps dashscope"
        )
    transformers.utils.logging.disable_progress_bar()
    started = time.monotonic()
    home = chosen.models or folder_for_models()
    service_home = chosen.home or home
    service_home.mkdir(parents=True, exist_ok=True)
    bench = Bench(chosen, home, service_home, torch.device("cuda:0" if is_card else "cpu"), Gpu(), is_tiny)
    try:
        bench.describe()
        for name in chosen.parts or PARTS:
            part, limit = PARTS[name]
            part(bench, time.monotonic() + limit + (60 * chosen.minutes if name == "mixed" else 0))
    finally:
        bench.gpu.close()
        bench.results["took_s"] = round(time.monotonic() - started, 1)
        bench.write()
        if not chosen.models:
            shutil.rmtree(home, ignore_errors=True)
    print(gpu_report.table(bench.results))
    rows = [row for part in PARTS for row in bench.results.get(part, [])]
    return 1 if any(row.get("error") or row.get("failed") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
