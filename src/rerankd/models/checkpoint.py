"""A folder in transformers' format -> `Facts`; and the same of a repository, before its weights are
fetched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from rerankd import checkpoint
from rerankd.gguf_header import Source
from rerankd.models.facts import Facts, facts_of, refuse


def read(folder: Path) -> Facts:
    """The facts of the model in a folder. Raises ModelFileError for one that is damaged or not whole."""

    try:
        found, held = checkpoint.read(folder, partial(refuse, folder))
        size = sum(path.stat().st_size for path in held)
    except OSError as error:
        refuse(folder, f"it can't be read: {error}")
    return _facts(folder, found, size, held)


def read_streams(
    where: Path, described: Mapping[str, bytes], parts: Iterable[tuple[Source, int, Path]]
) -> Facts:
    """As `read`, from the files that describe the model and the beginnings of those that hold its weights:
    (stream, its size in bytes, its path). `where` names the model."""
    fail = partial(refuse, where)
    tensors, size, held = {}, 0, []
    for stream, size_bytes, path in parts:
        tensors[path.name] = checkpoint.parse(stream, size_bytes, fail)
        size += size_bytes
        held.append(path)
    return _facts(where, checkpoint.translate(where.name, described, tensors, fail), size, tuple(held))


def _facts(path: Path, found: checkpoint.Checkpoint, size_bytes: int, held: tuple[Path, ...]) -> Facts:
    header = found.header
    return facts_of(path, header, header.tensors, size_bytes, held, format="safetensors", flaw=found.flaw)
