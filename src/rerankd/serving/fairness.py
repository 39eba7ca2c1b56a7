"""(pure) Weighted fair sharing by attained tokens: between clients, and between the requests of a client.

**The clock.** Each key has a tag: the tokens it has received, divided by its weight. `clock` is the tag of an
ideal key that always had its fair share: each charge advances it by the tokens divided by the sum of the
weights of all waiting keys. A new key starts at the clock, so it gains nothing from the time it was away. The
smallest tag is next; among equal tags, the key that arrived first. A key that leaves ahead of the clock keeps
its tag until the clock has passed it, so leaving and returning gains nothing either.

**The head start.** By tags alone, a request with 8 texts waits for about half of 30 large requests, because
as many tags are below the clock as above it. So a key may receive some tokens before its turn: until they are
used up, it comes before all tags, in order of arrival. These tokens are a loan. They count in its tag, and a
key that is MOST_AHEAD tokens ahead of the clock gets no more. So a client that sends small requests without
end gets that much once, and then its fair share.

**No starvation.** Small requests of ever new keys could take head starts without end. Head starts are
therefore paid from `credit`, which holds at most MOST_AHEAD tokens and grows by half a token for each token
that any key receives. So at most half of all tokens (and MOST_AHEAD once) are given out of order. All others
advance the clock, which passes the tag of each waiting key after at most (tag - clock) x (sum of weights) of
them. From then on new keys come after it, and only tags that were smaller come before it, each until it has
caught up. Head starts do not advance the clock: otherwise they would push every waiting key behind it
permanently.

**Spare tokens.** A batch with space left is filled with inputs that fit, out of order. They are charged only
up to HEAD_START ahead of the clock, since no other key could have used that space. Tokens that are not
charged do not advance the clock.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

HEAD_START = 4096
"""A request with at most this many tokens is small: about 30 texts of a paragraph."""

MOST_AHEAD = 8 * HEAD_START
"""The maximum number of tokens by which head starts may put a key ahead of its share: 20 requests of 8 texts
and a long prompt."""

_CREDIT_PER_TOKEN = 0.5


@dataclass(slots=True)
class _Key:
    """`head` is the rest of the head start in tokens; `arrival` numbers the keys."""

    tag: float
    weight: float
    arrival: int
    head: float = 0.0


class FairShare(Generic[K]):
    """Decides which key is next. Its methods are the events; all amounts are in tokens, weights are above
    0."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.credit = float(MOST_AHEAD)
        self._active: dict[K, _Key] = {}
        self._kept: dict[K, float] = {}
        self._prune_at = 64
        self._weights = 0.0
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._active)

    def __iter__(self) -> Iterator[K]:
        return iter(self._active)

    def __contains__(self, key: object) -> bool:
        return key in self._active

    def arrive(self, key: K, weight: float = 1.0, head: float = 0.0) -> None:
        """The key waits, or waits for more. `head` is its head start."""
        entry = self._active.get(key)
        if entry is None:
            tag = max(self._kept.pop(key, self.clock), self.clock)
            self._arrivals += 1
            entry = self._active[key] = _Key(tag, weight, self._arrivals)
            self._weights += weight
        else:
            self.reweigh(key, weight)
        lent = max(entry.tag - self.clock, 0.0) * weight
        entry.head = max(min(entry.head + head, MOST_AHEAD - lent), 0.0)

    def reweigh(self, key: K, weight: float) -> None:
        """Change the weight of a waiting key."""
        entry = self._active[key]
        self._weights += weight - entry.weight
        entry.weight = weight

    def pick(self) -> K | None:
        """The key that is next; None if no key waits."""
        return min(self._active, key=self._order, default=None)

    def in_order(self) -> list[K]:
        """All waiting keys, in the order of their turns."""
        return sorted(self._active, key=self._order)

    def is_ahead(self, key: K) -> bool:
        """Whether the key is next because of its head start."""
        return self.credit > 0 and self._active[key].head > 0

    def charge(self, key: K, tokens: float, *, spare: bool = False) -> None:
        """A waiting key received `tokens` tokens. `spare`: in the space that another key's batch left."""
        entry = self._active[key]
        self.credit = min(self.credit + tokens * _CREDIT_PER_TOKEN, MOST_AHEAD)
        ahead = min(entry.head, tokens)
        entry.head -= ahead
        if len(self._active) == 1:  # no other key waits
            entry.tag += tokens / entry.weight
            self.clock += tokens / entry.weight
            return
        lent = ahead if self.credit > 0 else 0.0
        self.credit -= lent
        due = tokens - lent
        if spare:
            due = min(due, max(HEAD_START - (entry.tag - self.clock) * entry.weight, 0.0))
        entry.tag += (lent + due) / entry.weight
        self.clock += due / self._weights

    def leave(self, key: K) -> None:
        """The key no longer waits, and may return."""
        entry = self._active.pop(key)
        self._weights = self._weights - entry.weight if self._active else 0.0
        if entry.tag > self.clock:
            self._kept[key] = entry.tag
        if len(self._kept) > self._prune_at:
            self._kept = {kept: tag for kept, tag in self._kept.items() if tag > self.clock}
            self._prune_at = 2 * len(self._kept) + 64

    def take_back(self, key: K, head: float) -> None:
        """Reduce the head start of a key by `head` tokens, which it does not need."""
        entry = self._active[key]
        entry.head = max(entry.head - head, 0.0)

    def forget(self, key: K) -> float:
        """The key will not return. Returns the unused part of its head start."""
        unused = self._active[key].head
        self.leave(key)
        self._kept.pop(key, None)
        return unused

    def _order(self, key: K) -> tuple[bool, float, int]:
        entry = self._active[key]
        return not (self.credit > 0 and entry.head > 0), entry.tag, entry.arrival
