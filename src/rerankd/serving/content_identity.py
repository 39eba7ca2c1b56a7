"""Identify what raw scores depend on by content, for a cache that outlives the process.

A path, a size and a modification time are not enough there: `cp -p` and an archive restore the time of
another file. The digest of a file is kept with its inode and change time, which programs can't set, so a file
is read completely only once.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from rerankd import machine
from rerankd.domain import Recipe
from rerankd.formats import model_files
from rerankd.formats.metadata import ModelMetadata
from rerankd.normalization import Normalization
from rerankd.state import StateStore

_SECTION = "content"
# Libraries that compute token ids, prompts and pixels in the service or in every worker. An engine's own
# libraries are part of its build.
_LIBRARIES = ("jinja2", "numpy", "pillow", "tokenizers")

Stamps = tuple[tuple[str, int, int, int, int, int], ...]
"""For each file: path, device, inode, size, modification and change time in ns."""


def files(path: Path, metadata: ModelMetadata) -> list[str]:
    """All files that scores depend on: those of the model, and a checkpoint's own code."""
    code = sorted(path.glob("*.py")) if path.is_dir() else ()
    return [str(file) for file in (*model_files.files(path, metadata.parts), *code)]


def stamps(paths: Iterable[str]) -> Stamps:
    """Identify the current content of files without reading them. Raises OSError."""
    found = [(path, os.stat(path)) for path in paths]
    return tuple(
        (name, one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for name, one in found
    )


def digest(known: Stamps, learned: StateStore) -> str:
    """The digest of the content of files. Reads each file that is not known yet, at 1 to 2 GB/s. Raises
    OSError."""
    total = hashlib.sha256()
    for name, *stamp in known:
        kept = learned.get(_SECTION, name)
        if not isinstance(kept, dict) or kept.get("stamp") != stamp:
            with open(name, "rb") as stream:
                kept = {"stamp": stamp, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
            learned.put(_SECTION, name, kept)
        # A GGUF file may have any name; the names of a checkpoint's files say what they are.
        role = "" if name.lower().endswith(".gguf") else Path(name).name
        total.update(f"{role} {kept['sha256']}\n".encode("utf-8", "replace"))
    return total.hexdigest()


def surroundings(recipe: Recipe, gpus: Sequence[str]) -> str:
    """Everything that raw scores depend on besides the files, the texts, and the engine's build, precision
    and device. Normalization is left out: it is applied to raw scores."""
    raw = replace(recipe, normalization=Normalization("identity"))
    return f"{raw!r} {platform.machine()} {machine.instructions()} {gpus} {code()}"


@functools.cache
def code() -> str:
    """Identify the code that computes scores: rerankd's own, and the libraries it uses for that."""
    found = hashlib.sha256()
    folder = Path(__file__).parents[1]
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".toml"):
            found.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return f"{found.hexdigest()} {[_version(name) for name in _LIBRARIES]}"


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""
