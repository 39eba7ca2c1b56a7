"""Faults of PyTorch's worker: real processes, a cap on memory, callers that leave, pickled weights.

Kills under load are in tests/faults/test_real_engine.py. Needs PyTorch: `make test-torch`.
"""

from __future__ import annotations

import asyncio
import resource
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cases import needs_packages

import checkpoints
import twins
from rerankd.backends.torch.backend import TorchBackend
from rerankd.backends.worker.client import WorkerEngine
from rerankd.config import Settings
from rerankd.service import Reranker
from rerankd.serving.served_model import ServedModel

pytestmark = needs_packages(TorchBackend())
WORDS = "the quick brown fox jumps " * 80
# A pass of 2,048 tokens takes more than this: its widest states alone have 2,048 x 3,072 numbers.
HEADROOM_BYTES = 40 * 2**20


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[Reranker, ServedModel]]:
    """A BERT of two layers of width 768 and weights of 0, whose scores are all the same."""
    twins.write_bert_folder(tmp_path / "bert", blocks=2, width=768)
    settings: dict[str, Any] = {"model": str(tmp_path / "bert"), "home": tmp_path / "home", "engine": "torch"}
    async with Reranker(Settings(**settings, device="cpu", force=True, threads=1, cache_entries=0)) as one:
        await one.rerank("a query", ["a document"])
        yield one, one.registry.models[0]


def size_bytes(pid: int) -> int:
    """The address space of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    return pages * resource.getpagesize()


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux caps the memory of another process")
async def test_a_pass_that_runs_out_of_memory_is_repeated_in_parts(served: Any) -> None:
    one, model = served
    (pid,) = model.pids
    most = size_bytes(pid) + HEADROOM_BYTES
    resource.prlimit(pid, resource.RLIMIT_AS, (most, most))
    found = await one.rerank("a query", [f"{at} {WORDS}" for at in range(16)])
    assert len(found.results) == 16 and found.errors == ()
    assert "can't allocate memory" in model.log.read_text()
    assert model.pids == [pid] and model.state.starts == 1


async def test_a_caller_that_leaves_frees_the_engine(served: Any) -> None:
    one, model = served
    engine = model.state.engine
    assert isinstance(engine, WorkerEngine)

    async def passes() -> int:
        return int((await engine.get("/work", 30)).json()["steps"])

    before = await passes()
    call = asyncio.create_task(one.rerank("a query", [f"{at} {WORDS}" for at in range(400)]))
    while await passes() < before + 2:
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    await one.rerank("another query", ["a document"])
    assert await passes() < before + 20  # of more than 70


@pytest.mark.parametrize("flags", [(), ("--reference",)])
def test_the_worker_reads_no_pickled_weights(tmp_path: Path, flags: tuple[str, ...]) -> None:
    folder = checkpoints.copy("bert-pairs", tmp_path / "model")
    shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin")
    socket = tmp_path / "s"
    argv = [sys.executable, "-m", "rerankd.backends.torch", "--model", folder, "--socket", socket, *flags]
    argv += ["--pooling", "rank", "--max-length", "64", "--threads", "1"]
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True)
    assert done.returncode != 0 and not socket.exists()
    assert "its weights are pickled" in done.stderr and "can execute code when loaded" in done.stderr
