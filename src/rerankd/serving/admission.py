"""(pure) Admit requests to the queue of a model: limits for all requests together, and a share for each
client.

A client may use at most 3 times what remains free. So a single client gets at most 3/4 of a limit. If n
clients take as much as they can, each gets 3 / (3n + 1), and 1 / (3n + 1) stays free for the next client.
This rule needs no setting and no knowledge of the number of clients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rerankd.config import Settings

_SHARE = 3


class Usage(NamedTuple):
    """The usage of the queue by requests that wait or are being scored: their number, documents (inputs once
    they are tokenized), tokens, and bytes of text."""

    requests: int = 0
    documents: int = 0
    tokens: int = 0
    size_bytes: int = 0

    def plus(self, other: Usage, sign: int = 1) -> Usage:
        return Usage(*(mine + sign * theirs for mine, theirs in zip(self, other, strict=True)))

    def minus(self, other: Usage) -> Usage:
        return self.plus(other, -1)


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The limits of one model's queue, for all requests that wait or are being scored."""

    requests: int
    documents: int
    tokens: int
    size_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> QueueLimits:
        """The limits in the settings."""
        return cls(
            settings.max_requests,
            settings.max_queue_documents,
            settings.max_queue_tokens,
            settings.max_queue_bytes,
        )


class LimitReached(NamedTuple):
    """A limit that a request exceeds. `words` is the usage as text. `is_share`: the limit is the client's
    share. `over` is the amount of the quantity `what` (a field of Usage) that must become free."""

    words: str
    is_share: bool
    what: str
    over: int

    def __str__(self) -> str:
        """The limit as a sentence for the client."""
        if self.is_share:
            return f"This client has used its share of the queue ({self.words})."
        return f"The queue is full ({self.words})."


class UsageByClient:
    """The usage of the queue by all requests together, and by each client."""

    def __init__(self) -> None:
        self.total = Usage()
        self._clients: dict[str, Usage] = {}

    def of(self, client: str) -> Usage:
        """The usage of one client."""
        return self._clients.get(client, Usage())

    def change(self, client: str, less: Usage, more: Usage) -> None:
        """Replace `less` by `more` in the usage of a client."""
        self.total = self.total.minus(less).plus(more)
        self._clients[client] = self.of(client).minus(less).plus(more)
        if self._clients[client] == Usage():
            del self._clients[client]

    def limit_reached(
        self, limits: QueueLimits, client: str, less: Usage, more: Usage
    ) -> LimitReached | None:
        """The limit that is exceeded if `more` replaces `less`; None if there is none."""
        everyone, ours = self.total.minus(less), self.of(client).minus(less)
        for field in Usage._fields:
            adds, own, taken = getattr(more, field), getattr(ours, field), getattr(everyone, field)
            # + 1, so that a limit of 1 admits one request.
            free = getattr(limits, field) - taken - adds + 1
            if not adds:
                continue
            if free <= 0:
                return LimitReached(_words(field, taken), False, field, 1 - free)
            if own + adds > _SHARE * free:
                return LimitReached(
                    _words(field, own), True, field, -(-(own + adds - _SHARE * free) // (_SHARE + 1))
                )
        return None


def _words(name: str, held: int) -> str:
    if name == "size_bytes":
        return f"{held / 2**20:.1f} MiB of text"
    return f"{held} {name}"
