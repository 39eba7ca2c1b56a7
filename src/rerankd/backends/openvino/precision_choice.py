"""Choose the precision (f32 or bf16) of a model on this machine once, and store the choice.

With a trial at each start, one start in 36 chose another precision than the others, and so returned other
scores. Therefore the first choice holds for all replicas and restarts. `rerankd doctor --remeasure` chooses
again.
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
# A failed trial is repeated after this time, because its cause (a busy machine, too little memory, a sandbox)
# may pass. Until then the precision, and so the scores, stay the same at each start.
_FAILED_TTL_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Subject:
    """A model whose precision is chosen, and its settings."""

    spec: EngineSpec
    options: OpenVinoOptions

    @property
    def key(self) -> str:
        """The key of the stored choice: the model and everything else the choice depends on. The number of
        threads is not part of it, because the trial measures CPU time."""
        here = (machine.cpu_name(), *sorted(machine.cpu_flags()), version())
        words = "\n".join((self.spec.fingerprint, self.options.weights, *here)).encode("utf-8", "replace")
        return f"{self.spec.path.name} {hashlib.blake2b(words, digest_size=8).hexdigest()}"


def version() -> str:
    """Return OpenVINO's version, or "" if it is not installed."""
    from importlib import metadata

    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("openvino")
    return ""


def known(subject: Subject, state: StateStore) -> Choice | None:
    """Return the choice if no trial is needed: from the settings, the CPU, or an earlier trial."""
    settled = precision.without_trial(subject.options.precision, machine.instructions())
    if settled is None and subject.spec.recipe.interaction is not None:
        return Choice("f32", "a MaxSim adds up the errors of many tokens, 0.01 in bf16")
    return settled or _kept(state.get(SECTION, subject.key))


async def choose(subject: Subject, state: StateStore, log: Path, timeout_s: float) -> Choice:
    """Choose the precision of a model. If no choice is stored, test bf16 in a separate process that writes to
    `log`. If the trial fails, choose float32, which is correct for every model."""
    found = await asyncio.to_thread(known, subject, state)
    if found is not None:
        return found
    _log.info("%s: testing once whether bf16 is faster on this CPU", subject.spec.path.name)
    made, ttl_s = await _try(subject, log, timeout_s)
    if ttl_s is not None:
        _log.warning("%s: using float32: %s", subject.spec.path.name, made.why)
    value = {
        **asdict(made),
        "model": str(subject.spec.path),
        "cpu": machine.cpu_name(),
        "openvino": version(),
    }
    # If two services choose at the same time, both use the choice that was stored first.
    first = await asyncio.to_thread(state.setdefault, SECTION, subject.key, value, ttl_s)
    return _kept(first) or made


async def _try(subject: Subject, log: Path, timeout_s: float) -> tuple[Choice, float | None]:
    """Run a trial. Returns the choice, and for how many seconds it is stored (None: without limit)."""
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
    why = said.get("error") or f"it exited with code {code}"
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
    """Parse a stored choice. Returns None if it is invalid, because users may edit the file."""
    with contextlib.suppress(TypeError, KeyError):
        if value["precision"] in ("f32", "bf16"):
            return Choice(value["precision"], str(value["why"]))
    return None
