"""The header of a safetensors file: its tensors, without their values.

Source: the safetensors format (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rerankd.formats.families.family import Fail
from rerankd.formats.gguf_header import Source, Tensor
from rerankd.formats.tokenizer_file import GIT_LFS, POINTER

# The limit of the safetensors library for a header.
_HEADER_LIMIT = 100_000_000
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def parse(stream: Source, size_bytes: int, fail: Fail) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by their original names, from the beginning of a stream of
    `size_bytes` in total. Shapes are in ggml's order, columns first."""
    start = stream.read(8)
    if start == GIT_LFS.encode()[:8]:
        fail(f"its weights can't be read: {POINTER}")
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(_HEADER_LIMIT, size_bytes - 8):
        fail("it is not a safetensors file, or it is damaged; download it again")
    try:
        table = json.loads(stream.read(length))
        found = {name: _tensor(info, 8 + length) for name, info in table.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        fail("its header can't be read: it is damaged; download it again")
    for tensor in found.values():
        if tensor.elements * _BYTES.get(tensor.type_name, 0) not in (0, tensor.size_bytes):
            fail("its header declares a tensor of an impossible size: it is damaged; download it again")
    end = max((tensor.offset + tensor.size_bytes for tensor in found.values()), default=0)
    if end > size_bytes:
        fail(f"it is truncated: {end - size_bytes:,} of {end:,} bytes are missing; download it again")
    return found


def _tensor(info: Mapping[str, Any], data_start: int) -> Tensor:
    begin, end = info["data_offsets"]
    shape = tuple(int(length) for length in reversed(info["shape"]))
    if not 0 <= begin <= end or any(length < 0 for length in shape):
        raise ValueError
    return Tensor(shape, str(info["dtype"]), end - begin, data_start + begin)
