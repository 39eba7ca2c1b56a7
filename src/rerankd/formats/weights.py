"""A model's weights as float32 arrays, and the keys of its header: of a GGUF file, or of a checkpoint, whose
header is told in GGUF's names.

Files are mapped, not read: only what is asked for comes into memory, and a table of 250,000 rows costs
nothing but the rows that texts use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from rerankd.errors import ModelFileError
from rerankd.formats import checkpoint_files, safetensors
from rerankd.formats.gguf_header import Header, Tensor
from rerankd.formats.gguf_metadata import header_of

Floats = NDArray[np.float32]
# Of the header's arrays. The vocabulary, which takes up to 250 MiB, is the tokenizer's affair.
_KEEP = ("sliding_window_pattern",)

_PLAIN = {"F32": np.float32, "F16": np.float16}


class Weights:
    """One GGUF file that is not split, or a checkpoint's folder. Raises ModelFileError where it is
    damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header: Header
        self._files: Mapping[str, str] = {}
        if checkpoint_files.is_checkpoint(path):
            found, held = safetensors.read(path, self._fail)
            self._header, self._files = found.header, found.files
        else:
            self._header, _ = header_of(path, _KEEP)
            held = (path,)
        self._bytes = {file.name: np.memmap(file, np.uint8, mode="r") for file in held}

    @property
    def values(self) -> dict[str, Any]:
        """The header's keys."""
        return self._header.values

    @property
    def architecture(self) -> str:
        return str(self.values["general.architecture"])

    def key(self, name: str, default: Any = None) -> Any:
        """The value of a key of this architecture. Raises ModelFileError where it is missing and there is no
        default."""
        found = self.values.get(f"{self.architecture}.{name}", default)
        return self._fail(f"it has no key {self.architecture}.{name}") if found is None else found

    def has(self, name: str) -> bool:
        return name in self._header.tensors

    def rows(self, name: str) -> int:
        """Rows of a tensor. Raises ModelFileError where it is missing."""
        return (self._header.tensors.get(name) or self._fail(f"it has no tensor {name}")).rows

    def array(self, name: str, shape: Sequence[int]) -> Floats:
        """A whole tensor of this shape (rows first), in float32."""
        tensor = self._tensor(name, shape)
        return self._dequantised(self._raw(name, tensor), tensor.type_name).reshape(shape)

    def table(self, name: str, rows: int, columns: int) -> Table:
        """A tensor of which only some rows are wanted at a time."""
        tensor = self._tensor(name, (rows, columns))
        return Table(self._raw(name, tensor).reshape(rows, -1), tensor.type_name)

    def _tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        tensor = self._header.tensors.get(name) or self._fail(f"it has no tensor {name}")
        # ggml writes the columns first, and leaves out what is 1 at the end.
        found = [size for size in reversed(tensor.shape) if size != 1]
        if found != [size for size in shape if size != 1]:
            self._fail(f"its tensor {name} has the shape {tensor.shape}, and {tuple(shape)[::-1]} is needed")
        return tensor

    def _raw(self, name: str, tensor: Tensor) -> NDArray[np.uint8]:
        start = self._header.data_start + tensor.offset
        return self._bytes[self._files.get(name, self.path.name)][start : start + tensor.size_bytes]

    def _dequantised(self, raw: NDArray[np.uint8], type_name: str) -> Floats:
        try:
            return dequantised(raw, type_name)
        except (KeyError, NotImplementedError):
            self._fail(f"its weights are of the type {type_name}, which this engine can't read")

    def _fail(self, what: str) -> NoReturn:
        raise ModelFileError(f"{self.path}: {what}.")


class Table:
    """Rows of numbers that stay as they are in the file until they are looked up."""

    def __init__(self, raw: NDArray[np.uint8], type_name: str) -> None:
        self._raw = raw
        self._type_name = type_name

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, rows: NDArray[np.integer[Any]]) -> Floats:
        """The rows of these numbers, in float32: [..., columns]."""
        return dequantised(self._raw[rows], self._type_name)


def dequantised(raw: NDArray[np.uint8], type_name: str) -> Floats:
    """ggml blocks as float32, the last axis holding whole rows.

    Raises KeyError or NotImplementedError for a type that is not known.
    """
    if type_name in _PLAIN:
        return raw.view(_PLAIN[type_name]).astype(np.float32)
    if type_name == "BF16":  # the upper half of a float32
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    import gguf  # 0.1 s, and not needed for what is not quantised

    floats: Floats = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[type_name])
    return floats
