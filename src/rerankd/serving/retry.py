"""Retry calls to engines: after a crash the items are sent again, in smaller calls until the text that
crashes the engine is found (see quarantine.py)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rerankd.backends.base import Batch, Engine, RawScores
from rerankd.errors import InputTooLong, QueryRefused, RerankdError, TextsRefused
from rerankd.metrics import Metrics
from rerankd.scoring import normalize, self_test
from rerankd.scoring.engine_input import Ids, Input, Question
from rerankd.scoring.inputs import Reader
from rerankd.serving import batch_vectors
from rerankd.serving.engine_call import EngineCaller, EngineLost, IsWanted, Part, Work, always
from rerankd.serving.quarantine import REASONS, TTL_S, Fault, Quarantine
from rerankd.serving.queue_scores import Answer
from rerankd.serving.replicas import Replicas
from rerankd.state import StateStore

_log = logging.getLogger("rerankd")

T = TypeVar("T")
U = TypeVar("U")
SECTION = "quarantine"
# With this many quarantined texts, and fewer than this many scored texts for each, the engine is at fault.
_MANY = 5
# After this many engines in a row that also failed on a known pair, the texts are not at fault.
_MOST_USELESS = 2
_TOO_LONG = "the engine reports that it is too long"
# How often a block is scored whose engine was lost, although no text of it crashes the engine alone.
_MOST_BLOCKS = 3
_NOT_TOGETHER = (
    "the engine fails on these documents together, although not on each alone; with a lower max_length fewer "
    "documents share a block"
)


class RetryingCaller:
    """Calls the engines of one model, with retries. `running` returns them, or raises EngineUnavailable.
    `reader` returns the model's Reader, `has_blocks` whether a score depends on its whole batch (the scope
    "block"). `out_of_memory` is called when an engine ran out of memory.
    `patience_s` is as in EngineCaller."""

    def __init__(
        self,
        name: str,
        fingerprint: str,
        running: Callable[[], Replicas],
        learned: StateStore,
        metrics: Metrics,
        *,
        reader: Callable[[], Awaitable[Reader]],
        has_blocks: Callable[[], bool],
        out_of_memory: Callable[[], object],
        log: Path,
        patience_s: float,
    ) -> None:
        self._name = name
        self._running = running
        self._reader = reader
        self._has_blocks = has_blocks
        self._out_of_memory = out_of_memory
        self._learned = learned
        self._metrics = metrics
        self._engine_log = log
        self._caller = EngineCaller(name, running, log, patience_s)
        self._quarantine = Quarantine(fingerprint)
        self._answered = 0
        for digest, entry in learned.entries(SECTION).items():
            self._quarantine.blame(digest, str(entry.value), entry.until or time.time() + TTL_S)

    async def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The token ids of each text, by the engine's tokenizer. Raises TextsRefused for texts that crash the
        engine."""
        return await self._tokenized(texts, lambda engine, part: engine.encode(part))

    async def ends(self, texts: Sequence[str]) -> list[Ids]:
        """The end positions of the tokens of each text. Raises TextsRefused for texts that crash the
        engine."""
        return await self._tokenized(texts, lambda engine, part: engine.ends(part))

    async def _tokenized(self, texts: Sequence[str], call: Part[str, Ids]) -> list[Ids]:
        answers, errors, _ = await self._each(Work(texts, [f"\1{text}" for text in texts]), call)
        if errors:
            raise TextsRefused(f"The engine for {self._name} failed twice on this text.", errors)
        return [answers[at] for at in range(len(texts))]

    async def score(self, inputs: Sequence[Input], is_wanted: IsWanted = always) -> Answer:
        """The raw score of each input. It is None if `errors` holds a reason, if `failures` holds the error
        of the whole request (QueryRefused: its query crashes the engine with any text), or if no client waits
        for it.

        The scores of a block depend on all of it. A call with a part of a block only finds the text that
        crashes the engine: its scores are dropped, and without an error the whole block is scored again.
        """
        if self._has_blocks() and (blamed := self._quarantined(inputs)):
            return Answer([None] * len(inputs), blamed)
        for _ in range(_MOST_BLOCKS):
            answer, is_whole = await self._scored(inputs, is_wanted)
            if is_whole or not self._has_blocks():
                return answer
            if answer.errors or answer.failures or not is_wanted(0):
                return replace(answer, values=[None] * len(inputs))
        return Answer([None] * len(inputs), dict.fromkeys(range(len(inputs)), _NOT_TOGETHER))

    def _quarantined(self, inputs: Sequence[Input]) -> dict[int, str]:
        """The quarantined inputs, by index, with the reason."""
        digests, now = self._quarantine.digests(one.name for one in inputs), time.time()
        reasons = [self._quarantine.reason(digest, now) for digest in digests]
        return {at: why for at, why in enumerate(reasons) if why is not None}

    async def _scored(self, inputs: Sequence[Input], is_wanted: IsWanted) -> tuple[Answer, bool]:
        """The answer, and whether one call has scored all inputs."""
        whole: list[RawScores] = []

        async def each(engine: Engine, part: Sequence[Input]) -> Sequence[tuple[Any, str | None]]:
            if any(one.question.embeds for one in part):
                found = await batch_vectors.answer(engine, part, each)
                self._running().answered(engine)
                return found
            answer = await engine.score(Batch(tuple(part)))
            normalize.check_complete(answer.values, answer.errors)
            self._running().answered(engine)
            whole.extend([answer] if len(part) == len(inputs) else ())
            return [(value, answer.errors.get(at)) for at, value in enumerate(answer.values)]

        names = [one.name for one in inputs]
        questions = [one.question.name for one in inputs]
        pairs, errors, failures = await self._each(Work(inputs, names, questions, is_wanted), each)
        errors |= {at: why for at, (_, why) in pairs.items() if why is not None}
        values = [pairs[at][0] if at in pairs else None for at in range(len(inputs))]
        return Answer(values, errors, failures, whole[-1].block if whole else None), bool(whole)

    def blames_engine(self) -> bool:
        """Whether an engine that crashed under load is itself at fault.

        It is at fault if it had no call, if no text explained an earlier crash, or if too many texts are
        quarantined in proportion to the scored ones: then the texts can't be the cause, and the quarantine is
        cleared.
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
        """Clear the quarantine."""
        for digest in self._quarantine.clear():
            self._learned.remove(SECTION, digest)

    async def _each(
        self, work: Work[U], call: Part[U, T]
    ) -> tuple[dict[int, T], dict[int, str], dict[int, RerankdError]]:
        """By index: the answers, the reasons for missing ones, and the errors that fail a whole request.

        The loop ends: after each loss, the calls of suspects get smaller or a suspect is quarantined. A loss
        with no suspect has an external cause, and the deadlines of the waiting requests bound the retries.
        """
        answers: dict[int, T] = {}
        errors: dict[int, str] = {}
        failures: dict[int, RerankdError] = {}
        failed: Engine | None = None
        checked: set[str] = set()
        useless, most = 0, len(work.items)
        await self._suspect_abandoned()
        left = list(range(most))
        while left := [
            at
            for at in left
            if at not in answers and at not in errors and at not in failures and work.is_wanted(at)
        ]:
            part, alone, blamed, refused = self._next(work, left)
            if blamed or refused:
                errors |= blamed
                failures |= {at: self._refused() for at in refused}
                continue
            del part[most:]
            try:
                outcome = await self._caller.call_once(work, part, call, after=failed, alone=alone)
            except InputTooLong:
                if len(part) == 1:
                    errors[part[0]] = _TOO_LONG
                most = 1
                continue
            except EngineLost as lost:
                self._metrics.retries.inc()
                useless += lost.cause == "useless"
                if useless >= _MOST_USELESS or (lost.cause is None and failed is lost.engine):
                    raise lost.error from None
                failed = lost.engine
                if lost.cause == "memory":
                    self._out_of_memory()
                if lost.cause in REASONS:
                    names = work.keys_of(part)
                    found = await self._engine_lost(names, lost.cause, alone=alone)
                    errors |= {at: found[name] for at, name in zip(part, names, strict=True) if name in found}
                    if alone and work.query_keys:
                        for at in part:
                            if work.query_keys[at] not in checked:
                                checked.add(work.query_keys[at])
                                await self._check_query(work, at)
                continue
            answers.update(zip(part, outcome, strict=True))
            if work.query_keys:  # a tokenized text may still crash scoring
                self._answered += len(part)
                if not self._quarantine.is_empty:
                    self._quarantine.scored(self._quarantine.digests(work.keys_of(part)))
        return answers, errors, failures

    def _next(
        self, work: Work[U], left: list[int]
    ) -> tuple[list[int], bool, dict[int, str], tuple[int, ...]]:
        """The indexes of the next call, whether it is exclusive, the quarantined items with the reason, and
        the indexes whose query is quarantined."""
        quarantine = self._quarantine
        if quarantine.is_empty:  # the usual case
            return [*left], False, {}, ()
        now = time.time()
        if work.query_keys:
            digests = quarantine.digests(work.query_keys[at] for at in left)
            reasons = [quarantine.reason(digest, now) for digest in digests]
            if refused := tuple(at for at, why in zip(left, reasons, strict=True) if why is not None):
                return [], False, {}, refused
        digests = quarantine.digests(work.keys_of(left))
        known = [(at, quarantine.reason(digest, now)) for at, digest in zip(left, digests, strict=True)]
        if blamed := {at: why for at, why in known if why is not None}:
            return [], False, blamed, ()
        following = quarantine.next_call(digests, now)
        return [left[at] for at in following.at], following.alone, {}, ()

    async def _engine_lost(self, names: Sequence[str], fault: Fault, *, alone: bool) -> dict[str, str]:
        """An engine was lost during a call with these texts. Returns the texts that are now quarantined, with
        the reason."""
        digests = self._quarantine.digests(names)
        found = self._quarantine.engine_lost(digests, fault, time.time(), alone=alone)
        for digest, reason in found.items():
            await self._remember(digest, "a text is not scored", reason, is_kept=fault != "memory")
        return {name: found[one] for name, one in zip(names, digests, strict=True) if one in found}

    async def _check_query(self, work: Work[Any], at: int) -> None:
        """Check whether the query of an input also crashes the engine with a text that is known to work. If
        so, the query is quarantined."""
        (digest,) = self._quarantine.digests([work.query_keys[at]])
        if self._quarantine.reason(digest, time.time()) is not None:  # another batch has already checked
            return
        question: Question = work.items[at].question
        reader = await self._reader()
        texts = self_test.RELEVANT[:1]  # known to work
        known = Work(await reader.plain(question.content, texts, question.instruction), [""])
        try:
            await self._caller.call_once(known, [0], _score, after=None, alone=True)
        except EngineLost as lost:
            if lost.cause not in REASONS or lost.cause == "memory":
                return
            reason = "the engine fails on this query with any document, so it is not retried for an hour"
            self._quarantine.blame(digest, reason, time.time() + TTL_S)
            await self._remember(digest, "a query is refused", reason)

    async def _remember(self, digest: str, what: str, reason: str, *, is_kept: bool = True) -> None:
        _log.warning("%s: %s: %s (digest %s)", self._name, what, reason, digest)
        if is_kept:
            await asyncio.to_thread(self._learned.put, SECTION, digest, reason, TTL_S)

    async def _suspect_abandoned(self) -> None:
        """Suspect the texts of abandoned calls whose engine was lost afterwards."""
        for one, cause in self._caller.lost_since():
            if cause in REASONS and cause != "memory":
                await self._engine_lost(one.names, cause, alone=one.alone)

    def _refused(self) -> QueryRefused:
        return QueryRefused(
            f"The engine for {self._name} failed twice on this query, with different documents. The query "
            f"is not retried for an hour, or until `rerankd reload {self._name}`. Change its text, and "
            f"see {self._engine_log} for the engine's last output."
        )


async def _score(engine: Engine, inputs: Sequence[Input]) -> Sequence[float | None]:
    return (await engine.score(Batch(tuple(inputs)))).values
