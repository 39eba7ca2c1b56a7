"""A SentencePiece normalisation map as the `precompiled_charsmap` bytes of a GGUF.

llama.cpp reads the map as an XOR-compressed double array over UTF-8 bytes (Kanda 2018; `xcda_array_view` in
its `llama-vocab.cpp`): u32 size of the array in bytes, the array of u32, then NUL-terminated replacements.
The node at slot n has its children around b = n ^ base(n): the child for byte c lies at slot b ^ c and says
so in its low byte. Where a key ends the node's leaf bit is set and slot b holds the offset of its
replacement. Nodes whose children and replacement are equal share them.

The text at a place is replaced by the longest key that begins there, so letters with combining marks (NFD, as
macOS and many keyboards write it) are composed only where the sequence itself is a key. SentencePiece's rule
NMT_NFKC has such keys for all composed characters (`Builder::BuildNFKCMap` in its `builder.cc`); `sequences`
makes them from a map that only has single characters.
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
# The composed characters beyond 16 bits that Unicode had when the model was made; newer versions have more,
# and none of 16 bits. So the map does not depend on the Unicode version of the Python that makes it.
_LONG_COMPOSED = (
    "\U0001109a\U0001109c\U000110ab\U0001112e\U0001112f\U0001134b\U0001134c"
    "\U000114bb\U000114bc\U000114be\U000115ba\U000115bb"
)


def sequences(singles: Mapping[str, str]) -> dict[str, str]:
    """The keys of several characters that NMT_NFKC has beside those of one, which are `singles`.

    Each composed character is the replacement of all its other spellings, whose parts may be composed, or
    compatibility forms that `singles` knows: U+1EA4 of A + U+0302 + U+0301, of U+00C2 + U+0301, and of a
    full-width A with these marks. SentencePiece lacks those of the second kind, which Vietnamese keyboards
    send.
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
    """All ways to write `parts`, each character as itself and each run of them as what `known` has for it."""
    found = [""]
    ways = [found]  # of the ends of `parts`, the shortest first
    for start in range(len(parts) - 1, -1, -1):
        found = [
            one + rest
            for end in range(start + 1, len(parts) + 1)
            for one in (*([parts[start]] if end == start + 1 else ()), *known.get(parts[start:end], ()))
            for rest in ways[len(parts) - end]
        ]
        ways.append(found)
    return found


def parse(data: bytes) -> dict[str, str]:
    """The replacements of a map's bytes. Raises ValueError where they are none."""
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
        raise ValueError(f"it is no normalisation map: {error}") from error
    return found


def build(replacements: Mapping[str, str]) -> bytes:
    """The map's bytes. Keys are non-empty and hold no NUL, nor do the replacements.

    Raises ValueError for a map that the format can't hold.
    """
    root, texts = _trie(replacements)
    shared: dict[_Shape, _Node] = {}
    root = _share(root, shared)
    slots: dict[int, int] = {}
    taken = {0}  # the root's own slot
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
            raise ValueError("the normalisation map is too large for its format")
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


# A node's replacement and its children, each by its byte and its identity once it is shared.
_Shape = tuple[int | None, tuple[tuple[int, int], ...]]


def _share(node: _Node, known: dict[_Shape, _Node]) -> _Node:
    """The first node of `known` that is equal to this one, which is added where there is none."""
    node.children = {byte: _share(child, known) for byte, child in node.children.items()}
    shape = (node.value, tuple((byte, id(child)) for byte, child in sorted(node.children.items())))
    return known.setdefault(shape, node)


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
    # holes, and takes a small part of the time that filling them would.
    base = last + 1
    while any(base ^ offset in taken for offset in offsets):
        base += 1
    return base
