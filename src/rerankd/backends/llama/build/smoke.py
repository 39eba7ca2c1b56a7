"""The smoke test of an engine: does it start, load a quantised model, and compute correct scores?

A build for all instructions of a CPU can be broken on that very CPU: `--version` and loading a file succeed,
but the first matrix product with quantised weights crashes or returns a wrong result. So the test scores a
tiny quantised model through the same child process, flags and client that serve requests.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rerankd.backends.base import EngineSpec
from rerankd.backends.llama import completion, launch
from rerankd.backends.llama.build import tiny
from rerankd.backends.llama.client import LlamaClient
from rerankd.domain import Recipe
from rerankd.errors import EngineError
from rerankd.normalization import Normalization
from rerankd.process import rundir
from rerankd.process.child import Child

START_TIMEOUT_S = 120.0
_POLL_S = 0.05
_STOP_S = 5.0
_QUOTED_LINES = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a smoke test; `text` describes it. `signal` is the one that terminated the program, if
    any. `error` is the largest difference from the known scores, None if the engine returned none."""

    passed: bool
    text: str
    signal: int | None = None
    error: float | None = None


def run(program: Sequence[str], log: Path, *, gpu_layers: int = 0) -> Outcome:
    """Test a program; its output goes to `log`. Blocks for a second or two. Raises DataFolderError if no
    folder can hold the model and the socket."""
    folder = rundir.make()
    try:
        model = folder.make() / "tiny.gguf"
        tiny.write(model)
        return asyncio.run(_run(program, model, folder.socket(), log, gpu_layers))
    finally:
        folder.remove()


def compare(found: Sequence[float]) -> Outcome:
    """(pure) Compare an engine's scores with the known ones."""
    error = max(abs(one - known) for one, known in zip(found, tiny.ANSWERS, strict=True))
    shown = ", ".join(f"{value:.3f}" for value in found)
    known = ", ".join(f"{value:.3f}" for value in tiny.ANSWERS)
    if error <= tiny.TOLERANCE:
        return Outcome(True, f"passed: {shown}, expected {known}", error=error)
    return Outcome(False, f"it computes wrong scores: {shown}, expected {known}", error=error)


def ended(code: int, lines: Sequence[str]) -> Outcome:
    """(pure) Return the outcome for a program that exited during the test."""
    quoted = "".join(f"\n  | {line}" for line in lines[-_QUOTED_LINES:])
    if code < 0:
        name = signal.Signals(-code).name
        return Outcome(
            False, f"it was terminated by {name} when it ran a quantised model{quoted}", signal=-code
        )
    return Outcome(False, f"it exited with code {code}{quoted}")


async def _run(program: Sequence[str], model: Path, socket: Path, log: Path, gpu_layers: int) -> Outcome:
    scoring = Recipe("causal_lm", tiny.WINDOW, Normalization("sigmoid"))
    options = launch.EngineOptions(tuple(program), threads=2, gpus=None, gpu_layers=gpu_layers)
    spec = EngineSpec("smoke-test", model, scoring, {})
    child = await Child.start(launch.argv(spec, options, socket), log)
    client = LlamaClient(socket)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not await client.is_ready():
                if child.exit_code is not None:
                    return ended(await child.wait(), child.lines())
                await asyncio.sleep(_POLL_S)
            return compare([await _score(client, ids) for ids in tiny.PROMPTS])
    except TimeoutError:
        return Outcome(False, f"it did not respond within {START_TIMEOUT_S:g} s")
    except EngineError as error:
        # The request may have crashed it, so wait for its exit.
        await asyncio.wait([asyncio.ensure_future(child.wait())], timeout=_STOP_S)
        if child.exit_code is not None:
            return ended(child.exit_code, child.lines())
        return Outcome(False, error.message)
    finally:
        await child.stop(_STOP_S)
        await client.close()


async def _score(client: LlamaClient, ids: list[int]) -> float:
    answer = await client.compute("/completion", completion.body([ids], tiny.LABELS))
    return completion.log_odds(completion.rows(answer)[0], tiny.LABELS)
