"""A document's score does not depend on its neighbours or its place, on any engine.

The tolerances are those of docs/scores.md, of raw values. What is left are sums in another order: a matrix
product takes its rows in blocks whose size depends on the number of rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rerankd import machine
from rerankd.backends.base import Batch
from rerankd.service import Reranker
from support import golden_settings

QUERY = "Which planets have rings?"
TEXT = "Saturn has the brightest rings, and Jupiter, Uranus and Neptune have faint ones of dust and ice."
OTHERS = ["no", "A train to Lyon leaves at nine, and another at ten. " * 2, "Rings of gold are sold here."]
# How many texts stand in a call, and where TEXT stands among them.
CALLS: list[tuple[int, tuple[int, ...]]] = [
    *((1, (0,)), (2, (0,)), (2, (1,)), (3, (1,)), (7, (0, 6)), (16, (5, 6, 7)), (33, (0, 17, 32))),
    (20, tuple(range(20))),
]
# The largest difference of raw values, by engine and by what it computes with.
TOLERANCE = {"llama": 1e-5, "openvino f32": 1e-5, "openvino bf16": 1e-3}

RUNS = [
    *(("llama", name, "f32") for name in ("xlmr-head", "modernbert-head", "bert-embedder", "qwen3-headless")),
    *(
        ("openvino", name, precision)
        for name in ("xlmr-head", "modernbert-head", "bert-embedder", "roberta-head")
        for precision in ("f32", "bf16")
    ),
]


@pytest.mark.parametrize(("kind", "name", "precision"), RUNS)
async def test_a_score_is_the_same_at_every_place_and_in_every_company(
    kind: str, name: str, precision: str, tmp_path: Path
) -> None:
    if precision == "bf16" and not {"amx_bf16", "avx512_bf16"} & set(machine.instructions()):
        pytest.skip("this CPU has no bf16")
    more: dict[str, Any] = {"engine": kind, "precision": precision, "threads": 1}
    async with Reranker(golden_settings(name, tmp_path, **more)) as reranker:
        engine = reranker.state.engine
        assert engine is not None
        found = {}
        for count, places in CALLS:
            texts = [TEXT if at in places else f"{OTHERS[at % len(OTHERS)]} {at}" for at in range(count)]

            # Asked of the engine itself: the service scores equal texts of a request once.
            answer = await engine.score(Batch.pairs(QUERY, texts, reranker.model.scoring.instruction))
            values = answer.values
            found |= {(count, place): values[place] for place in places}
    apart = max(found.values()) - min(found.values())
    print(f"{kind} {precision} {name}: {apart:.3g}")
    assert apart <= TOLERANCE[kind if kind == "llama" else f"{kind} {precision}"], found
