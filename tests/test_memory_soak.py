"""An engine's memory under documents of every length: `make test-soak`, or this file with -m soak -s.

Lengths are drawn from 1 word up to max_length, so that OpenVINO sees all shapes.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from rerankd import processes
from rerankd.config import Settings
from rerankd.service import Reranker
from support import golden_settings

WORDS = "panda bear river mountain bread ticket weather library guitar pizza of the in and a to".split()  # noqa: SIM905
_A_REQUEST = 50
_TENTHS = 10


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kind", "name", "documents", "more_mib"),
    # Each case takes minutes: OpenVINO computes tiny models ten times as fast as llama.cpp. It keeps memory
    # for each shape of a pass, and some shapes first occur after the first tenth.
    [
        ("openvino", "xlmr-head", 20_000, 8),
        ("llama", "xlmr-head", 3_000, 2),
        ("openvino", "builtin:e5", 3_000, 35),
        ("llama", "builtin:e5", 3_000, 8),
    ],
)
async def test_memory_does_not_grow_after_the_first_tenth(
    kind: str, name: str, documents: int, more_mib: int, home: Path, tmp_path: Path
) -> None:
    if name == "builtin:e5":  # downloaded once for all tests
        settings = Settings.model_validate({"model": name, "home": home, "cache_entries": 0, "engine": kind})
    else:
        settings = golden_settings(name, tmp_path, engine=kind)
    pick = random.Random(7)
    held: list[int] = []
    async with Reranker(settings) as reranker:
        max_length = reranker.model.recipe.max_length
        starts = reranker.state.starts
        for tenth in range(_TENTHS):
            for _ in range(documents // _TENTHS // _A_REQUEST):
                texts = [
                    " ".join(pick.choices(WORDS, k=pick.randint(1, max_length))) for _ in range(_A_REQUEST)
                ]
                result = await reranker.rerank(f"which bear {tenth}", texts)
                assert len(result.results) == _A_REQUEST
            pid = reranker.state.pid
            assert pid is not None
            memory = processes.memory_bytes(pid)
            assert memory is not None
            held.append(memory)
        assert reranker.state.starts == starts, "the engine was restarted"
    curve = ", ".join(f"{size / 2**20:.0f}" for size in held)
    print(f"\n{kind} {name}: MiB after each tenth of {documents} documents: {curve}")
    assert held[-1] < held[0] + more_mib * 2**20, curve
