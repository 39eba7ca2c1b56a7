"""The self-test by a second computation: another engine scores the same pairs.

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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rerankd import machine
from rerankd.backends.base import Batch, Offer
from rerankd.backends.table import BACKENDS
from rerankd.errors import ModelFileError, RerankdError
from rerankd.process.child import Child
from rerankd.process.reasons import DAMAGED_FILE
from rerankd.scoring import self_test
from rerankd.scoring.self_test import Comparison
from rerankd.serving.prepare import Model
from rerankd.state import StateStore

_log = logging.getLogger("rerankd")

SECTION = "self_test"
_TIMEOUT_S = 120.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Passed:
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


def second(model: Model, running: Offer) -> Offer | None:
    """A second computation of the model that runs so; None where there is none."""
    others = [backend for backend in BACKENDS if backend is not running.backend]
    for backend in (*others, running.backend):
        offer = backend.reference(model.spec, running)
        if offer is not None and offer.capabilities.scope == running.capabilities.scope:
            return offer
    return None


def key(model: Model, computes: str, other: Offer) -> str:
    """What a result is kept under: the file, and the builds of both engines."""
    words = "\n".join((model.fingerprint, repr(model.scoring), computes, other.title))
    return f"{model.path.name} {hashlib.blake2b(words.encode('utf-8', 'replace'), digest_size=8).hexdigest()}"


def kept(state: StateStore, key: str) -> Passed | None:
    """An earlier result; None for none, and for what is no such thing."""
    entry = state.entries(SECTION).get(key)
    with contextlib.suppress(TypeError, KeyError):
        if entry is not None:
            numbers = (float(entry.value[name]) for name in ("apart", "tolerance", "disagreement"))
            return Passed(str(entry.value["against"]), Comparison(*numbers), entry.at)
    return None


def of_file(state: StateStore, path: Path, fingerprint: str) -> list[Passed]:
    """All that is kept of a file as it is now."""
    found = []
    for key, entry in state.entries(SECTION).items():
        value = entry.value if isinstance(entry.value, dict) else {}
        if value.get("model") == str(path) and value.get("fingerprint") == fingerprint:
            found += [one for one in (kept(state, key),) if one is not None]
    return found


async def run(
    model: Model, values: Sequence[float | None], other: Offer, socket: Path, log: Path
) -> Comparison | None:
    """Have the other engine score the pairs of the check at load, whose raw values are `values`. None where
    it has no room, or can't. Raises ModelFileError where it says that the file is damaged."""
    available = machine.available_bytes()
    if available is not None and available < other.memory_bytes:
        _log.info("%s: no room for a second engine, so no self-test by one", model.name)
        return None
    try:
        found = await _scores(other, socket, log)
    except ModelFileError:
        raise
    except (RerankdError, TimeoutError) as error:
        _log.info("%s: %s can't make the self-test: %r", model.name, other.title, error)
        return None
    return self_test.compare(values, found, model.scoring.normalization, model.facts.quantisation)


async def _scores(other: Offer, socket: Path, log: Path) -> list[float | None]:
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
            scope, instruction = other.capabilities.scope, other.spec.scoring.instruction
            answer = await engine.score(Batch.of(scope, self_test.QUERY, self_test.TEXTS, instruction))
            return list(answer.values)
    finally:
        await child.stop(0)
        await engine.close()
        socket.unlink(missing_ok=True)


def keep(state: StateStore, key: str, model: Model, other: Offer, found: Comparison) -> Passed:
    """Remember a result."""
    value: dict[str, Any] = {
        "passed": found.passed,
        "against": other.title,
        **asdict(found),
        "model": str(model.path),
        "fingerprint": model.fingerprint,
    }
    state.put(SECTION, key, value)
    return Passed(other.title, found, time.time())
