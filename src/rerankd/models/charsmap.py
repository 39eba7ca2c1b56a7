"""A SentencePiece normalisation map as the `precompiled_charsmap` bytes of a GGUF.

llama.cpp reads the map as an XOR-compressed double array over UTF-8 bytes (Kanda 2018; `xcda_array_view` in
its `llama-vocab.cpp`): u32 size of the array in bytes, the array of u32, then NUL-terminated replacements.
The node at slot n has its children around b = n ^ base(n): the child for byte c lies at slot b ^ c and says
so in its low byte. Where a key ends the node's leaf bit is set and slot b holds the offset of its
replacement.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

_LEAF = 1 << 8
_VALUE = 1 << 31
_BASE_BIT = 10
_BASE_LIMIT = 1 << 21


@dataclass(slots=True)
class _Node:
    children: dict[int, _Node] = field(default_factory=dict)
    value: int | None = None


def build(replacements: Mapping[str, str]) -> bytes:
    """The map's bytes. Keys are non-empty and hold no NUL, nor do the replacements.

    Raises ValueError for a map that the format can't hold.
    """
    root, texts = _trie(replacements)
    slots: dict[int, int] = {}
    taken = {0}  # the root's own slot
    base = 0
    queue = [(0, 0, root)]
    for slot, label, node in queue:
        offsets = [*node.children, *([0] if node.value is not None else [])]
        base = _next_base(base, offsets, taken)
        if slot ^ base >= _BASE_LIMIT:
            raise ValueError("the normalisation map is too large for its format")
        taken.update(base ^ offset for offset in offsets)
        leaf = _LEAF if node.value is not None else 0
        slots[slot] = ((slot ^ base) << _BASE_BIT) | leaf | label
        if node.value is not None:
            slots[base] = _VALUE | node.value
        queue.extend((base ^ byte, byte, child) for byte, child in node.children.items())
    array = [0] * (max(slots) // 256 * 256 + 256)
    for slot, packed in slots.items():
        array[slot] = packed
    return struct.pack(f"<I{len(array)}I", 4 * len(array), *array) + texts


def _trie(replacements: Mapping[str, str]) -> tuple[_Node, bytes]:
    root = _Node()
    texts = bytearray()
    offsets: dict[str, int] = {}
    for key, text in replacements.items():
        if not key or "\0" in key or "\0" in text:
            raise ValueError(f"a normalisation map can't hold {key!r} -> {text!r}")
        if text not in offsets:
            offsets[text] = len(texts)
            texts += text.encode() + b"\0"
        node = root
        for byte in key.encode():
            node = node.children.setdefault(byte, _Node())
        node.value = offsets[text]
    return root, bytes(texts)


def _next_base(last: int, offsets: list[int], taken: set[int]) -> int:
    # Bases only grow, so that no two are equal: a child's slot names its byte but not its parent. That leaves
    # holes (the array is some four times as long as it could be), and takes 0.1 s instead of 12.
    base = last + 1
    while any(base ^ offset in taken for offset in offsets):
        base += 1
    return base
