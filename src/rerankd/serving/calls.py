"""A request's calls to the engines of a model: repeated when an engine was lost, in parts until the text that
ends it is found (see quarantine.py), and bounded by the request's deadline alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rerankd.backends.base import Batch, Engine, RawScores
from rerankd.errors import EngineError, EngineUnavailable, InputTooLong, QueryRefused
from rerankd.metrics import Metrics
from rerankd.process import reasons
from rerankd.process.reasons import Cause
from rerankd.scoring import normalize, self_test
from rerankd.serving.quarantine import REASONS, TTL_S, Fault, Quarantine
from rerankd.serving.replicas import Replicas
from rerankd.state import StateStore

_log = logging.getLogger("rerankd")

T = TypeVar("T")
SECTION = "quarantine"
# A call that was given up sooner says nothing of an engine that turns out to be stuck.
_SLOW_S = 1.0
# Characters by which beginnings of one text are known to be of one text.
_BEGINNING = 200
_MOST_GIVEN_UP = 100
_REMEMBERED_S = 300.0
# What a connection to an engine raises that had died before.
_NOT_REACHED = (ConnectionRefusedError, ConnectionAbortedError, FileNotFoundError)
# Texts that are blamed, where fewer than so many times as many were scored: it is not the texts.
_MANY = 5
# Engines in a row that gave errors for a known pair, too: then it is none of the texts.
_MOST_USELESS = 2

Part = Callable[[Engine, Sequence[str]], Awaitable[Sequence[T]]]
"""A call for some of the texts: one answer for each."""


@dataclass(frozen=True, slots=True)
class _GivenUp:
    """A call that nobody waits for any more; its engine may turn out to be stuck in it."""

    engine: Engine
    names: tuple[str, ...]
    alone: bool
    at: float


class _Lost(Exception):
    """An engine that went under a call, or gave an error. `cause` None: it runs, but hung up."""

    def __init__(self, engine: Engine, cause: Cause | None, error: EngineError) -> None:
        super().__init__()
        self.engine, self.cause, self.error = engine, cause, error


class Calls:
    """What asks the engines of one model. `running` gives them, or raises EngineUnavailable; `patience_s` is
    how long a call that has the engine alone may take before it is looked at whether the engine is stuck."""

    def __init__(
        self,
        name: str,
        fingerprint: str,
        running: Callable[[], Replicas],
        learned: StateStore,
        metrics: Metrics,
        *,
        log: Path,
        patience_s: float,
    ) -> None:
        self._name = name
        self._running = running
        self._learned = learned
        self._metrics = metrics
        self._engine_log = log
        self._patience_s = patience_s
        self._quarantine = Quarantine(fingerprint)
        self._given_up: list[_GivenUp] = []
        self._answered = 0
        for digest, entry in learned.entries(SECTION).items():
            self._quarantine.blame(digest, str(entry.value), entry.until or time.time() + TTL_S)

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text. For one that ends the engine it is the largest number there may be, one for
        each byte: what is then cut of it is left out when it is scored, if that ends the engine, too."""
        # A document is cut by counting ever other beginnings of it, which all end the engine: they are one.
        names = [f"\1{text[:_BEGINNING]}" for text in texts]
        counts, _ = await self._each(texts, names, lambda engine, part: engine.count_tokens(part))
        return [
            len(text.encode()) if count is None else count for text, count in zip(texts, counts, strict=True)
        ]

    async def score(self, query: str, texts: Sequence[str], instruction: str) -> RawScores:
        """The raw value of each text, None where `errors` says why it has none. Raises QueryRefused for a
        query that ends the engine whatever the text."""
        tokens = 0
        (query_digest,) = self._quarantine.digests([f"\0{query}\0{instruction}"])

        async def each(engine: Engine, part: Sequence[str]) -> Sequence[tuple[float | None, str | None]]:
            nonlocal tokens
            answer = await engine.score(Batch.of(query, part, instruction))
            normalize.check_complete(answer.values, answer.errors)
            self._running().answered(engine)
            tokens += answer.tokens
            return [(value, answer.errors.get(at)) for at, value in enumerate(answer.values)]

        if self._quarantine.reason(query_digest, time.time()) is not None:
            raise self._refused()
        pairs, errors = await self._each(texts, texts, each, query_digest)
        values = [pair[0] if pair is not None else None for pair in pairs]
        errors |= {at: pair[1] for at, pair in enumerate(pairs) if pair is not None and pair[1] is not None}
        return RawScores(values, tokens, errors)

    def blames_engine(self) -> bool:
        """Whether an engine that just crashed under load did so by itself.

        That is so where nobody was asking it, where no text explained an earlier crash, and where so many
        texts are blamed beside those that were scored that it must be the engine. These are then asked again.
        """
        quarantine = self._quarantine
        is_broken = quarantine.blamed >= _MANY and self._answered < _MANY * quarantine.blamed
        if is_broken:
            self.forget()
        if is_broken or quarantine.unexplained or not quarantine.has_suspects:
            quarantine.unexplained = self._answered = 0
            return True
        return False

    def forget(self) -> None:
        """Ask every text again."""
        for digest in self._quarantine.clear():
            self._learned.remove(SECTION, digest)

    async def _each(
        self,
        texts: Sequence[str],
        names: Sequence[str],
        call: Part[T],
        query: str | None = None,
    ) -> tuple[list[T | None], dict[int, str]]:
        """The answer for each text, or why there is none. `names` are what the texts are remembered by,
        `query` is the digest of what they are scored for; None where they are only counted.

        It ends: each loss makes the calls of suspects smaller or takes one out. A loss that no text is
        suspected of comes from outside, and the request's deadline bounds these.
        """
        answers: dict[int, T] = {}
        errors: dict[int, str] = {}
        failed: Engine | None = None
        useless = 0
        await self._look_at_given_up()
        while left := [at for at in range(len(texts)) if at not in answers and at not in errors]:
            part, alone, blamed = self._next(names, left)
            if blamed:
                errors |= blamed
                continue
            asked = [names[at] for at in part]
            words = [texts[at] for at in part]
            try:
                outcome = await self._attempt(words, call, asked, after=failed, alone=alone)
            except _Lost as lost:
                self._metrics.retries.inc()
                useless += lost.cause == "useless"
                if useless >= _MOST_USELESS or (lost.cause is None and failed is lost.engine):
                    raise lost.error from None
                failed = lost.engine
                if lost.cause in REASONS:
                    found = await self._died(asked, lost.cause, alone=alone)
                    errors |= {at: found[name] for at, name in zip(part, asked, strict=True) if name in found}
                    if alone and len(part) == 1 and not found and query is not None:
                        await self._check_query(query, call)
                continue
            answers.update(zip(part, outcome, strict=True))
            if query is not None:  # counting says nothing of what scoring does
                self._answered += len(part)
                if not self._quarantine.is_empty:
                    self._quarantine.answered(self._quarantine.digests(asked))
        return [answers.get(at) for at in range(len(texts))], errors

    def _next(self, names: Sequence[str], left: list[int]) -> tuple[list[int], bool, dict[int, str]]:
        """The places to ask next, whether without another call beside, and those not to be asked, with the
        reason."""
        quarantine = self._quarantine
        if quarantine.is_empty:  # the usual case: nothing to look up
            return left, False, {}
        now = time.time()
        digests = quarantine.digests(names[at] for at in left)
        known = [(at, quarantine.reason(digest, now)) for at, digest in zip(left, digests, strict=True)]
        if blamed := {at: why for at, why in known if why is not None}:
            return [], False, blamed
        following = quarantine.next_call(digests, now)
        return [left[at] for at in following.at], following.alone, {}

    async def _attempt(
        self,
        words: Sequence[str],
        call: Part[T],
        names: Sequence[str],
        *,
        after: Engine | None,
        alone: bool,
    ) -> Sequence[T]:
        """What `call` gets from an engine. Raises _Lost where the engine went or gave an error, and what
        keeps an engine from being ready."""
        supervisor = self._running().pick(after)
        async with supervisor.lease(after=after, alone=alone) as engine:
            begun = time.monotonic()
            try:
                work = call(engine, words)
                return await (self._impatiently(work) if alone else work)
            except asyncio.CancelledError:
                if (now := time.monotonic()) - begun > _SLOW_S:
                    self._given_up.append(_GivenUp(engine, tuple(names), alone, now))
                    del self._given_up[:-_MOST_GIVEN_UP]
                raise
            except InputTooLong:
                raise
            except EngineUnavailable as error:
                # The lease is kept until the engine is known to be dead: who gets it next would be suspected.
                cause = await supervisor.fate(engine)
                if isinstance(error.__cause__, _NOT_REACHED) and cause is not None:
                    cause = "killed"
                raise _Lost(engine, cause, error) from None
            except EngineError as error:
                failure = error
        cause = await supervisor.erred(engine, failure.message) or "errors"
        if cause == "errors" and reasons.says_memory(failure.message):
            cause = "memory"
        told = EngineError(
            f"The engine for {self._name} gave an error instead of scores. Its own words are in "
            f"rerankd's log and in {self._engine_log}. Try again; if it stays so, try another engine "
            "or a smaller model."
        )
        raise _Lost(engine, cause, told)

    async def _impatiently(self, work: Awaitable[T]) -> T:
        """Wait for a call that has the engine alone. One that takes long has the engine looked at sooner than
        the deadline would: it is known what to expect."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait([task], timeout=self._patience_s)
            if not task.done():
                self._running().suspect()
            return await task
        finally:
            task.cancel()

    async def _died(self, names: Sequence[str], fault: Fault, *, alone: bool) -> dict[str, str]:
        """An engine went with a call of these texts. Returns those not to be asked again, with the reason."""
        digests = self._quarantine.digests(names)
        found = self._quarantine.died(digests, fault, time.time(), alone=alone)
        for digest, reason in found.items():
            await self._remember(digest, "a text is not scored", reason, is_kept=fault != "memory")
        return {name: found[one] for name, one in zip(names, digests, strict=True) if one in found}

    async def _check_query(self, digest: str, call: Part[Any]) -> None:
        """Whether the query ends the engine beside a text that is known to work. Raises QueryRefused."""
        try:
            await self._attempt([self_test.RELEVANT[0]], call, (), after=None, alone=True)
        except _Lost as lost:
            if lost.cause not in REASONS or lost.cause == "memory":
                return
            reason = "the engine ends on this query whatever the text, so it is not asked for an hour"
            self._quarantine.blame(digest, reason, time.time() + TTL_S)
            await self._remember(digest, "a query is refused", reason)
            raise self._refused() from None

    async def _remember(self, digest: str, what: str, reason: str, *, is_kept: bool = True) -> None:
        _log.warning("%s: %s: %s (digest %s)", self._name, what, reason, digest)
        if is_kept:
            await asyncio.to_thread(self._learned.put, SECTION, digest, reason, TTL_S)

    async def _look_at_given_up(self) -> None:
        """Suspect the texts of calls that nobody waits for any more, where their engine went since."""
        now = time.monotonic()
        for one in tuple(self._given_up):
            cause = self._running().fate(one.engine)
            if cause is None and now - one.at < _REMEMBERED_S:
                continue
            self._given_up.remove(one)
            if cause in REASONS and cause != "memory":
                await self._died(one.names, cause, alone=one.alone)

    def _refused(self) -> QueryRefused:
        return QueryRefused(
            f"The engine for {self._name} ended twice on this query, beside different documents. The query "
            f"is not tried again for an hour, or until `rerankd reload {self._name}`. Change its text, and "
            f"see {self._engine_log} for the engine's last words."
        )
