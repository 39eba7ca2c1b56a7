"""The program (see __init__.py)."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from pathlib import Path

from rerankd import files
from rerankd.tuning.job import Job, WorkFolder
from rerankd.tuning.messages import DISK_FULL, FAILED, Writer

_FULL_BYTES = 2**26


def main() -> int:
    """Run the job; see __init__.py. Returns 1 after an error, which is the last message."""
    flags = argparse.ArgumentParser(prog="rerankd.tuning.trainer", allow_abbrev=False)
    flags.add_argument("base", help="with --probe, the folder of a base model; else a work folder")
    flags.add_argument("--probe", action="store_true", help="load the base model, and describe it")
    flags.add_argument("--max-length", type=int, default=0)
    options = flags.parse_args()
    # What libraries print must not look like a message.
    send = Writer(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    folder = Path(options.base)
    try:
        from rerankd.tuning.trainer import train

        if options.probe:
            train.probe(folder, options.max_length, send)
        else:
            train.run(WorkFolder(folder), Job.read(folder), send)
    # torch's errors are RuntimeErrors; transformers raises the others for files that it does not understand.
    except (MemoryError, RuntimeError, OSError, ValueError, ImportError, KeyError) as error:
        is_full = os.strerror(errno.ENOSPC) in str(error) or files.free_bytes(folder) < _FULL_BYTES
        send(DISK_FULL if is_full else FAILED, reason=f"{error or 'out of memory'}".strip())
        print(f"error: {error!r}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
