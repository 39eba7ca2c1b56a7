"""Late-interaction models: the raw scores of MultiVectorEncoder, and the document vectors that are kept."""

from __future__ import annotations

import os
import signal
import sqlite3
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import PAIRS

import checkpoints
import late
from rerankd.backends.token_vectors import KeptVectors, TokenVectors
from rerankd.backends.worker.late_interaction import MaxSim, VectorCache, max_sim
from rerankd.backends.worker.passes import Vectors
from rerankd.config import Settings
from rerankd.process.states import Ready
from rerankd.rerank_result import RerankResult
from rerankd.scoring.engine_input import Input, Question
from rerankd.service import Reranker
from rerankd.serving.prepare_model import prepare
from support import golden, until

# 3e-5 was seen: a sum over up to 32 tokens, in float32.
BOUND = 1e-4
# What a part of a model moves the raw score by if it is wrong.
SEEN = 0.01
ENGINES = [
    "openvino",
    pytest.param(
        "torch",
        marks=pytest.mark.skipif(find_spec("torch") is None, reason="no PyTorch here: make test-torch"),
    ),
]
DOCUMENTS = [PAIRS[name]["document"] for name in golden("late")["stanford-bert"]]


def settings(model: Path, home: Path, **more: Any) -> Settings:
    values = {"model": str(model), "home": home, "cache_entries": 0, "precision": "f32", **more}
    return Settings.model_validate(values)


def kept(reranker: Reranker) -> KeptVectors:
    engine = reranker.state.engine
    assert engine is not None and engine.kept is not None
    return engine.kept


def raw(result: RerankResult) -> dict[int, float]:
    assert not result.errors
    return {one.index: one.score for one in result.results}


async def worst(model: Path, name: str, home: Path, engine: str) -> float:
    """How far the worst raw score is from the library's."""
    apart = 0.0
    async with Reranker(settings(model, home, engine=engine)) as reranker:
        for pair, value in golden("late")[name].items():
            result = await reranker.rerank(PAIRS[pair]["query"], [PAIRS[pair]["document"]], raw_scores=True)
            apart = max(apart, abs(raw(result)[0] - value))
    return apart


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", late.NAMES)
async def test_raw_scores_are_those_of_the_library(name: str, engine: str, tmp_path: Path) -> None:
    found = await worst(late.build(name, tmp_path), name, tmp_path / "home", engine)
    print(f"{name} on {engine}: {found:.2g}")
    assert found < BOUND


@pytest.mark.parametrize(
    ("name", "file", "change"),
    [
        ("stanford-bert", late.ARTIFACT_FILE, {"query_maxlen": 16}),
        ("stanford-bert", late.ARTIFACT_FILE, {"doc_maxlen": 24}),
        ("stanford-bert", late.ARTIFACT_FILE, {"doc_token_id": "[unused0]"}),
        ("stanford-bert", late.ARTIFACT_FILE, {"query_token_id": "[unused1]"}),
        ("stanford-bert", late.ARTIFACT_FILE, {"attend_to_mask_tokens": True}),
        ("stanford-bert", late.ARTIFACT_FILE, {"mask_punctuation": False}),
        ("pylate-modernbert", late.PYLATE_FILE, {"query_prefix": "[D] "}),
        ("pylate-modernbert", late.PYLATE_FILE, {"do_query_expansion": False}),
        ("pylate-attended", late.PYLATE_FILE, {"attend_to_expansion_tokens": False}),
        ("pylate-attended", "2_Dense/config.json", {"use_residual": None}),
    ],
)
async def test_each_fact_of_the_files_moves_the_score(
    name: str, file: str, change: dict[str, Any], tmp_path: Path
) -> None:
    model = late.build(name, tmp_path)
    if "use_residual" in change:
        tensors = checkpoints.read(model / "2_Dense" / "model.safetensors")
        del tensors["residual.weight"]
        checkpoints.write(model / "2_Dense" / "model.safetensors", tensors)
    checkpoints.edit(model / file, **change)
    assert await worst(model, name, tmp_path / "home", "openvino") > SEEN


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_document_that_was_read_costs_only_the_query(engine: str, tmp_path: Path) -> None:
    model = late.build("pylate-modernbert", tmp_path)
    async with Reranker(settings(model, tmp_path / "home", engine=engine)) as reranker:
        assert kept(reranker) == KeptVectors(), "the self-test computes everything, and leaves nothing"
        first = raw(await reranker.rerank("bread", DOCUMENTS, raw_scores=True))
        before = kept(reranker)
        assert before.documents and before.size_bytes > before.documents * 1000
        again = raw(await reranker.rerank("bread", DOCUMENTS, raw_scores=True))
        other = raw(await reranker.rerank("opening hours of the library", DOCUMENTS, raw_scores=True))
        after = kept(reranker)
        assert after.misses == before.misses and after.documents == before.documents
        assert after.hits - before.hits == 2 * len({*DOCUMENTS})
        assert again == first and other != first


