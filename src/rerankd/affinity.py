"""Which of several servers answers a request, so that equal queries find the caches that they have filled.

Each server keeps the scores and the prompt starts that it has computed. So requests with the same model,
query and instruction should meet the same server, and a server that comes or goes should move its own queries
alone. Rendezvous hashing does both (Thaler & Ravishankar 1998, "Using name-based mappings to increase hit
rates"): each server has a value for each key, computed from its name, and the best value wins. With weights
the value is an exponential variate, -ln(h) / weight, whose minimum is a server's with a probability in
proportion to its weight (Schindelhauer & Schomaker 2005, "Weighted distributed hash tables").

One popular query must not fill one server while others are idle. As in consistent hashing with bounded loads
(Mirrokni, Thorup & Zadimoghaddam 2018), a server takes a request only while its load is below `BOUND` times
its fair share of all load, this request included. The next server in the order of the same key takes what is
left over, so a popular query fills a second cache, not all of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection
from typing import Protocol, TypeVar

from rerankd.content import Content, ImageLink

BOUND = 1.25
"""How many times its fair share of the load a server takes. A higher bound keeps more cache hits, but
requests wait longer: docs/scale.md compares values, by simulation (`bench/scale.py bounds`)."""

ALLOWED_LOAD = 2.0
"""Below this load a server takes a request whatever the others have: with few requests under way, a second
one waits less for the first than it would take without the cache."""

_BITS_64 = 0xFFFF_FFFF_FFFF_FFFF


class Candidate(Protocol):
    """A server that can take requests."""

    @property
    def seed(self) -> int:
        """`seed(name)` of its name, computed once."""

    @property
    def weight(self) -> float:
        """Its share of the load in proportion to the others' weights; greater than zero."""

    @property
    def load(self) -> float:
        """Its requests under way, or any other measure that is 1 for an average request."""


C = TypeVar("C", bound=Candidate)


def key(model: str, query: Content, instruction: str | None) -> int:
    """64 bits that identify what a server's caches hold for a request, equal in all processes and on all
    machines. `model` is the model's first name, also if the request has another one."""
    parts = (
        model.encode("utf-8", "replace"),
        _identity(query),
        (instruction or "").encode("utf-8", "replace"),
    )
    lengths = b"".join(len(part).to_bytes(8) for part in parts)
    return _hash(lengths + b"".join(parts))


def seed(name: str) -> int:
    """64 bits that stand for a server's name."""
    return _hash(name.encode("utf-8", "replace"))


def order(key: int, candidates: Collection[C]) -> list[C]:
    """All candidates, the one that should answer first."""
    return sorted(candidates, key=lambda candidate: _distance(key, candidate))


def choose(
    key: int, candidates: Collection[C], bound: float = BOUND, allowed_load: float = ALLOWED_LOAD
) -> C | None:
    """The first in the order of the key whose load is within the bound; None without candidates.

    Leave out servers that are not usable, and, for a second attempt, those that have been tried: the others
    keep their order. With a bound of at least 1 some server is always within it, and an idle one always is.
    """
    if not candidates:
        return None
    load = 1.0 + sum(candidate.load for candidate in candidates)
    per_weight = bound * load / sum(candidate.weight for candidate in candidates)
    within = [one for one in candidates if one.load < max(allowed_load, per_weight * one.weight)]
    return min(within, key=lambda candidate: _distance(key, candidate))


def _identity(query: Content) -> bytes:
    """What distinguishes a query from others, including images that are not loaded yet."""
    if isinstance(query, str):
        return query.encode("utf-8", "replace")
    links = (
        b"\0" + part.url.encode("utf-8", "replace") for part in query.parts if isinstance(part, ImageLink)
    )
    return query.key + b"".join(links)


def _distance(key: int, candidate: Candidate) -> float:
    """An exponential variate with the candidate's weight as its rate, the same for the same key and name."""
    # The finalizer of SplitMix64 (Steele, Lea & Flood 2014): each bit of the input changes half the output.
    mixed = key ^ candidate.seed
    mixed = (mixed ^ mixed >> 30) * 0xBF58_476D_1CE4_E5B9 & _BITS_64
    mixed = (mixed ^ mixed >> 27) * 0x94D0_49BB_1331_11EB & _BITS_64
    uniform = ((mixed >> 11) + 0.5) * 2.0**-53
    return -math.log(uniform) / candidate.weight


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
