"""A patch of a model's file: a range of bytes that is zero in a copy of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_BLOCK_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Patch:
    """A range of bytes that is zero in a copy of a model's file (see hub/patched_copies.py).

    `name` identifies the change among those of the same file. `part` is the index of the file among
    `ModelMetadata.parts`, `offset` and `size_bytes` are the range in it. `words` describe the copy, as the
    rest of a sentence that begins with "in which".
    """

    name: str
    part: int
    offset: int
    size_bytes: int
    words: str


def is_zero(path: Path, patch: Patch) -> bool:
    """Whether the bytes of the patch are zero in this file. Raises OSError."""
    with path.open("rb") as stream:
        stream.seek(patch.offset)
        return not stream.read(patch.size_bytes).strip(b"\0")


def write_copy(source: Path, target: Path, patch: Patch, report: Callable[[int, int], None]) -> None:
    """Write a copy of a file in which the bytes of the patch are zero. `report` is called with the bytes
    written and their total. Raises OSError."""
    with source.open("rb") as old, target.open("xb") as new:
        total = os.fstat(old.fileno()).st_size
        if total < patch.offset + patch.size_bytes:
            raise OSError(errno.EIO, f"{source.name} has become shorter")
        done = 0
        while block := old.read(_BLOCK_BYTES):
            new.write(block)
            done += len(block)
            report(done, total)
        new.seek(patch.offset)
        new.write(bytes(patch.size_bytes))
        new.flush()
        # Without fsync, a power failure can leave a file with holes that look like weights.
        os.fsync(new.fileno())
