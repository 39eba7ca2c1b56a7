"""The prefix that inputs of one question share: which tokens it is, and how a network computes it once.

The stem of a question is the prompt before the document. A tokenizer may join the end of that text with the
beginning of a document, so the stem leaves out the last token, and each input is compared with it: what it
shares depends on the input and its question alone, so a score does not depend on the other inputs of a batch.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rerankd.backends.worker.passes import Integers, Pause, Pending, Reading, Vectors, never, padded, split
from rerankd.scoring.engine_input import Ids, Input, Question

Prefix = NDArray[np.float32]
"""Keys and values of the first tokens of a text [2 · layers, heads, tokens, n]."""

CACHE_BYTES = 256 * 2**20
"""The size of the cache. Qwen3-0.6B has 229 kB a token, so it keeps 15 prefixes of 78 tokens."""
# A part of a stem that is at least this long is computed and kept on its own, because other queries share it.
_LEAST_PART = 16


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
        found.append(Reading(whole, second, shared, parts))
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
        return sum(one.nbytes for one in self._held.values())


def _key(ids: Sequence[Ids]) -> bytes:
    return b"".join(one.tobytes() for one in ids)


class PrefixedModel(Protocol):
    """A causal model that reads texts behind a prefix. A pass holds up to `tokens_a_pass` tokens, padding
    included: this bounds the memory of a pass. `prefixes` are kept across batches. Not thread-safe."""

    tokens_a_pass: int
    prefixes: PrefixCache

    def whole(self, count: int, longest: int) -> int:
        """See passes.Whole."""

    def prefix(self, before: Prefix | None, ids: Integers) -> Prefix:
        """Return the prefix `before` and the tokens `ids` [tokens] after it, as one prefix."""

    def forward(self, before: Prefix | None, ids: Integers, lengths: Integers) -> Vectors:
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
        shared, most = readings[0].shared, self.tokens_a_pass
        prefix = _of_stem(self, readings[0].stem, pause) if shared else None
        if prefix is not None:
            prefix = prefix[:, :, :shared]
        end = shared + (len(readings[0].ids) - shared - 1) // most * most
        prefix = _extended(self, prefix, readings[0].ids[shared:end], pause)
        ids, lengths, _ = padded([Reading(one.ids[end:], 0) for one in readings])
        rows = self.forward(prefix, ids, lengths)[:, None]
        return lambda: rows


def _of_stem(model: PrefixedModel, stem: Sequence[Ids], pause: Pause) -> Prefix | None:
    """Return the prefix of a stem, from the cache or computed part by part."""
    prefix = None
    for end, part in enumerate(stem, 1):
        known = model.prefixes.get(stem[:end])
        if known is None:
            known = _extended(model, prefix, part, pause)
            if known is not None:
                model.prefixes.put(stem[:end], known)
        prefix = known
    return prefix


def _extended(model: PrefixedModel, prefix: Prefix | None, ids: Ids, pause: Pause) -> Prefix | None:
    """Return a prefix and further tokens as one prefix, computed in parts of the size of a pass."""
    for start in range(0, len(ids), model.tokens_a_pass):
        prefix = model.prefix(prefix, ids[start : start + model.tokens_a_pass].astype(np.int64))
        pause()
    return prefix
