"""The prefix that inputs of one question share: which tokens it is, and how a network computes it once.

The stem of a question is the prompt before the document. A tokenizer may join the end of that text with the
beginning of a document, so the stem leaves out the last token, and each input is compared with it: what it
shares depends on the input and its question alone, so a score does not depend on the other inputs of a batch.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rerankd.backends.worker.images import Picture
from rerankd.backends.worker.passes import Integers, Pause, Pending, Reading, Vectors, never, padded, split
from rerankd.scoring.engine_input import Ids, Input, Question


class Prefix(NamedTuple):
    """The keys and values of the first `tokens` tokens of a text, in turns: `held` [2 · layers, tokens or
    more, heads, n], which may have room for further ones."""

    held: NDArray[np.float32]
    tokens: int


CACHE_BYTES = 256 * 2**20
"""The size of the cache. Qwen3-0.6B has 229 kB a token, so it keeps 15 prefixes of 78 tokens."""
# A part of a stem that is at least this long is computed and kept on its own, because other queries share it.
_LEAST_PART = 16
# The most products of a token and a token that it sees in a pass of one text, unless the pass would be short.
# With 16 heads their weights take 128 MiB.
_SEEN = 2**21
_LEAST_PASS = 128


def readings(inputs: Sequence[Input]) -> list[Reading]:
    """(pure) Return the inputs as a network reads them."""
    stems: dict[int, tuple[tuple[Ids, ...], Ids]] = {}
    found = []
    for one in inputs:
        question, whole = one.question, one.whole
        if id(question) not in stems:
            parts = _stem(question)
            stems[id(question)] = parts, np.concatenate(parts)
        parts, stem = stems[id(question)]
        shared = max(min(common(stem, whole), len(whole) - 1), 0)
        second = len(whole) if question.second is None else question.second
        pixels = tuple(one.pixels for one in question.pictures.in_order if isinstance(one, Picture))
        found.append(Reading(whole, second, shared, parts, images=pixels))
    return found


def common(first: Ids, second: Ids) -> int:
    """(pure) Return the number of equal tokens at the beginning of both."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def _stem(question: Question) -> tuple[Ids, ...]:
    """The stem in one part, or in two: the tokens of the template, then the question."""
    head = question.head[:-1]
    if min(len(question.before), len(head)) < _LEAST_PART:
        return (np.concatenate((question.before, head)),)
    return question.before, head


class PrefixCache:
    """The most recently used prefixes, up to a number of bytes, but at least one. Not thread-safe."""

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._limit = limit_bytes
        self._held: OrderedDict[bytes, Prefix] = OrderedDict()

    def get(self, ids: Sequence[Ids]) -> Prefix | None:
        """Return the prefix of these tokens, if it is kept."""
        key = _key(ids)
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def put(self, ids: Sequence[Ids], prefix: Prefix) -> None:
        self._held[_key(ids)] = prefix
        self._held.move_to_end(_key(ids))
        while len(self._held) > 1 and self.size_bytes > self._limit:
            self._held.popitem(last=False)

    @property
    def size_bytes(self) -> int:
        return sum(one.held.nbytes for one in self._held.values())


def _key(ids: Sequence[Ids]) -> bytes:
    return b"".join(one.tobytes() for one in ids)


class PrefixedModel(Protocol):
    """A causal model that reads texts behind a prefix. A pass holds up to `tokens_a_pass` tokens, padding
    included: this bounds the memory of a pass. `prefixes` are kept across batches. Not thread-safe."""

    tokens_a_pass: int
    prefixes: PrefixCache

    def whole(self, count: int, longest: int) -> int:
        """See passes.Whole."""

    def empty(self, tokens: int) -> Prefix:
        """Return a prefix without tokens, with room for this number of them."""

    def extend(self, prefix: Prefix, ids: Integers) -> Prefix:
        """Add the tokens `ids` [tokens] to a prefix, in place. It has room for them."""

    def forward(self, prefix: Prefix, ids: Integers, lengths: Integers) -> Vectors:
        """Return the raw scores of texts [texts, tokens] after a prefix."""


class Prefixing:
    """The methods of a scorer.Network for a class that is a PrefixedModel."""

    passes_ahead = 0

    def passes(self: PrefixedModel, readings: Sequence[Reading]) -> list[list[int]]:
        """Return passes of inputs with the same prefix."""
        groups: dict[tuple[bytes, int], list[int]] = defaultdict(list)
        for at, one in enumerate(readings):
            groups[_key(one.stem), one.shared].append(at)
        return [
            [group[place] for place in places]
            for group in groups.values()
            for places in split(
                [len(readings[at].ids) - readings[at].shared for at in group], self.tokens_a_pass, self.whole
            )
        ]

    def start(self: PrefixedModel, readings: Sequence[Reading], pause: Pause = never) -> Pending:
        """Compute one pass. A text longer than a pass is alone in it, and computed in parts."""
        ids, shared = readings[0].ids, readings[0].shared
        prefix = _of_stem(self, readings[0].stem, pause) if shared else self.empty(0)
        prefix = prefix._replace(tokens=shared)
        rest = (len(ids) - shared - 1) // self.tokens_a_pass * self.tokens_a_pass
        prefix = _extended(self, prefix, ids[shared : shared + rest], pause)
        owns, lengths, _ = padded([Reading(one.ids[shared + rest :], 0) for one in readings])
        rows = self.forward(prefix, owns, lengths)[:, None]
        return lambda: rows


def _of_stem(model: PrefixedModel, stem: Sequence[Ids], pause: Pause) -> Prefix:
    """Return the prefix of a stem, from the cache or computed part by part."""
    prefix = model.empty(0)
    for end, part in enumerate(stem, 1):
        known = model.prefixes.get(stem[:end])
        if known is None:
            known = _extended(model, prefix, part, pause)
            model.prefixes.put(stem[:end], known)
        prefix = known
    return prefix


def _extended(model: PrefixedModel, prefix: Prefix, ids: Ids, pause: Pause) -> Prefix:
    """Return a copy of a prefix with further tokens, which are computed in passes of limited size."""
    if not len(ids):
        return prefix
    longer = model.empty(prefix.tokens + len(ids))
    longer.held[:, : prefix.tokens] = prefix.held[:, : prefix.tokens]
    longer = longer._replace(tokens=prefix.tokens)
    while len(ids):
        count = part(model.tokens_a_pass, longer.tokens)
        longer = model.extend(longer, ids[:count].astype(np.int64))
        ids = ids[count:]
        pause()
    return longer


def part(most: int, before: int) -> int:
    """(pure) Return how many tokens a pass may hold behind `before` others: the memory of its attention is
    their product."""
    return min(most, max(_SEEN // (before + most), _LEAST_PASS))
