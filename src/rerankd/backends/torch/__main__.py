"""The PyTorch worker program: `python -m rerankd.backends.torch --model FILE --socket PATH …`."""

from __future__ import annotations

import argparse
import gc
import sys
from typing import TYPE_CHECKING

from rerankd.backends.token_vectors import TokenVectors
from rerankd.backends.worker import program

if TYPE_CHECKING:
    from rerankd.backends.worker.scorer import Network, Scorer


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    flags = program.parser("rerankd.backends.torch")
    flags.add_argument("--pooling", required=True, choices=["rank", "mean", "cls", "last", "none"])
    flags.add_argument("--labels", type=int, nargs="+", default=(), help="a causal model's label ids")
    flags.add_argument("--device", default="cpu")
    flags.add_argument("--precision", choices=["f32", "bf16", "f16"], default="f32")
    flags.add_argument("--blocks", action="store_true", help="score each batch as a block of documents")
    flags.add_argument("--weights", choices=["", "fp8", "int8"], default="", help="in 8 bits")
    flags.add_argument("--why", default="", help="the reason for the precision, in words")
    flags.add_argument("--varlen", action="store_true", help="use packed attention if it works here")
    flags.add_argument("--compile", action="store_true", help="compile the model while it serves")
    flags.add_argument("--reference", action="store_true", help="compute with sentence-transformers")
    flags.add_argument(
        "--vision",
        type=int,
        nargs=2,
        help="compute with transformers; the fewest and most blocks of an image",
    )
    flags.add_argument("--token-vectors", type=TokenVectors.parse, help="late interaction, as JSON")
    flags.add_argument("--trust-code", action="store_true", help="run the code in the model's own files")
    return flags


def main(arguments: list[str] | None = None) -> int:
    """Serve a model; see worker/program.py."""
    options = parser().parse_args(arguments)
    # torch's errors are RuntimeErrors; transformers raises the others for files that it does not understand.
    errors = (MemoryError, RuntimeError, OSError, ValueError, ImportError)
    return program.run(lambda: _load(options), options.socket, errors)


def _load(options: argparse.Namespace) -> Scorer:
    from rerankd.backends.worker.scorer import Scorer, method_of

    network = _network(options)
    gc.freeze()  # a collection would look at all that the libraries have loaded
    returns_scores = options.pooling == "rank" or bool(options.labels)
    method = method_of(options.token_vectors, returns_scores=returns_scores, reads_blocks=options.blocks)
    return Scorer(network, options.max_length, method, getattr(network, "reads_images", None))


def _network(options: argparse.Namespace) -> Network:
    """Load the model."""
    from rerankd.backends.torch import runtime

    if options.vision:
        from rerankd.backends.torch.vision import VisionReranker

        runtime.set_threads(options.threads)
        return VisionReranker(
            options.model,
            labels=options.labels,
            blocks=options.vision,
            device=options.device,
            dtype=runtime.DTYPES[options.precision],
        )
    if options.reference:
        from rerankd.backends.torch.reference import Reference, TokenReference

        runtime.set_threads(options.threads)
        dtype = runtime.DTYPES[options.precision]
        kind = TokenReference if options.token_vectors is not None else Reference
        return kind(options.model, device=options.device, dtype=dtype, trusts_code=options.trust_code)
    return runtime.start(
        options.model,
        options.pooling,
        labels=options.labels,
        device_name=options.device,
        precision=options.precision,
        why=options.why,
        threads=options.threads,
        wants_varlen=options.varlen,
        compiles=options.compile,
        eight_bits=options.weights,
    )


if __name__ == "__main__":
    sys.exit(main())
