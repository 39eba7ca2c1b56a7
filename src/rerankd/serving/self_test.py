"""The self-test of a model's engines: on known pairs, then beside a second computation of the same file."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from rerankd.backends.base import Batch, Engine, Offer, RawScores, Scope
from rerankd.domain import Refusal
from rerankd.errors import ModelFileError
from rerankd.hub import builtin
from rerankd.scoring import normalize, self_test
from rerankd.serving import second_engine
from rerankd.serving.prepare import Model
from rerankd.state import StateStore

_log = logging.getLogger("rerankd")


class SelfTest:
    """What the engines of one model are checked by before anyone gets a score of them.

    `doubts` are the sentences that every answer carries, `passed` is what the second computation found, and
    `again` has it made anew whatever is kept. `socket` gives a path for the second engine's, `log` is the
    engine's log.
    """

    def __init__(self, model: Model, learned: StateStore, socket: Callable[[], Path], log: Path) -> None:
        self.doubts: tuple[str, ...] = ()
        self.passed: second_engine.Passed | None = None
        self.again = False
        self._model = model
        self._learned = learned
        self._socket = socket
        self._log = log.with_name(f"{log.stem}-self-test.log")
        self._testing = asyncio.Lock()

    async def probe(self, engine: Engine) -> None:
        """Score one pair that is known to work. Raises EngineError."""
        answer = await self._ask(engine, self_test.TEXTS[:1])
        normalize.check_complete(answer.values, answer.errors)

    async def check(self, engine: Engine, running: Offer, computes: str, *, is_safer: bool) -> None:
        """Check an engine that runs so, and whose values depend on `computes`. Raises Unscorable where it
        fails, unless forced."""
        model = self._model
        scope = running.capabilities.scope
        orders = self_test.ARRANGEMENTS if scope == "pair" else self_test.OF_BLOCKS
        runs = [await self._ask(engine, [self_test.TEXTS[at] for at in order], scope) for order in orders]
        refusal, doubts = self_test.check([run.values for run in runs], model.scoring.normalization)
        for text in (*doubts, *([refusal.reason] if refusal is not None else ())):
            _log.warning("%s: %s.", model.name, text)
        self.doubts = self._unless_forced(refusal, "the check at load")
        # The built-in file is checked by its checksum; what runs with safer settings is known to fail with
        # others; and what a program of the user's computes is compared when it is asked for.
        is_exempt = model.wanted.ref == builtin.NAME or is_safer or running.is_own_program
        other = second_engine.second(model, running)
        if other is not None and (self.again or not is_exempt):
            await self._compare(runs[0].values, other, second_engine.key(model, computes, other))

    async def _ask(self, engine: Engine, texts: Sequence[str], scope: Scope = "pair") -> RawScores:
        return await engine.score(Batch.of(scope, self_test.QUERY, texts, self._model.scoring.instruction))

    async def _compare(self, values: Sequence[float | None], other: Offer, key: str) -> None:
        async with self._testing:
            self.passed = None if self.again else second_engine.kept(self._learned, key)
            if self.passed is None:
                try:
                    found = await second_engine.run(self._model, values, other, self._socket(), self._log)
                except ModelFileError as error:
                    self.doubts += (f"{other.title} says that this model's file is damaged: {error}.",)
                    _log.warning("%s: %s", self._model.name, self.doubts[-1])
                    return
                if found is None:
                    return
                self.passed = await asyncio.to_thread(
                    second_engine.keep, self._learned, key, self._model, other, found
                )
            self.again = False
        if self.passed.comparison.passed:
            return
        refusal = Refusal(f"it {self.passed.words}", self_test.OTHER_ENGINE)
        _log.warning("%s: %s.", self._model.name, refusal.reason)
        is_fatal = self.passed.comparison.is_fatal
        self.doubts += self._unless_forced(refusal, "the self-test by a second engine", is_fatal=is_fatal)

    def _unless_forced(
        self, refusal: Refusal | None, check: str, *, is_fatal: bool = True
    ) -> tuple[str, ...]:
        """What a failed check adds to every answer. Raises Unscorable where it is fatal, unless forced."""
        if refusal is None:
            return ()
        if is_fatal and not self._model.wanted.force:
            raise refusal.error(f"{self._model.path.name} loads, but its scores can't be trusted")
        return (f"This model failed {check}: {refusal.reason}.",)
