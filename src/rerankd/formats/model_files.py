"""A model as it lies on a disk: a GGUF file, or a folder in transformers' format."""

from __future__ import annotations

import os
from pathlib import Path

from rerankd.formats import checkpoint_files, gguf_metadata
from rerankd.formats import safetensors_metadata as folders
from rerankd.formats.metadata import ModelMetadata


def read(path: str | os.PathLike[str]) -> ModelMetadata:
    """The metadata of the model at `path`. Raises ModelFileError, in words for the user."""
    path = Path(path)
    return folders.read(path) if checkpoint_files.is_checkpoint(path) else gguf_metadata.read(path)


def exists(path: Path) -> bool:
    """Whether there is a file, or a checkpoint's folder."""
    return path.is_file() or checkpoint_files.is_checkpoint(path)


def place_of(path: Path) -> Path:
    """The model that a path means: a file of a checkpoint stands for its folder."""
    is_part = path.name == checkpoint_files.CONFIG or path.suffix == checkpoint_files.SUFFIX
    return path.parent if is_part and checkpoint_files.is_checkpoint(path.parent) else path
