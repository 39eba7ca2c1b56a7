"""The OpenVINO worker program: `python -m rerankd.backends.openvino --model FILE --socket PATH …`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from rerankd.backends.token_vectors import TokenVectors
from rerankd.backends.worker import program

if TYPE_CHECKING:
    from rerankd.backends.worker.scorer import Scorer


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    flags = program.parser("rerankd.backends.openvino")
    flags.add_argument("--pooling", required=True, choices=["rank", "mean", "cls", "none"])
    flags.add_argument("--labels", type=int, nargs="*", help="a causal model's label ids, none for its head")
    flags.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    flags.add_argument("--why", default="", help="the reason for the precision, in words")
    flags.add_argument("--token-vectors", type=TokenVectors.parse, help="late interaction, as JSON")
    flags.add_argument("--blocks", action="store_true", help="score each batch as a block of documents")
    flags.add_argument("--weights", choices=["full", "compressed"], default="full")
    return flags


def main(arguments: list[str] | None = None) -> int:
    """Serve a model; see worker/program.py."""
    options = parser().parse_args(arguments)
    # OpenVINO raises RuntimeError for every error.
    return program.run(lambda: _load(options), options.socket, (MemoryError, RuntimeError))


def _load(options: argparse.Namespace) -> Scorer:
    from rerankd.backends.openvino.load import load

    return load(
        options.model,
        options.pooling,
        options.labels,
        options.max_length,
        threads=options.threads,
        precision=options.precision,
        why=options.why,
        compressed=options.weights == "compressed",
        token_vectors=options.token_vectors,
        reads_blocks=options.blocks,
    )


if __name__ == "__main__":
    sys.exit(main())
