"""Parse a GGUF header: keys, values and tensor infos. Little-endian, versions 2 and 3.

A header is untrusted input. Each length and count is checked against the rest of the file before anything is
read or allocated for it, and the total is limited (`HEADER_LIMIT`, `KEY_LIMIT`, `TENSOR_LIMIT`,
`STRING_LIMIT`). Errors are reported through the caller's `fail`, which must raise.

The file is read, not memory-mapped: if a mapped file shrinks while it is read, SIGBUS kills the process. To
be fast, the parser skips through string arrays (a vocabulary and its merges have 300,000 strings) by their
length fields alone, and keeps only the arrays that the caller requests.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

# The largest headers known (vocabularies of 262,144 tokens with merges) are about 16 MiB and 800,000 strings.
HEADER_LIMIT = 128 << 20
KEY_LIMIT = 1 << 14
TENSOR_LIMIT = 1 << 16
STRING_LIMIT = 1 << 22
_FIRST_FETCH = 1 << 20

_STRING, _ARRAY = 8, 9
# value type -> struct format, for all types except strings and arrays
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

# ggml tensor type -> (name, elements per block, bytes per block)
TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}


class Source(Protocol):
    """A sequential byte stream. `read` returns `count` bytes, fewer only at the end of the stream."""

    def read(self, count: int, /) -> bytes: ...


class Strings:
    """An array of strings, stored as its raw bytes; a string is decoded only on access."""

    __slots__ = ("_blob", "_starts")

    def __init__(self, blob: bytes, starts: list[int]) -> None:
        self._blob = blob
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> str:
        start = self._starts[index]
        length = int.from_bytes(self._blob[start : start + 8], "little")
        return self._blob[start + 8 : start + 8 + length].decode("utf-8", "replace")

    def texts(self) -> list[str]:
        """All strings, in a third of the time that access one by one takes."""
        blob, ends = self._blob, [*self._starts[1:], len(self._blob)]
        return [
            blob[start + 8 : end].decode("utf-8", "replace")
            for start, end in zip(self._starts, ends, strict=True)
        ]

    def index_of(self, text: str) -> int | None:
        """The index of the first string equal to `text`, or None."""
        raw = text.encode("utf-8", "surrogatepass")
        needle = len(raw).to_bytes(8, "little") + raw
        at = self._blob.find(needle)
        while at >= 0:
            index = bisect_left(self._starts, at)
            if index < len(self._starts) and self._starts[index] == at:
                return index
            at = self._blob.find(needle, at + 1)
        return None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor's info. `shape` is in ggml's order, columns first; `size_bytes` is 0 for an unknown type."""

    shape: tuple[int, ...]
    type_name: str
    size_bytes: int
    offset: int

    @property
    def rows(self) -> int:
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(slots=True)
class Header:
    """A GGUF file's header. `values` contains only the arrays that were requested."""

    version: int
    values: dict[str, Any]
    tensors: dict[str, Tensor]
    data_start: int

    @property
    def end_of_data(self) -> int:
        """The size in bytes that the file needs to contain all tensors; 0 without tensors."""
        return max((self.data_start + t.offset + t.size_bytes for t in self.tensors.values()), default=0)


@dataclass(slots=True)
class _Cursor:
    """A read position in the header; reads more of the stream when needed."""

    stream: Source
    size: int
    fail: Callable[[str], NoReturn]
    at: int = 0
    strings_seen: int = 0
    data: bytearray = field(default_factory=bytearray)

    def need(self, count: int) -> None:
        """Make the next `count` bytes available. Calls `fail` if the file does not have them."""
        end = self.at + count
        if end <= len(self.data):
            return
        if end > self.size:
            self.fail(
                f"its header ends {end - self.size:,} bytes after the end of the file: it is truncated or "
                "damaged; download it again"
            )
        if end > HEADER_LIMIT:
            self.fail(f"its header is larger than {HEADER_LIMIT >> 20} MiB: it is damaged")
        want = max(end, min(max(2 * len(self.data), _FIRST_FETCH), self.size, HEADER_LIMIT))
        self.data += self.stream.read(want - len(self.data))
        if len(self.data) < end:
            self.fail("the file shrank while it was read: try again after its download has finished")

    def scalar(self, code: str) -> Any:
        width = struct.calcsize("<" + code)
        self.need(width)
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += width
        return value

    def text(self) -> str:
        length = self.scalar("Q")
        self.need(length)
        raw = bytes(self.data[self.at : self.at + length])
        self.at += length
        return raw.decode("utf-8", "replace")

    def strings(self, count: int) -> Strings:
        """Skip `count` strings and record where they start. The hot loop: about 0.1 µs per string."""
        self.strings_seen += count
        if count > (self.size - self.at) // 8 or self.strings_seen > STRING_LIMIT:
            self.fail(f"an array in its header declares {count:,} strings: it is damaged")
        first = at = self.at
        starts: list[int] = []
        unpack, append, data = struct.Struct("<Q").unpack_from, starts.append, self.data
        have = len(data)
        for _ in range(count):
            if at + 8 > have:
                self.at = at
                self.need(8)
                have = len(data)
            append(at - first)
            at += 8 + unpack(data, at)[0]
        self.at = at
        self.need(0)  # the last string's bytes
        return Strings(bytes(data[first:at]), starts)

    def array(self, wanted: bool) -> Any:
        """The value of an array: Strings, a tuple of numbers, or None if it is not wanted."""
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind == _STRING:
            strings = self.strings(count)
            return strings if wanted else None
        if kind not in _SCALARS:
            self.fail(
                f"its header contains an array of the unknown type {kind}: it is damaged, or too new for "
                "this rerankd"
            )
        code = f"<{count}{_SCALARS[kind]}" if count < HEADER_LIMIT else "<"
        length = count * struct.calcsize("<" + _SCALARS[kind])
        self.need(length)
        values = struct.unpack_from(code, self.data, self.at) if wanted else None
        self.at += length
        return values


