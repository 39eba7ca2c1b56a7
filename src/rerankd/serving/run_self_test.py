"""Run the self-test of a model's engine: on known pairs, then against a second engine with the same file.

A check of one engine (see scoring/self_test.py) does not detect a wrong tokenizer or activation function:
such a fault makes all scores wrong in the same way. So if a backend offers a second computation of the same
file, both score the same pairs. Another backend is preferred; then the same backend with its most exact
arithmetic. The comparison is made once for each file and pair of engine builds, and only if memory suffices
for both.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rerankd import machine
from rerankd.backends.base import Batch, Engine, Offer, RawScores
from rerankd.backends.table import BACKENDS
from rerankd.domain import Refusal
from rerankd.errors import ModelFileError, RerankdError
from rerankd.hub import builtin
from rerankd.normalization import Normalization
from rerankd.process.child import Child
from rerankd.process.failure_reasons import DAMAGED_FILE
from rerankd.scoring import normalize, self_test
from rerankd.scoring.self_test import Comparison
from rerankd.serving import model_tokenizer
from rerankd.serving.model_tokenizer import ModelVocabulary
from rerankd.serving.prepare_model import Model
from rerankd.state import Entry, StateStore

_log = logging.getLogger("rerankd")

SECTION = "self_test"
_TIMEOUT_S = 120.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a comparison with a second engine. `at` is in seconds since 1970."""

    against: str
    comparison: Comparison
    at: float

    @property
    def words(self) -> str:
        """The result in words."""
        day = time.strftime("%Y-%m-%d", time.localtime(self.at))
        how = "agrees with" if self.comparison.passed else "differs from"
        apart, tolerance = self.comparison.apart, self.comparison.tolerance
        return f"{how} {self.against} (scores differ by {apart:.2g}, tolerance {tolerance:g}; {day})"


def second_computation(model: Model, running: Offer) -> Offer | None:
    """A second computation of a model that runs as in `running`; None if there is none."""
    others = [backend for backend in BACKENDS if backend is not running.backend]
    for backend in (*others, running.backend):
        offer = backend.reference(model.spec, running)
        if offer is not None and offer.capabilities.scope == running.capabilities.scope:
            return offer
    return None


def key(model: Model, computes: str, other: Offer) -> str:
    """The key of a stored result: the file, and the builds of both engines."""
    words = "\n".join((model.fingerprint, repr(model.recipe), computes, other.title))
    return f"{model.path.name} {hashlib.blake2b(words.encode('utf-8', 'replace'), digest_size=8).hexdigest()}"


def stored(state: StateStore, key: str) -> Result | None:
    """A stored result; None if there is none."""
    entry = state.entries(SECTION).get(key)
    return _read(entry) if entry is not None else None


def stored_of_file(state: StateStore, path: Path, fingerprint: str) -> list[Result]:
    """All stored results of a file in its present state."""
    return [
        passed
        for entry in state.entries(SECTION).values()
        if (passed := _read(entry)) is not None
        and entry.value.get("model") == str(path)
        and entry.value.get("fingerprint") == fingerprint
    ]


def _read(entry: Entry) -> Result | None:
    """A stored result; None if the entry has another form."""
    with contextlib.suppress(TypeError, KeyError):
        numbers = (float(entry.value[name]) for name in ("apart", "tolerance", "disagreement"))
        return Result(str(entry.value["against"]), Comparison(*numbers), entry.at)
    return None


@dataclass(frozen=True, slots=True)
class Answer:
    """Raw scores for the query of the self-test, and the normalization for that query."""

    scores: RawScores
    normalization: Normalization


async def run(
    model: Model,
    answer: Answer,
    other: Offer,
    vocabulary: ModelVocabulary,
    socket: Path,
    log: Path,
    rounds_to: str,
) -> Comparison | None:
    """Have the other engine score the pairs of the self-test, whose scores are `answer`, from an engine that
    rounds weights to a type (see Offer). Returns None if it
    lacks memory or fails. Raises ModelFileError if it reports that the file is damaged."""
    available = machine.available_bytes()
    if available is not None and available < other.memory_bytes:
        _log.info("%s: not enough memory for a second engine; the comparison is skipped", model.name)
        return None
    try:
        found = await _scores(other, vocabulary, socket, log)
    except ModelFileError:
        raise
    except (RerankdError, TimeoutError) as error:
        _log.info("%s: the comparison with %s failed: %r", model.name, other.title, error)
        return None
    kinds = (model.metadata.quantisation, *([rounds_to] if rounds_to else []))
    return self_test.compare(answer.scores.values, found, answer.normalization, *kinds)


async def ask(engine: Engine, running: Offer, vocabulary: ModelVocabulary, texts: Sequence[str]) -> Answer:
    """The scores of texts for the query of the self-test, from an engine that runs as in `running`.
    Raises EngineError, and ModelFileError if the vocabulary can't be read."""
    tokenizer = engine if running.capabilities.tokenizes else await vocabulary.tokenizer()
    reader = model_tokenizer.reader(running, tokenizer)
    inputs = tuple(await reader.plain(self_test.QUERY, texts))
    normalization = reader.recipe.normalization_for(len(inputs[0].question.ids))
    return Answer(await engine.score(Batch(inputs)), normalization)


