"""Parse and build SentencePiece's Unicode normalization map, the `precompiled_charsmap` bytes of a GGUF file.

llama.cpp reads the map as an XOR-compressed double array over UTF-8 bytes (Kanda 2018; `xcda_array_view` in
its `llama-vocab.cpp`): the size of the array in bytes (u32), the array (u32 each), then NUL-terminated
replacements. The children of the node at slot n are located around b = n ^ base(n): the child for byte c is
at slot b ^ c and repeats c in its low byte. If a key ends at a node, its leaf bit is set and slot b contains
the offset of the replacement. Nodes with equal children and an equal replacement share them.

At each position, the longest key that matches is replaced. Letters with combining marks (NFD, as macOS and
many keyboards produce) are therefore composed only if the whole sequence is a key. SentencePiece's rule
NMT_NFKC has such keys for all composed characters (`Builder::BuildNFKCMap` in its `builder.cc`); `sequences`
creates them from a map that has only single characters.
"""

from __future__ import annotations

import struct
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

_LEAF = 1 << 8
_VALUE = 1 << 31
_BASE_BIT = 10
_BASE_LIMIT = 1 << 21
# The composed characters beyond 16 bits that Unicode had when the model was trained. Newer versions add more
# of them, but none within 16 bits, so the map does not depend on Python's Unicode version.
_LONG_COMPOSED = (
    "\U0001109a\U0001109c\U000110ab\U0001112e\U0001112f\U0001134b\U0001134c"
    "\U000114bb\U000114bc\U000114be\U000115ba\U000115bb"
)


def sequences(singles: Mapping[str, str]) -> dict[str, str]:
    """NMT_NFKC's keys of several characters, from its keys of one character (`singles`).

    Every other spelling of a composed character is replaced by it. The parts of a spelling may be composed
    themselves, or be compatibility forms in `singles`: U+1EA4 replaces A + U+0302 + U+0301, U+00C2 + U+0301,
    and a full-width A with these marks. SentencePiece lacks spellings with composed parts, which Vietnamese
    keyboards send.
    """
    spellings = defaultdict(list)
    composed = []
    for character in (*map(chr, (*range(0x80, 0xD800), *range(0xE000, 0x10000))), *_LONG_COMPOSED):
        parts = unicodedata.normalize("NFD", character)
        if parts != character and character not in singles:
            spellings[parts].append(character)
            if unicodedata.is_normalized("NFC", character):
                composed.append((character, parts))
    for character, replacement in singles.items():
        spellings[unicodedata.normalize("NFD", replacement)].append(character)
    return {
        spelling: character
        for character, parts in composed
        for spelling in _spellings(parts, spellings)
        if spelling != character
    }


def _spellings(parts: str, known: Mapping[str, list[str]]) -> list[str]:
    """All spellings of `parts`: each character as it is, or a run of characters as one that `known` maps to
    it."""
    found = [""]
    of_suffix = [found]  # the spellings of each suffix of `parts`, shortest suffix first
    for start in range(len(parts) - 1, -1, -1):
        found = [
            one + rest
            for end in range(start + 1, len(parts) + 1)
            for one in (*([parts[start]] if end == start + 1 else ()), *known.get(parts[start:end], ()))
            for rest in of_suffix[len(parts) - end]
        ]
        of_suffix.append(found)
    return found


def parse(data: bytes) -> dict[str, str]:
    """Parse a map's bytes into its replacements. Raises ValueError if they are not a valid map."""
    try:
        (size,) = struct.unpack_from("<I", data)
        array = struct.unpack_from(f"<{size // 4}I", data, 4)
        texts = data[4 + size :]
        found = {}
        stack = [(b"", array[0] >> _BASE_BIT)]
        while stack:
            key, base = stack.pop()
            for slot in range(base & ~0xFF, (base | 0xFF) + 1):
                byte = slot ^ base
                if byte and array[slot] & (_VALUE | 0xFF) == byte:
                    below = slot ^ array[slot] >> _BASE_BIT
                    spelled = key + bytes([byte])
                    stack.append((spelled, below))
                    if array[slot] & _LEAF:
                        start = array[below] & (_VALUE - 1)
                        found[spelled.decode()] = texts[start : texts.index(b"\0", start)].decode()
    except (struct.error, IndexError) as error:
        raise ValueError(f"it is not a normalization map: {error}") from error
    return found


def build(replacements: Mapping[str, str]) -> bytes:
    """Build the map's bytes. Keys must not be empty, and neither keys nor replacements may contain NUL.

    Raises ValueError for a map that the format can't represent.
    """
    root, texts = _trie(replacements)
    shared: dict[_Shape, _Node] = {}
    root = _share(root, shared)
    slots: dict[int, int] = {}
    taken = {0}  # the root's slot
    bases: dict[int, int] = {}
    base = 0
    queue = [(0, 0, root)]
    for slot, label, node in queue:
        is_new = id(node) not in bases
        if is_new:
            offsets = [*node.children, *([0] if node.value is not None else [])]
            base = _next_base(base, offsets, taken)
            bases[id(node)] = base
            taken.update(base ^ offset for offset in offsets)
        own = bases[id(node)]
        if slot ^ own >= _BASE_LIMIT:
            raise ValueError("the normalization map is too large for its format")
        leaf = _LEAF if node.value is not None else 0
        slots[slot] = ((slot ^ own) << _BASE_BIT) | leaf | label
        if is_new:
            if node.value is not None:
                slots[own] = _VALUE | node.value
            queue.extend((own ^ byte, byte, child) for byte, child in node.children.items())
    array = [0] * (max(slots) // 256 * 256 + 256)
    for slot, packed in slots.items():
        array[slot] = packed
    return struct.pack(f"<I{len(array)}I", 4 * len(array), *array) + texts


@dataclass(slots=True)
class _Node:
    children: dict[int, _Node] = field(default_factory=dict)
    value: int | None = None


# A node's replacement, and for each child its byte and the identity of the shared child node.
_Shape = tuple[int | None, tuple[tuple[int, int], ...]]


def _share(node: _Node, known: dict[_Shape, _Node]) -> _Node:
    """The node of `known` that equals this one; this one if there is none, after adding it."""
    node.children = {byte: _share(child, known) for byte, child in node.children.items()}
    shape = (node.value, tuple((byte, id(child)) for byte, child in sorted(node.children.items())))
    return known.setdefault(shape, node)


def _trie(replacements: Mapping[str, str]) -> tuple[_Node, bytes]:
    root = _Node()
    texts = bytearray()
    offsets: dict[str, int] = {}
    for key, text in replacements.items():
        if not key or "\0" in key or "\0" in text:
            raise ValueError(f"a normalization map can't contain {key!r} -> {text!r}")
        if text not in offsets:
            offsets[text] = len(texts)
            texts += text.encode() + b"\0"
        node = root
        for byte in key.encode():
            node = node.children.setdefault(byte, _Node())
        node.value = offsets[text]
    return root, bytes(texts)


def _next_base(last: int, offsets: list[int], taken: set[int]) -> int:
    # Bases must be unique, because a child's slot contains its byte but not its parent. So they only
    # increase: that leaves gaps, but is much faster than filling them.
    base = last + 1
    while any(base ^ offset in taken for offset in offsets):
        base += 1
    return base
