"""A model on disk, in either format: a GGUF file, or a folder with a safetensors checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

from rerankd.formats import checkpoint_files, gguf_metadata
from rerankd.formats import safetensors_metadata as folders
from rerankd.formats.metadata import ModelMetadata


def read(path: str | os.PathLike[str]) -> ModelMetadata:
    """The metadata of the model at `path`. Raises ModelFileError, with a message for the user."""
    path = Path(path)
    return folders.read(path) if checkpoint_files.is_checkpoint(path) else gguf_metadata.read(path)


def exists(path: Path) -> bool:
    """Whether the path is a file or the folder of a checkpoint."""
    return path.is_file() or checkpoint_files.is_checkpoint(path)


def place_of(path: Path) -> Path:
    """The path of the model that `path` refers to: for a file of a checkpoint, its folder."""
    is_part = path.name == checkpoint_files.CONFIG or path.suffix == checkpoint_files.SUFFIX
    return path.parent if is_part and checkpoint_files.is_checkpoint(path.parent) else path
