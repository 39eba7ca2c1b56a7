"""(pure) Weighted fair shares by attained tokens: between clients, and between one client's requests.

**The clock.** Each key has a tag: the tokens it was given, divided by its weight. `clock` says how far a key
would be that had always had its fair share: each charge moves it by the tokens over the sum of the weights of
all who wait. A key that arrives starts at the clock, so it gains nothing from the time it was away. The
smallest tag is next; of equal ones, the key that arrived first. A key that leaves ahead of the clock keeps
its tag until the clock has passed it, so leaving and coming back gains nothing either.

**The head start.** By tags alone a request of 8 texts waits for about half of 30 large ones, since as many
tags are below the clock as above it. So a key may get some tokens ahead of those that it is due: while it has
some of these left it comes before all tags, in the order of arrival. They are a loan. They count in its tag,
and a key that is MOST_AHEAD tokens ahead of the clock gets no more. So a client that sends small requests
without end has that much once, and then its fair share.

**Nobody starves.** Small requests of ever new keys could take head starts without end. These are therefore
paid from `credit`, which holds at most MOST_AHEAD and gets half a token for each token that anybody is given.
So at most half of all tokens (and MOST_AHEAD once) are given out of order. All others move the clock, which
passes the tag of each key that waits after at most (tag - clock) x (sum of weights) of them. From then on
newcomers come after it, and before it come only the tags that were smaller, each until it is level. Head
starts do not move the clock: else they would push everybody who waits behind it, for good.

**Spare room.** A batch that has room left is filled with what fits, out of order. That is charged only as
far as HEAD_START ahead of the clock, since nobody else could have used that room. What is not charged does
not move the clock.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

HEAD_START = 4096
"""Tokens up to which a request is small: about 30 texts of a paragraph."""

MOST_AHEAD = 8 * HEAD_START
"""Tokens by which head starts may put a key ahead of its share: 20 requests of 8 texts and a long prompt."""

_CREDIT_PER_TOKEN = 0.5


@dataclass(slots=True)
class _Key:
    """`head` is how many tokens it may still get before it is due, `arrival` numbers the keys."""

    tag: float
    weight: float
    arrival: int
    head: float = 0.0


class FairShare(Generic[K]):
    """Whose turn it is. Its methods are the events; all amounts are tokens, weights are above 0."""

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
        """The key waits, or waits for more. `head` is what it would have ahead of its turn."""
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
        """A key that waits has another weight from now on."""
        entry = self._active[key]
        self._weights += weight - entry.weight
        entry.weight = weight

    def pick(self) -> K | None:
        """Who is next; None where nobody waits."""
        return min(self._active, key=self._order, default=None)

    def in_order(self) -> list[K]:
        """All who wait, the next one first."""
        return sorted(self._active, key=self._order)

    def is_ahead(self, key: K) -> bool:
        """Whether the key is next because of its head start."""
        return self.credit > 0 and self._active[key].head > 0

    def charge(self, key: K, tokens: float, *, spare: bool = False) -> None:
        """A key that waits was given `tokens` tokens. `spare`: in room that another one's turn left."""
        entry = self._active[key]
        self.credit = min(self.credit + tokens * _CREDIT_PER_TOKEN, MOST_AHEAD)
        ahead = min(entry.head, tokens)
        entry.head -= ahead
        if len(self._active) == 1:  # ahead of nobody
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
        """The key does not wait any more, and may come back."""
        entry = self._active.pop(key)
        self._weights = self._weights - entry.weight if self._active else 0.0
        if entry.tag > self.clock:
            self._kept[key] = entry.tag
        if len(self._kept) > self._prune_at:
            self._kept = {kept: tag for kept, tag in self._kept.items() if tag > self.clock}
            self._prune_at = 2 * len(self._kept) + 64

    def take_back(self, key: K, head: float) -> None:
        """So much of its head start the key does not need any more."""
        entry = self._active[key]
        entry.head = max(entry.head - head, 0.0)

    def forget(self, key: K) -> float:
        """The key won't come back; what it has not used of its head start."""
        unused = self._active[key].head
        self.leave(key)
        self._kept.pop(key, None)
        return unused

    def _order(self, key: K) -> tuple[bool, float, int]:
        entry = self._active[key]
        return not (self.credit > 0 and entry.head > 0), entry.tag, entry.arrival