def parse(
    stream: Source, size_bytes: int, keep: Collection[str], fail: Callable[[str], NoReturn], start: bytes
) -> Header:
    """Parse a header from a stream of `size_bytes` in total, of which `start` has been read already.

    `keep` lists the suffixes of the names of arrays to keep (`"tokenizer.ggml.tokens"`, `".output_labels"`).
    `fail` is called with the description of an error and must raise. At most about twice the header's size is
    read, so the stream may come from the network.
    """
    cursor = _Cursor(stream, size_bytes, fail, data=bytearray(start))
    cursor.need(8)
    cursor.at = 4
    version = cursor.scalar("I")
    if version not in (2, 3):
        fail(_version_error(version))
    n_tensors, n_keys = cursor.scalar("Q"), cursor.scalar("Q")
    if n_keys > KEY_LIMIT or n_tensors > TENSOR_LIMIT:
        fail(f"its header declares {n_keys:,} keys and {n_tensors:,} tensors: it is damaged")
    endings = tuple(keep)
    values: dict[str, Any] = {}
    for _ in range(n_keys):
        key, kind = cursor.text(), cursor.scalar("I")
        if key in values:
            fail(f"its header contains the key {key[:80]!r} twice: it is damaged")
        if kind == _STRING:
            values[key] = cursor.text()
        elif kind == _ARRAY:
            values[key] = cursor.array(key.endswith(endings))
        elif kind in _SCALARS:
            values[key] = cursor.scalar(_SCALARS[kind])
        else:
            fail(
                f"its key {key[:80]!r} has the unknown type {kind}: it is damaged, or too new for this "
                "rerankd"
            )
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
        fail(f"its alignment {alignment!r} is not a power of two: it is damaged")
    tensors: dict[str, Tensor] = {}
    for _ in range(n_tensors):
        name = cursor.text()
        if name in tensors:
            fail(f"its header contains the tensor {name[:80]!r} twice: it is damaged")
        tensors[name] = _tensor(cursor, name, alignment)
    return Header(version, values, tensors, -(-cursor.at // alignment) * alignment)


def _tensor(cursor: _Cursor, name: str, alignment: int) -> Tensor:
    n_dims = cursor.scalar("I")
    if n_dims > 4:
        cursor.fail(f"its tensor {name[:80]!r} has {n_dims} dimensions: it is damaged")
    shape = tuple(cursor.scalar("Q") for _ in range(n_dims))
    kind, offset = cursor.scalar("I"), cursor.scalar("Q")
    type_name, block, block_bytes = TENSOR_TYPES.get(kind, (f"type {kind}", 1, 0))
    elements = math.prod(shape)
    if elements >= 1 << 63 or offset % alignment or (shape and shape[0] % block):
        cursor.fail(f"its tensor {name[:80]!r} has an impossible shape or offset: it is damaged")
    return Tensor(shape, type_name, elements // block * block_bytes, offset)


def _version_error(version: int) -> str:
    if version == 1:
        return (
            "it has GGUF version 1, which llama.cpp no longer reads: download a newer conversion of the model"
        )
    if version & 0xFFFF == 0:
        return "it is a big-endian GGUF file: download the little-endian one"
    return (
        f"it has GGUF version {version}, but only 2 and 3 are supported: it is damaged, or too new for this "
        "rerankd"
    )
