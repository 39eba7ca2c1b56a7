"""The ONNX Runtime worker program: `python -m rerankd.backends.onnx --model FILE --socket PATH …`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from rerankd.backends.worker import program

if TYPE_CHECKING:
    from rerankd.backends.worker.scorer import Scorer


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    flags = program.parser("rerankd.backends.onnx")
    flags.add_argument("--pooling", required=True, choices=["rank", "mean", "cls", "none"])
    flags.add_argument("--labels", type=int, nargs="*", help="a causal model's label ids, none for its head")
    flags.add_argument("--precision", choices=["int8", "f32"], default="int8")
    return flags


def main(arguments: list[str] | None = None) -> int:
    """Serve a model; see worker/program.py."""
    options = parser().parse_args(arguments)
    # ONNX Runtime's errors are subclasses of RuntimeError or of Exception itself.
    return program.run(lambda: _load(options), options.socket, (MemoryError, RuntimeError))


def _load(options: argparse.Namespace) -> Scorer:
    from rerankd.backends.onnx.load import load

    return load(
        options.model,
        options.pooling,
        options.labels,
        options.max_length,
        threads=options.threads,
        precision=options.precision,
    )


if __name__ == "__main__":
    sys.exit(main())
