"""Load a model's weights as float32 arrays, from a GGUF file or a safetensors checkpoint (under GGUF names).

Files are memory-mapped: only tensors that are accessed are read, and of an embedding table with 250,000 rows
only the rows that texts use.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from rerankd.errors import ModelFileError
from rerankd.formats import checkpoint_files, safetensors
from rerankd.formats.gguf_header import Tensor
from rerankd.formats.gguf_metadata import headers_of

Floats = NDArray[np.float32]
# The architectures of which GGUF's converter reorders the rows of queries and keys: two neighbours are a pair
# of rotary positions. In a checkpoint, half a head is between them.
_NEIGHBOURS = ("llama", "llama-embed")
_HEADS_OF = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
# The header's arrays to keep. Not the vocabulary: it takes up to 250 MiB, and only the tokenizer needs it.
_KEEP = ("sliding_window_pattern",)

_PLAIN = {"F32": np.float32, "F16": np.float16}
FLOATS = ("F32", "F16", "BF16")
"""The types, by ggml's names, of weights that are not quantised."""


class Weights:
    """The weights of a GGUF file, which may be split, or of a checkpoint's folder.

    `values` are the keys of the header and their values. Rows are in the order of transformers' checkpoints.
    Raises ModelFileError if a file is damaged.
    """

    values: dict[str, Any]

    def __init__(self, path: Path) -> None:
        self.path = path
        # Where each tensor is: the file, as a path in the folder, and the start of that file's weights.
        self._places: dict[str, tuple[str, int]] = {}
        if checkpoint_files.is_checkpoint(path):
            found, held = safetensors.read(path, self._fail)
            self.values, self._tensors = found.header.values, dict(found.header.tensors)
            self._places |= {name: (file, 0) for name, file in found.files.items()}
            self._is_reordered = False
        else:
            parts = headers_of(path, _KEEP)
            self.values, self._tensors = {}, {}
            for header, _, part in parts:
                self.values = {**header.values, **self.values}  # those of the first part count
                self._tensors |= header.tensors
                self._places |= dict.fromkeys(header.tensors, (part.name, header.data_start))
            held = tuple(part for *_, part in parts)
            self._is_reordered = self.architecture in _NEIGHBOURS
        folder = path if path.is_dir() else path.parent
        self._bytes = {
            file.relative_to(folder).as_posix(): np.memmap(file, np.uint8, mode="r") for file in held
        }

    @property
    def architecture(self) -> str:
        return str(self.values["general.architecture"])

    def key(self, name: str, default: Any = None) -> Any:
        """The value of a key of this architecture, or the default. Raises ModelFileError without either."""
        found = self.values.get(f"{self.architecture}.{name}", default)
        return self._fail(f"the key {self.architecture}.{name} is missing") if found is None else found

    def has(self, name: str) -> bool:
        return name in self._tensors

    @property
    def names(self) -> Collection[str]:
        """The names of all tensors."""
        return self._tensors.keys()

    def rows(self, name: str) -> int:
        """The number of rows of a tensor. Raises ModelFileError if it is missing."""
        return (self._tensors.get(name) or self._fail(f"the tensor {name} is missing")).rows

    def array(self, name: str, shape: Sequence[int]) -> Floats:
        """The whole tensor in float32; `shape` is the required shape, rows first."""
        tensor = self._tensor(name, shape)
        return self._dequantised(self._raw(name, tensor), tensor.type_name).reshape(shape)

    def groups(self, name: str, rows: int, columns: int) -> tuple[NDArray[np.int8], Floats] | None:
        """The numbers [rows, groups, 32] and scales [rows, groups, 1] of a matrix that is stored as Q8_0,
        None if it has another type. A weight is exactly its number times its scale."""
        tensor = self._tensor(name, (rows, columns))
        if tensor.type_name != "Q8_0":
            return None
        # A block is a scale in F16 and 32 numbers.
        blocks = self._raw(name, tensor).reshape(rows, -1, 34)
        scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32)
        return np.ascontiguousarray(blocks[..., 2:]).view(np.int8), scales

    def stored(self, name: str, shape: Sequence[int]) -> tuple[NDArray[np.uint8], str]:
        """The bytes of the whole tensor as they are in the file, and their type by ggml's name, such as BF16;
        `shape` as for `array`."""
        tensor = self._tensor(name, shape)
        return self._raw(name, tensor), tensor.type_name

    def table(self, name: str, rows: int, columns: int) -> Table:
        """A tensor that is read row by row, such as an embedding table."""
        tensor = self._tensor(name, (rows, columns))
        return Table(self._raw(name, tensor).reshape(rows, -1), tensor.type_name)

    def _tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        tensor = self._tensors.get(name) or self._fail(f"the tensor {name} is missing")
        # ggml writes the columns first, and omits trailing dimensions of 1.
        found = [size for size in reversed(tensor.shape) if size != 1]
        if found != [size for size in shape if size != 1]:
            self._fail(
                f"its tensor {name} has the shape {tensor.shape}, but {tuple(shape)[::-1]} is required"
            )
        return tensor

    def _raw(self, name: str, tensor: Tensor) -> NDArray[np.uint8]:
        file, first = self._places[name]
        start = first + tensor.offset
        raw = self._bytes[file][start : start + tensor.size_bytes]
        heads = _HEADS_OF.get(name.split(".")[-2]) if self._is_reordered else None
        if heads is None:
            return raw
        count = self.key(heads, self.key("attention.head_count"))
        rows = raw.reshape(count, -1, 2, tensor.size_bytes // tensor.shape[-1])
        return rows.swapaxes(1, 2).reshape(-1)

    def _dequantised(self, raw: NDArray[np.uint8], type_name: str) -> Floats:
        try:
            return dequantised(raw, type_name)
        except (KeyError, NotImplementedError):
            self._fail(f"its weights have the type {type_name}, which this engine does not support")

    def _fail(self, what: str) -> NoReturn:
        raise ModelFileError(f"{self.path}: {what}.")


class Table:
    """A table whose rows are dequantised on access."""

    def __init__(self, raw: NDArray[np.uint8], type_name: str) -> None:
        self._raw = raw
        self._type_name = type_name

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, rows: NDArray[np.integer[Any]]) -> Floats:
        """The rows with these indices, in float32: [..., columns]."""
        return dequantised(self._raw[rows], self._type_name)


def dequantised(raw: NDArray[np.uint8], type_name: str) -> Floats:
    """Dequantise ggml blocks to float32; the last axis contains whole rows.

    Raises KeyError or NotImplementedError for an unsupported type.
    """
    if type_name in _PLAIN:
        return raw.view(_PLAIN[type_name]).astype(np.float32)
    if type_name == "BF16":  # the upper half of a float32
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    import gguf  # takes 0.1 s, and only quantised weights need it

    floats: Floats = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[type_name])
    return floats