async def _scores(other: Offer, vocabulary: ModelVocabulary, socket: Path, log: Path) -> list[float | None]:
    launch = other.backend.launch(other, (), (), socket)
    child = await Child.start(launch.argv, log, {**launch.environment, **os.environ})
    engine = launch.connect(socket)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            while not await engine.is_ready():
                if child.exit_code == DAMAGED_FILE:
                    await child.wait()
                    raise ModelFileError(child.lines()[-1].removeprefix("error: ").rstrip("."))
                if child.exit_code is not None:
                    raise TimeoutError(f"it exited with code {child.exit_code}")
                await asyncio.sleep(_POLL_S)
            await engine.prepare()
            return list((await ask(engine, other, vocabulary, self_test.TEXTS)).scores.values)
    finally:
        await child.stop(0)
        await engine.close()
        socket.unlink(missing_ok=True)


def store(state: StateStore, key: str, model: Model, other: Offer, found: Comparison) -> Result:
    """Store a result."""
    value: dict[str, Any] = {
        "passed": found.passed,
        "against": other.title,
        **asdict(found),
        "model": str(model.path),
        "fingerprint": model.fingerprint,
    }
    state.put(SECTION, key, value)
    return Result(other.title, found, time.time())


class SelfTest:
    """The self-test of one model's engines, which runs before they serve requests.

    `doubts` are warnings for each response, `passed` is the result of the comparison, and `again` forces a
    new comparison whatever is stored. `socket` returns a path for the second engine's socket, `log` is the
    engine's log, `vocabulary` that of the model.
    """

    def __init__(
        self,
        model: Model,
        vocabulary: ModelVocabulary,
        learned: StateStore,
        socket: Callable[[], Path],
        log: Path,
    ) -> None:
        self.doubts: tuple[str, ...] = ()
        self.passed: Result | None = None
        self.again = False
        self._model = model
        self._vocabulary = vocabulary
        self._learned = learned
        self._socket = socket
        self._log = log.with_name(f"{log.stem}-self-test.log")
        self._testing = asyncio.Lock()

    async def probe(self, engine: Engine, running: Offer) -> None:
        """Score one known pair. Raises EngineError."""
        answer = (await ask(engine, running, self._vocabulary, self_test.TEXTS[:1])).scores
        normalize.check_complete(answer.values, answer.errors)

    async def check(self, engine: Engine, running: Offer, computes: str, *, is_safer: bool) -> None:
        """Check an engine that runs as in `running` and whose scores depend on `computes`. Raises Unscorable
        if it fails, unless forced."""
        model = self._model
        is_alone = running.capabilities.scope == "pair"
        orders = self_test.ARRANGEMENTS if is_alone else self_test.OF_BLOCKS
        texts = [[self_test.TEXTS[at] for at in order] for order in orders]
        engine.uses_kept = False  # each arrangement is computed
        try:
            runs = [await ask(engine, running, self._vocabulary, each) for each in texts]
        finally:
            engine.uses_kept = True
        refusal, doubts = self_test.check([run.scores.values for run in runs], runs[0].normalization)
        for text in (*doubts, *([refusal.reason] if refusal is not None else ())):
            _log.warning("%s: %s.", model.name, text)
        self.doubts = self._unless_forced(refusal, "the self-test")
        # The built-in model is verified by its checksum. An engine with safer settings is known to fail with
        # others. A program that the user configured is compared only on request.
        is_exempt = model.wanted.ref == builtin.NAME or is_safer or running.is_own_program
        if (self.again or not is_exempt) and (other := second_computation(model, running)) is not None:
            await self._compare(runs[0], other, key(model, computes, other), running.rounds_to)

    async def _compare(self, answer: Answer, other: Offer, key: str, rounds_to: str) -> None:
        async with self._testing:
            self.passed = None if self.again else stored(self._learned, key)
            if self.passed is None:
                try:
                    found = await run(
                        self._model, answer, other, self._vocabulary, self._socket(), self._log, rounds_to
                    )
                except ModelFileError as error:
                    self.doubts += (f"{other.title} reports that this model's file is damaged: {error}.",)
                    _log.warning("%s: %s", self._model.name, self.doubts[-1])
                    return
                if found is None:
                    return
                self.passed = await asyncio.to_thread(store, self._learned, key, self._model, other, found)
            self.again = False
        if self.passed.comparison.passed:
            return
        refusal = Refusal(f"it {self.passed.words}", self_test.OTHER_ENGINE)
        _log.warning("%s: %s.", self._model.name, refusal.reason)
        is_fatal = self.passed.comparison.is_fatal
        self.doubts += self._unless_forced(refusal, "the comparison with a second engine", is_fatal=is_fatal)

    def _unless_forced(
        self, refusal: Refusal | None, check: str, *, is_fatal: bool = True
    ) -> tuple[str, ...]:
        """The warning that a failed check adds to each response. Raises Unscorable if it is fatal, unless
        forced."""
        if refusal is None:
            return ()
        if is_fatal and not self._model.wanted.force:
            raise refusal.error(f"{self._model.path.name} loads, but its scores can't be trusted")
        return (f"This model failed {check}: {refusal.reason}.",)
