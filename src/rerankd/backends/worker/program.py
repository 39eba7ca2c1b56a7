"""What every worker program does: load a model, and serve it until a signal ends the process."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rerankd.errors import ModelFileError
from rerankd.process.failure_reasons import DAMAGED_FILE

if TYPE_CHECKING:
    from rerankd.backends.worker.scorer import Scorer


def parser(name: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every worker program; `name` is the program's module."""
    flags = argparse.ArgumentParser(prog=name, allow_abbrev=False)
    flags.add_argument("--model", required=True, type=Path)
    flags.add_argument("--socket", required=True, help="path of the UNIX socket to serve on")
    flags.add_argument("--max-length", type=int, required=True, help="maximum tokens per input")
    flags.add_argument("--threads", type=int, required=True)
    return flags


def run(load: Callable[[], Scorer], socket: str, errors: tuple[type[Exception], ...]) -> int:
    """Load a scorer and serve it on a UNIX socket. Returns 1 if `load` raises one of `errors`, and
    DAMAGED_FILE if the file is damaged."""
    # The worker needs no cleanup. The default action ends it at once, even while a model loads.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from rerankd.backends.worker.server import Server

    try:
        scorer = load()
    except ModelFileError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return DAMAGED_FILE
    except errors as error:
        print(f"error: {error or 'out of memory'}", file=sys.stderr, flush=True)
        return 1
    print(scorer.about, file=sys.stderr)
    with Server(socket, scorer) as server:
        print(f"listening on {socket}", file=sys.stderr, flush=True)
        server.serve_forever()
    return 0