async def test_a_new_worker_has_forgotten_the_vectors_and_scores_the_same(tmp_path: Path) -> None:
    model = late.build("stanford-bert", tmp_path)
    async with Reranker(settings(model, tmp_path / "home")) as reranker:
        first = raw(await reranker.rerank("bread", DOCUMENTS, raw_scores=True))
        served = reranker.registry.models[0]
        (pid,) = served.pids
        os.kill(pid, signal.SIGKILL)
        second = raw(await reranker.rerank("bread", DOCUMENTS, raw_scores=True))
        assert second == pytest.approx(first, abs=BOUND)  # the passes hold other documents together
        assert isinstance(served.state.state, Ready) and served.pids != [pid]
        assert kept(reranker).misses >= kept(reranker).documents > 60


@pytest.mark.parametrize("engine", ENGINES)
async def test_vectors_on_disk_survive_a_restart_and_score_the_same(engine: str, tmp_path: Path) -> None:
    model = late.build("stanford-bert", tmp_path)
    on_disk = settings(model, tmp_path / "home", engine=engine, cache_path=tmp_path / "cache")
    queries = ("bread", "opening hours of the library")
    async with Reranker(on_disk) as reranker:
        first = [raw(await reranker.rerank(query, DOCUMENTS, raw_scores=True)) for query in queries]
        assert kept(reranker).disk_hits == 0
        distinct = kept(reranker).documents
        file = tmp_path / "cache" / "vectors.sqlite"

        def rows() -> int:
            with sqlite3.connect(file) as database:
                return int(database.execute("SELECT count(*) FROM entries").fetchone()[0])

        until(lambda: rows() == distinct)
    (tmp_path / "cache" / "scores.sqlite").unlink()
    async with Reranker(on_disk.model_copy(update={"document_vectors_mb": 0})) as reranker:
        again = [raw(await reranker.rerank(query, DOCUMENTS, raw_scores=True)) for query in queries]
        assert again == first, "the vectors are on disk as they were computed"
        assert kept(reranker).misses == 0
        assert kept(reranker).hits == kept(reranker).disk_hits >= 2 * distinct


async def test_no_vectors_are_kept_with_a_bound_of_0(tmp_path: Path) -> None:
    model = late.build("stanford-bert", tmp_path)
    with_vectors = prepare(settings(model, tmp_path / "home"))
    without = settings(model, tmp_path / "home", document_vectors_mb=0)
    assert with_vectors.engine.memory_bytes - prepare(without).engine.memory_bytes == 256 * 2**20
    async with Reranker(without) as reranker:
        first = raw(await reranker.rerank("bread", DOCUMENTS, raw_scores=True))
        assert raw(await reranker.rerank("bread", DOCUMENTS, raw_scores=True)) == pytest.approx(
            first, abs=1e-4
        )
        assert kept(reranker).documents == kept(reranker).hits == kept(reranker).size_bytes == 0


def test_the_bound_of_bytes_holds_and_the_least_used_document_goes() -> None:
    vectors = np.ones((4, 8), np.float32)
    size = vectors.nbytes + 256
    held = VectorCache(3 * size)
    for name in (b"a", b"b", b"c"):
        held.put(name, vectors)
    assert held.kept == KeptVectors(3, 3 * size)
    assert held.find([b"a"]).keys() == {b"a"}
    held.put(b"d", vectors)
    assert held.kept == KeptVectors(3, 3 * size, hits=1)
    assert held.find([b"a", b"b", b"c", b"d"]).keys() == {b"a", b"c", b"d"}
    held.put(b"e", np.ones((64, 8), np.float32))  # larger than the bound
    assert held.kept == KeptVectors(3, 3 * size, hits=4, misses=1)


def _input(question: Question, *ids: int) -> Input:
    return Input(question, "", np.array(ids, np.int32), len(ids))


def test_repeated_documents_and_several_queries_of_a_batch_are_read_once() -> None:
    one, two = (Question(name, ids=np.array(ids, np.int32)) for name, ids in (("a", [1]), ("b", [2, 3])))
    method = MaxSim(TokenVectors(expansion_length=4, expansion_id=9, skiplist=(7,), most_bytes=2**20))
    inputs = [_input(one, 5, 7), _input(two, 5, 7), _input(one, 5, 7), _input(one, 7)]
    plan = method.plan(inputs)
    readings, finish = plan.readings, plan.finish
    assert [reading.ids.tolist() for reading in readings] == [[5, 7], [7], [1, 9, 9, 9], [2, 3, 9, 9]]
    assert [reading.attended for reading in readings] == [None, None, 1, 2]
    rows: list[Vectors] = [
        np.random.default_rng(at).random((len(r.ids), 8), np.float32) for at, r in enumerate(readings)
    ]
    found = finish(rows)
    assert found[0] == found[2] == pytest.approx(max_sim(*map(_unit, (rows[2], rows[0][:1]))))
    assert found[1] == pytest.approx(max_sim(_unit(rows[3]), _unit(rows[0][:1])))
    assert found[3] == 0.0, "all of its tokens are in the skiplist"
    assert method.plan(inputs).readings == []
    assert len(method.plan(inputs, anew=True).readings) == 2, (
        "documents only: queries are kept by their tokens"
    )


def _unit(rows: Vectors) -> Vectors:
    found: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found
