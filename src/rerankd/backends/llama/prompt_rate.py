"""Measure how fast llama.cpp computes a causal model's prompt on this CPU (see backends/prompt_rate.py)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from rerankd.backends.base import EngineSpec
from rerankd.backends.llama import launch
from rerankd.backends.llama.build import tiny
from rerankd.backends.llama.client import LlamaClient
from rerankd.backends.prompt_rate import (
    FEED_FORWARD,
    HEADS,
    KV_HEADS,
    LAYERS,
    ROUNDS,
    TIMEOUT_S,
    TOKENS,
    WIDTH,
    gflops,
)
from rerankd.domain import Recipe
from rerankd.errors import DataFolderError, EngineError
from rerankd.formats.weights import FLOATS
from rerankd.normalization import Normalization
from rerankd.process import rundir
from rerankd.process.child import Child

_WINDOW = 2 * TOKENS
_POLL_S = 0.02
_STOP_S = 5.0


def measured_as(quantisation: str) -> str:
    """(pure) The type of matrices that stands for a file's most frequent one (see ModelMetadata)."""
    return quantisation if quantisation in tiny.KINDS else "Q8_0"


def measure(program: Sequence[str], kind: str) -> float:
    """The rate of a program in GFLOP/s for one thread with matrices of type `kind`, 0 if it fails. Blocks for
    some seconds."""
    sizes = tiny.Sizes(WIDTH, HEADS, KV_HEADS, FEED_FORWARD, LAYERS, _WINDOW, (kind, kind, kind))
    folder = rundir.make()
    try:
        model = folder.make() / "layers.gguf"
        tiny.write(model, sizes)
        recipe = Recipe("causal_lm", _WINDOW, Normalization("sigmoid"))
        spec = EngineSpec("prompt-rate", model, recipe, {}, exact=kind in FLOATS)
        return asyncio.run(_measure(program, spec, folder.socket(), model.with_suffix(".log")))
    except DataFolderError:  # reported by what needs the folder
        return 0.0
    finally:
        folder.remove()


async def _measure(program: Sequence[str], spec: EngineSpec, socket: Path, log: Path) -> float:
    options = launch.EngineOptions(tuple(program), threads=1, gpus=None, gpu_layers=0)
    child = await Child.start(launch.argv(spec, options, socket), log)
    client = LlamaClient(socket)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not await client.is_ready():
                if child.exit_code is not None:
                    return 0.0
                await asyncio.sleep(_POLL_S)
            return gflops(min([await _call(client, at) for at in range(ROUNDS + 1)]))
    except (TimeoutError, EngineError):
        return 0.0
    finally:
        await child.stop(_STOP_S)
        await client.close()
        log.unlink(missing_ok=True)


async def _call(client: LlamaClient, at: int) -> float:
    prompt = [(at + 7 * place) % 256 for place in range(TOKENS)]  # no two calls share their first token
    started = time.perf_counter()
    await client.compute("/completion", {"prompt": prompt, "n_predict": 1, "response_fields": ["index"]})
    return time.perf_counter() - started
