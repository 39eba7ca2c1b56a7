"""(pure) Which texts end an engine, and how to find them among others.

When an engine dies or hangs, every text that it was working on is a suspect. Suspects are asked again alone,
that is without another call in the engine, in calls of a quarter of the texts of the last call that died with
them. So a text that ends the engine is alone after few deaths (64 texts: 64, 16, 4, 1), and an innocent one
is cleared by its first answer. A text is blamed after two deaths with nothing beside it, since one may be
chance; then it is not asked for an hour. Quarters instead of halves leave room for the second death in the
bound of 1 + log2(texts) restarts, from 4 texts on.

Memory is never a text's fault: such texts are asked in smaller calls too, but not kept.

A text is known by a digest of the model's file and its words. The query is no part of it: what ends an engine
with one query does so with the next one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

TTL_S = 3600.0
_FOREVER_S = 10 * 365 * 86400.0
_PARTS = 4
_DEATHS_ALONE = 2
# Suspects are few for moments only; a bound for the case that nobody asks for them again.
_MOST_SUSPECTS = 10_000

Fault = Literal["crash", "exit", "hang", "errors", "memory"]
"""How an engine went that may be due to its texts (see process/failure_reasons.py)."""

REASONS: dict[Fault, str] = {
    "crash": "the engine crashed on it twice, so it is not tried again for an hour",
    "exit": "the engine ended on it twice, so it is not tried again for an hour",
    "hang": "the engine stopped working on it twice, so it is not tried again for an hour",
    "errors": "the engine gave an error for it twice, so it is not tried again for an hour",
    "memory": "the engine ran out of memory on it twice",
}


@dataclass(frozen=True, slots=True)
class Call:
    """What to ask next: places in the sequence, and whether without another call beside it."""

    at: tuple[int, ...]
    alone: bool


@dataclass(slots=True)
class _Suspicion:
    """`size` is that of the smallest call that died with the text, `alone` the deaths with nothing beside."""

    size: int
    until: float
    alone: int = 0


class Quarantine:
    """The suspects and the blamed texts of one model. Times are seconds of any one clock.

    `unexplained` counts deaths after which every suspect was cleared: no text was the reason.
    """

    def __init__(self, model: str) -> None:
        """`model` tells the model's file from another one."""
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
        """Whether no text has to be looked up."""
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
        """Why a text is not to be asked; None where it may be."""
        reason, until = self._blamed.get(digest, (None, 0.0))
        if reason is not None and now >= until:
            del self._blamed[digest]
            return None
        return reason

    def next_call(self, digests: Sequence[str], now: float) -> Call:
        """The next call for texts, at least one, none of them blamed: those under no suspicion together, and
        then the suspects."""
        suspects = [at for at, digest in enumerate(digests) if self._suspicion(digest, now) is not None]
        if len(suspects) < len(digests):
            kept = set(suspects)
            return Call(tuple(at for at in range(len(digests)) if at not in kept), alone=False)
        most = max(min(self._suspects[digest].size for digest in digests) // _PARTS, 1)
        return Call(tuple(range(min(most, len(digests)))), alone=True)

    def engine_lost(self, digests: Sequence[str], fault: Fault, now: float, *, alone: bool) -> dict[str, str]:
        """An engine went with a call of these texts. Returns those not to be asked again, with the reason."""
        found: dict[str, str] = {}
        if not self._suspects:
            self._blamed_since = 0
        for digest in digests:
            known = self._suspects.setdefault(digest, _Suspicion(len(digests), now + TTL_S))
            known.size = min(known.size, len(digests))
            known.until = now + TTL_S
            known.alone += alone and len(digests) == 1
            if known.alone >= _DEATHS_ALONE:
                del self._suspects[digest]
                self._blamed_since += 1
                found[digest] = REASONS[fault]
                if fault != "memory":
                    self.blame(digest, REASONS[fault], now + TTL_S)
        while len(self._suspects) > _MOST_SUSPECTS:
            del self._suspects[next(iter(self._suspects))]
        return found

    def scored(self, digests: Iterable[str]) -> None:
        """These texts were scored: nothing is wrong with them."""
        had_suspects = bool(self._suspects)
        for digest in digests:
            self._suspects.pop(digest, None)
        if had_suspects and not self._suspects and not self._blamed_since:
            self.unexplained += 1

    def blame(self, digest: str, reason: str, until: float = _FOREVER_S) -> None:
        """Don't ask this text before `until`."""
        self._blamed[digest] = (reason, until)

    def clear(self) -> list[str]:
        """Forget everything; the digests that were blamed."""
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
