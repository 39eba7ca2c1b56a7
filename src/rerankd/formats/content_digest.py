"""A digest of a model's content, which is the same on every machine, whatever the path and the file's dates.

Files that agree in size and in 64 blocks of 16 KiB, evenly spaced from the header to the last weights, count
as equal: fine-tuning changes weights everywhere, and another quantisation the size. It reads 1 MiB of each
file.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from rerankd.formats import model_files

_BLOCKS = 64
_BLOCK_BYTES = 16 * 2**10
_DIGEST_BYTES = 16


def content_digest(path: Path, parts: tuple[Path, ...]) -> str:
    """The digest of a GGUF file with its other `parts` and a head beside it, or of a checkpoint's folder.
    Raises OSError."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for file in model_files.files(path, parts):
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with file.open("rb") as stream:
            for block in range(_BLOCKS):
                stream.seek(max(size - _BLOCK_BYTES, 0) * block // (_BLOCKS - 1), os.SEEK_SET)
                digest.update(stream.read(_BLOCK_BYTES))
    return digest.hexdigest()
