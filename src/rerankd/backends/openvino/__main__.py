"""The OpenVINO worker program: `python -m rerankd.backends.openvino --model FILE --socket PATH …`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from rerankd.errors import ModelFileError
from rerankd.process.failure_reasons import DAMAGED_FILE


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    flags = argparse.ArgumentParser(prog="rerankd.backends.openvino", allow_abbrev=False)
    flags.add_argument("--model", required=True, type=Path)
    flags.add_argument("--socket", required=True, help="path of the UNIX socket to serve on")
    flags.add_argument("--pooling", required=True, choices=["rank", "mean", "cls", "none"])
    flags.add_argument("--labels", type=int, nargs="*", help="a causal model's label ids, none for its head")
    flags.add_argument("--max-length", type=int, required=True, help="maximum tokens per input")
    flags.add_argument("--threads", type=int, required=True)
    flags.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    flags.add_argument("--why", default="", help="the reason for the precision, in words")
    flags.add_argument("--weights", choices=["full", "compressed"], default="full")
    return flags


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal ends the process. Returns 1 if the model does not load, and DAMAGED_FILE if the
    file is damaged."""
    # The worker needs no cleanup. The default action ends it at once, even while a model loads.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    options = parser().parse_args(arguments)
    from rerankd.backends.openvino.load import load
    from rerankd.backends.worker.server import Server

    try:
        scorer = load(
            options.model,
            options.pooling,
            options.labels,
            options.max_length,
            threads=options.threads,
            precision=options.precision,
            why=options.why,
            compressed=options.weights == "compressed",
        )
    except ModelFileError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return DAMAGED_FILE
    except (MemoryError, RuntimeError) as error:  # OpenVINO raises RuntimeError for every error
        print(f"error: {error or 'out of memory'}", file=sys.stderr, flush=True)
        return 1
    print(scorer.about, file=sys.stderr)
    with Server(options.socket, scorer) as server:
        print(f"listening on {options.socket}", file=sys.stderr, flush=True)
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
