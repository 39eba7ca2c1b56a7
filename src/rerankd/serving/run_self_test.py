"""The self-test of a model's engines: on known pairs, then beside a second computation of the same file.

A check by one engine alone (see scoring/self_test.py) does not see that a tokenizer or an activation is
another one than the model's, since all its values are wrong alike. Where a backend offers a second
computation of the same file, both score the same pairs, once for a file and the engines' builds, and only
where both have room in memory. Another backend's comes first, then the same backend's in its most exact
arithmetic.
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
    """What a self-test found. `at` is in seconds since 1970."""

    against: str
    comparison: Comparison
    at: float

    @property
    def words(self) -> str:
        """For a person."""
        day = time.strftime("%Y-%m-%d", time.localtime(self.at))
        said = "agrees with" if self.comparison.passed else "DIFFERS from"
        apart, tolerance = self.comparison.apart, self.comparison.tolerance
        return f"{said} {self.against} (scores {apart:.2g} apart, {tolerance:g} allowed; {day})"


def second_computation(model: Model, running: Offer) -> Offer | None:
    """A second computation of the model that runs so; None where there is none."""
    others = [backend for backend in BACKENDS if backend is not running.backend]
    for backend in (*others, running.backend):
        offer = backend.reference(model.spec, running)
        if offer is not None and offer.capabilities.scope == running.capabilities.scope:
            return offer
    return None


def key(model: Model, computes: str, other: Offer) -> str:
    """What a result is kept under: the file, and the builds of both engines."""
    words = "\n".join((model.fingerprint, repr(model.recipe), computes, other.title))
    return f"{model.path.name} {hashlib.blake2b(words.encode('utf-8', 'replace'), digest_size=8).hexdigest()}"


def stored(state: StateStore, key: str) -> Result | None:
    """An earlier result; None where there is none."""
    entry = state.entries(SECTION).get(key)
    return _read(entry) if entry is not None else None


def stored_of_file(state: StateStore, path: Path, fingerprint: str) -> list[Result]:
    """All that is kept of a file as it is now."""
    return [
        passed
        for entry in state.entries(SECTION).values()
        if (passed := _read(entry)) is not None
        and entry.value.get("model") == str(path)
        and entry.value.get("fingerprint") == fingerprint
    ]


def _read(entry: Entry) -> Result | None:
    """What was kept; None for what is no such thing."""
    with contextlib.suppress(TypeError, KeyError):
        numbers = (float(entry.value[name]) for name in ("apart", "tolerance", "disagreement"))
        return Result(str(entry.value["against"]), Comparison(*numbers), entry.at)
    return None


async def run(
    model: Model,
    values: Sequence[float | None],
    other: Offer,
    vocabulary: ModelVocabulary,
    socket: Path,
    log: Path,
) -> Comparison | None:
    """Have the other engine score the pairs of the check at load, whose raw values are `values`. None where
    it has no room, or can't. Raises ModelFileError where it says that the file is damaged."""
    available = machine.available_bytes()
    if available is not None and available < other.memory_bytes:
        _log.info("%s: no room for a second engine, so no self-test by one", model.name)
        return None
    try:
        found = await _scores(other, vocabulary, socket, log)
    except ModelFileError:
        raise
    except (RerankdError, TimeoutError) as error:
        _log.info("%s: %s can't make the self-test: %r", model.name, other.title, error)
        return None
    return self_test.compare(values, found, model.recipe.normalization, model.metadata.quantisation)


async def ask(engine: Engine, running: Offer, vocabulary: ModelVocabulary, texts: Sequence[str]) -> RawScores:
    """The raw values of texts beside the query of the check at load, by an engine that runs so. Raises
    EngineError, and ModelFileError where the vocabulary can't be read."""
    tokenizer = engine if running.capabilities.tokenizes else await vocabulary.tokenizer()
    reader = model_tokenizer.reader(running, tokenizer)
    return await engine.score(Batch(tuple(await reader.plain(self_test.QUERY, texts))))


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
                    raise TimeoutError(f"it ended with {child.exit_code}")
                await asyncio.sleep(_POLL_S)
            await engine.prepare()
            return list((await ask(engine, other, vocabulary, self_test.TEXTS)).values)
    finally:
        await child.stop(0)
        await engine.close()
        socket.unlink(missing_ok=True)


def store(state: StateStore, key: str, model: Model, other: Offer, found: Comparison) -> Result:
    """Remember a result."""
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
    """What the engines of one model are checked by before anyone gets a score of them.

    `doubts` are the sentences that every answer carries, `passed` is what the second computation found, and
    `again` has it made anew whatever is kept. `socket` gives a path for the second engine's, `log` is the
    engine's log, `vocabulary` the model's.
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
        """Score one pair that is known to work. Raises EngineError."""
        answer = await ask(engine, running, self._vocabulary, self_test.TEXTS[:1])
        normalize.check_complete(answer.values, answer.errors)

    async def check(self, engine: Engine, running: Offer, computes: str, *, is_safer: bool) -> None:
        """Check an engine that runs so, and whose values depend on `computes`. Raises Unscorable where it
        fails, unless forced."""
        model = self._model
        is_alone = running.capabilities.scope == "pair"
        orders = self_test.ARRANGEMENTS if is_alone else self_test.OF_BLOCKS
        texts = [[self_test.TEXTS[at] for at in order] for order in orders]
        runs = [await ask(engine, running, self._vocabulary, each) for each in texts]
        refusal, doubts = self_test.check([run.values for run in runs], model.recipe.normalization)
        for text in (*doubts, *([refusal.reason] if refusal is not None else ())):
            _log.warning("%s: %s.", model.name, text)
        self.doubts = self._unless_forced(refusal, "the check at load")
        # The built-in file is checked by its checksum; what runs with safer settings is known to fail with
        # others; and what a program of the user's computes is compared when it is asked for.
        is_exempt = model.wanted.ref == builtin.NAME or is_safer or running.is_own_program
        if (self.again or not is_exempt) and (other := second_computation(model, running)) is not None:
            await self._compare(runs[0].values, other, key(model, computes, other))

    async def _compare(self, values: Sequence[float | None], other: Offer, key: str) -> None:
        async with self._testing:
            self.passed = None if self.again else stored(self._learned, key)
            if self.passed is None:
                try:
                    found = await run(self._model, values, other, self._vocabulary, self._socket(), self._log)
                except ModelFileError as error:
                    self.doubts += (f"{other.title} says that this model's file is damaged: {error}.",)
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
