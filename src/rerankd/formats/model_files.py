"""A model on disk, in either format: a GGUF file, or a folder with a safetensors checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from rerankd.formats import checkpoint_files, gguf_metadata, head_file
from rerankd.formats import safetensors_metadata as folders
from rerankd.formats.metadata import ModelMetadata


def read(path: str | os.PathLike[str]) -> ModelMetadata:
    """The metadata of the model at `path`. Raises ModelFileError, with a message for the user."""
    path = Path(path)
    return folders.read(path) if checkpoint_files.is_checkpoint(path) else gguf_metadata.read(path)


def exists(path: Path) -> bool:
    """Whether the path is a file or the folder of a checkpoint."""
    return path.is_file() or checkpoint_files.is_checkpoint(path)


def files(path: Path, parts: Iterable[Path] = ()) -> list[Path]:
    """The files that a model consists of: those of a checkpoint, none if one is missing; or a GGUF file, its
    other `parts` (see ModelMetadata) and a head beside it. Raises OSError."""
    if path.is_dir():
        return [path / name for name in checkpoint_files.files(checkpoint_files.paths_in(path))]
    head = head_file.beside(path) if path.suffix.lower() == ".gguf" else None
    return [*dict.fromkeys((path, *parts, *((head,) if head is not None else ())))]


def place_of(path: Path) -> Path:
    """The path of the model that `path` refers to: for a file of a checkpoint, its folder."""
    is_part = path.name == checkpoint_files.CONFIG or path.suffix == checkpoint_files.SUFFIX
    return path.parent if is_part and checkpoint_files.is_checkpoint(path.parent) else path
