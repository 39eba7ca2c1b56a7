"""The PyTorch worker program: `python -m rerankd.backends.torch --model FILE --socket PATH …`."""

from __future__ import annotations

import argparse
import gc
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rerankd.errors import ModelFileError
from rerankd.process.failure_reasons import DAMAGED_FILE

if TYPE_CHECKING:
    from rerankd.backends.worker.scorer import Network


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    flags = argparse.ArgumentParser(prog="rerankd.backends.torch", allow_abbrev=False)
    flags.add_argument("--model", required=True, type=Path)
    flags.add_argument("--socket", required=True, help="path of the UNIX socket to serve on")
    flags.add_argument("--pooling", required=True, choices=["rank", "mean", "cls", "last", "none"])
    flags.add_argument("--labels", type=int, nargs="+", default=(), help="a causal model's label ids")
    flags.add_argument("--max-length", type=int, required=True, help="maximum tokens per input")
    flags.add_argument("--threads", type=int, required=True)
    flags.add_argument("--device", default="cpu")
    flags.add_argument("--precision", choices=["f32", "bf16", "f16"], default="f32")
    flags.add_argument("--weights", choices=["", "fp8", "int8"], default="", help="in 8 bits")
    flags.add_argument("--why", default="", help="the reason for the precision, in words")
    flags.add_argument("--varlen", action="store_true", help="use packed attention if it works here")
    flags.add_argument("--compile", action="store_true", help="compile the model while it serves")
    flags.add_argument("--reference", action="store_true", help="compute with sentence-transformers")
    flags.add_argument("--trust-code", action="store_true", help="run the code in the model's own files")
    return flags


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal ends the process. Returns 1 if the model does not load, and DAMAGED_FILE if the
    file is damaged."""
    # The worker needs no cleanup. The default action ends it at once, even while a model loads.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    options = parser().parse_args(arguments)
    from rerankd.backends.worker.scorer import Scorer
    from rerankd.backends.worker.server import Server

    try:
        network = _network(options)
    except ModelFileError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return DAMAGED_FILE
    # torch's errors are RuntimeErrors; transformers raises the others for files that it does not understand.
    except (MemoryError, RuntimeError, OSError, ValueError, ImportError) as error:
        print(f"error: {error or 'out of memory'}", file=sys.stderr, flush=True)
        return 1
    returns_scores = options.pooling == "rank" or bool(options.labels)
    gc.freeze()  # a collection would look at all that the libraries have loaded
    scorer = Scorer(network, options.max_length, is_cross_encoder=returns_scores)
    print(network.about, file=sys.stderr)
    with Server(options.socket, scorer) as server:
        print(f"listening on {options.socket}", file=sys.stderr, flush=True)
        server.serve_forever()
    return 0


def _network(options: argparse.Namespace) -> Network:
    """Load the model."""
    from rerankd.backends.torch import runtime

    if options.reference:
        from rerankd.backends.torch.reference import Reference

        runtime.set_threads(options.threads)
        dtype = runtime.DTYPES[options.precision]
        return Reference(options.model, device=options.device, dtype=dtype, trusts_code=options.trust_code)
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
