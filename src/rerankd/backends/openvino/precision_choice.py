"""The precision that a model is computed in on this machine, chosen once and kept.

A trial at each start gave one start in 36 another precision than the others, and so other scores. Now all
replicas get what was chosen first, also after a restart; `rerankd doctor --remeasure` chooses again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerankd import machine
from rerankd.backends.base import EngineSpec
from rerankd.backends.openvino import precision
from rerankd.backends.openvino.options import OpenVinoOptions
from rerankd.backends.openvino.precision import Choice, Trial
from rerankd.process.child import Child

if TYPE_CHECKING:
    from rerankd.state import StateStore


_log = logging.getLogger("rerankd.engine")

SECTION = "precision"
# What made a trial fail (a busy machine, too little memory, a sandbox) passes; the model does not change its
# scores with each start meanwhile.
_FAILED_TTL_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that a precision is chosen for, and how it will run."""

    spec: EngineSpec
    options: OpenVinoOptions

    @property
    def key(self) -> str:
        """What its choice is kept under, with all that it depends on beside the model. Threads are not among
        it, since the trial measures CPU time."""
        here = (machine.cpu_name(), *sorted(machine.cpu_flags()), version())
        words = "\n".join((self.spec.fingerprint, self.options.weights, *here)).encode("utf-8", "replace")
        return f"{self.spec.path.name} {hashlib.blake2b(words, digest_size=8).hexdigest()}"


def version() -> str:
    """OpenVINO's version; "" where it is not installed."""
    from importlib import metadata

    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("openvino")
    return ""


def known(subject: Subject, state: StateStore) -> Choice | None:
    """What is settled without a trial: by the settings, by the CPU, or by an earlier trial."""
    settled = precision.without_trial(subject.options.precision, machine.instructions())
    return settled or _kept(state.get(SECTION, subject.key))


async def choose(subject: Subject, state: StateStore, log: Path, timeout_s: float) -> Choice:
    """The precision of a model. Tries bf16 where nothing is known yet, in a process of its own that writes to
    `log`; where that fails, it is float32, which is right for every model."""
    found = await asyncio.to_thread(known, subject, state)
    if found is not None:
        return found
    _log.info("%s: trying whether bf16 is faster here and keeps the order, once", subject.spec.path.name)
    made, ttl_s = await _try(subject, log, timeout_s)
    if ttl_s is not None:
        _log.warning("%s: it is computed in float32: %s", subject.spec.path.name, made.why)
    value = {
        **asdict(made),
        "model": str(subject.spec.path),
        "cpu": machine.cpu_name(),
        "openvino": version(),
    }
    # Of two services that chose at the same time, both take what was kept first.
    first = await asyncio.to_thread(state.setdefault, SECTION, subject.key, value, ttl_s)
    return _kept(first) or made


async def _try(subject: Subject, log: Path, timeout_s: float) -> tuple[Choice, float | None]:
    """What a trial tells, and for how many seconds that counts; None: for good."""
    child = await Child.start(_argv(subject), log)
    try:
        async with asyncio.timeout(timeout_s):
            code = await child.wait()
    except TimeoutError:
        return Choice("f32", f"a trial of bf16 did not end within {timeout_s:g} s"), _FAILED_TTL_S
    finally:
        await child.stop(0)
    said = _last_object(child.lines())
    if "ratio" in said:
        return precision.after(Trial(said["ratio"], said["gap"]), machine.instructions()), None
    why = said.get("error") or f"it ended with {code}"
    return Choice("f32", f"a trial of bf16 failed: {why}"), _FAILED_TTL_S


def _argv(subject: Subject) -> Sequence[str]:
    return [
        sys.executable, "-P", "-m", "rerankd.backends.openvino.trial",
        "--model", str(subject.spec.path),
        "--scoring", json.dumps(asdict(subject.spec.recipe)),
        "--threads", str(subject.spec.threads),
        "--weights", subject.options.weights,
    ]  # fmt: skip


def _last_object(lines: Sequence[str]) -> dict[str, Any]:
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            said = json.loads(line)
            if isinstance(said, dict):
                return said
    return {}


def _kept(value: Any) -> Choice | None:
    """A kept choice; None for what is no such thing, since anybody may edit the file."""
    with contextlib.suppress(TypeError, KeyError):
        if value["precision"] in ("f32", "bf16"):
            return Choice(value["precision"], str(value["why"]))
    return None
