"""(pure) Quarantine for texts that crash an engine, and how to find such a text in a batch.

When an engine crashes or hangs, every text of its calls becomes a suspect. Suspects are sent again in
exclusive calls, each with a quarter of the texts of the last call that crashed with them. So a text that
crashes the engine is alone after a few crashes (64 texts: 64, 16, 4, 1), and any other suspect is cleared by
its first score. A text is quarantined for an hour after two crashes in which it was alone, because one crash
may be a coincidence. Quarters find the text faster than halves: from 4 texts on, the second crash still fits
into the limit of 1 + log2(texts) restarts.

Running out of memory is never blamed on a text: such texts are also sent in smaller calls, but not
quarantined.

A text is identified by a digest of the model's fingerprint and the text. The query is not part of it: a text
that crashes the engine with one query does so with the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

TTL_S = 3600.0
_FOREVER_S = 10 * 365 * 86400.0
_PARTS = 4
_CRASHES_ALONE = 2
# Normally suspects are few and soon resolved. The limit is for suspects that no client sends again.
_MOST_SUSPECTS = 10_000

Fault = Literal["crash", "exit", "hang", "errors", "memory"]
"""The kinds of engine loss that a text may have caused (see process/failure_reasons.py)."""

REASONS: dict[Fault, str] = {
    "crash": "the engine crashed on it twice, so it is not retried for an hour",
    "exit": "the engine exited on it twice, so it is not retried for an hour",
    "hang": "the engine hung on it twice, so it is not retried for an hour",
    "errors": "the engine returned an error for it twice, so it is not retried for an hour",
    "memory": "the engine ran out of memory on it twice",
}


@dataclass(frozen=True, slots=True)
class Call:
    """The next call: indexes of its texts, and whether it is exclusive."""

    at: tuple[int, ...]
    alone: bool


@dataclass(slots=True)
class _Suspicion:
    """`size` is the number of texts of the smallest call that crashed with this text. `alone` counts the
    crashes in which it was alone."""

    size: int
    until: float
    alone: int = 0


class Quarantine:
    """The suspected and quarantined texts of one model. Times are in seconds of any one clock.

    `unexplained` counts the times that an engine was lost and every suspect was cleared.
    """

    def __init__(self, model: str) -> None:
        """`model` is the fingerprint of the model's file."""
        self._model = hashlib.blake2b(model.encode("utf-8", "replace"), digest_size=16)
        self._suspects: dict[str, _Suspicion] = {}
        self._blamed: dict[str, tuple[str, float]] = {}
        self._blamed_since = 0
        self.unexplained = 0

    @property
    def has_suspects(self) -> bool:
        return bool(self._suspects)

    @property
    def blamed(self) -> int:
        return len(self._blamed)

    @property
    def is_empty(self) -> bool:
        """Whether no text is suspected or quarantined."""
        return not self._suspects and not self._blamed

    def digests(self, texts: Iterable[str]) -> list[str]:
        """The digest of each text."""
        found = []
        for text in texts:
            digest = self._model.copy()
            digest.update(text.encode("utf-8", "replace"))
            found.append(digest.hexdigest())
        return found

    def reason(self, digest: str, now: float) -> str | None:
        """Why a text is quarantined; None if it is not."""
        reason, until = self._blamed.get(digest, (None, 0.0))
        if reason is not None and now >= until:
            del self._blamed[digest]
            return None
        return reason

    def next_call(self, digests: Sequence[str], now: float) -> Call:
        """The next call for these texts: first all texts that are not suspects, then suspects in exclusive
        calls. `digests` is not empty and contains no quarantined text."""
        suspects = [at for at, digest in enumerate(digests) if self._suspicion(digest, now) is not None]
        if len(suspects) < len(digests):
            kept = set(suspects)
            return Call(tuple(at for at in range(len(digests)) if at not in kept), alone=False)
        most = max(min(self._suspects[digest].size for digest in digests) // _PARTS, 1)
        return Call(tuple(range(min(most, len(digests)))), alone=True)

    def engine_lost(self, digests: Sequence[str], fault: Fault, now: float, *, alone: bool) -> dict[str, str]:
        """An engine was lost during a call with these texts. Returns the texts that are now quarantined, with
        the reason."""
        found: dict[str, str] = {}
        if not self._suspects:
            self._blamed_since = 0
        for digest in digests:
            known = self._suspects.setdefault(digest, _Suspicion(len(digests), now + TTL_S))
            known.size = min(known.size, len(digests))
            known.until = now + TTL_S
            known.alone += alone and len(digests) == 1
            if known.alone >= _CRASHES_ALONE:
                del self._suspects[digest]
                self._blamed_since += 1
                found[digest] = REASONS[fault]
                if fault != "memory":
                    self.blame(digest, REASONS[fault], now + TTL_S)
        while len(self._suspects) > _MOST_SUSPECTS:
            del self._suspects[next(iter(self._suspects))]
        return found

    def scored(self, digests: Iterable[str]) -> None:
        """These texts were scored, so they are no longer suspects."""
        had_suspects = bool(self._suspects)
        for digest in digests:
            self._suspects.pop(digest, None)
        if had_suspects and not self._suspects and not self._blamed_since:
            self.unexplained += 1

    def blame(self, digest: str, reason: str, until: float = _FOREVER_S) -> None:
        """Quarantine a text until `until`."""
        self._blamed[digest] = (reason, until)

    def clear(self) -> list[str]:
        """Forget all suspects and quarantined texts. Returns the digests of the latter."""
        blamed = list(self._blamed)
        self._suspects.clear()
        self._blamed.clear()
        return blamed

    def _suspicion(self, digest: str, now: float) -> _Suspicion | None:
        known = self._suspects.get(digest)
        if known is not None and now >= known.until:
            del self._suspects[digest]
            return None
        return known
