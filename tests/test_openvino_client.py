"""The worker's HTTP and the service's side of it, over a socket, with a model that adds up ids."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerankd.backends.base import Batch, EngineSpec
from rerankd.backends.worker.client import WorkerEngine
from rerankd.backends.worker.scorer import Scorer
from rerankd.backends.worker.server import Server
from rerankd.domain import Normalization, Recipe
from rerankd.errors import EngineError, EngineUnavailable, InputTooLong
from rerankd.formats.tokenizer import Reading

HEAD = Recipe("cross_encoder", 16, Normalization("sigmoid"), pooling="rank")


class Letters:
    """A vocabulary in which a letter is a token."""

    around_pair, around_text = 3, 2

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [[ord(letter) for letter in text] for text in texts]

    def text(self, ids: list[int]) -> Reading:
        return Reading([1, *ids, 2], len(ids) + 2)

    def pair(self, query: list[int], text: list[int]) -> Reading:
        return Reading([1, *query, 2, *text, 2], len(query) + 2)


class Sum:
    """A model whose logit is the sum of the ids; it stops at a `#` until the test lets it go on."""

    vocabulary = Letters()
    tokens_a_call = 512
    about = "a sum"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.at_gate = threading.Event()
        self.calls = 0

    def whole(self, count: int, longest: int) -> int:
        return count

    def forward(self, ids: Any, lengths: Any, seconds: Any) -> Any:
        self.calls += 1
        if (ids == ord("#")).any():
            self.at_gate.set()
            assert self.gate.wait(20)
        if (ids == ord("!")).any():
            raise RuntimeError("Check failed at brgemm.cpp:1")
        return ids.sum(axis=1, keepdims=True).astype(np.float32)


@pytest.fixture
def model() -> Sum:
    return Sum()


@pytest.fixture
def scorer(model: Sum) -> Scorer:
    return Scorer(model, 16, is_head=True)  # type: ignore[arg-type]


@pytest.fixture
def socket(model: Sum, scorer: Scorer, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "w.sock"
    with Server(str(path), scorer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield path
        model.gate.set()
        server.shutdown()
        thread.join()


def spec() -> EngineSpec:
    return EngineSpec("sum", Path("sum.gguf"), HEAD, {})


def total(query: str, text: str) -> float:
    return float(sum(map(ord, query + text)) + 5)


async def test_values_come_in_order_and_tokens_are_counted(socket: Path) -> None:
    engine = WorkerEngine(spec(), socket)
    assert await engine.is_ready()
    await engine.prepare()
    assert (engine.about, engine.fixed_tokens) == ("a sum", 3)
    texts = ["abc", "", "熊猫", "a much-longer"[:9]]
    scored = await engine.score(Batch.of("q", texts))
    assert scored.values == [total("q", text) for text in texts]
    assert scored.tokens == sum(len(text) + 4 for text in texts)
    assert await engine.count_tokens(texts) == [len(text) for text in texts]
    assert (await engine.score(Batch.of("q", []))).values == []
    await engine.close()


async def test_what_can_not_be_scored_is_an_engine_error(socket: Path) -> None:
    engine = WorkerEngine(spec(), socket)
    with pytest.raises(InputTooLong, match="17 tokens, and the window is 16"):
        await engine.score(Batch.of("q", ["ok", "x" * 13]))
    with pytest.raises(EngineError, match=r"Check failed at brgemm\.cpp"):
        await engine.score(Batch.of("q", ["!"]))
    with pytest.raises(EngineError, match="can't be read"):
        await engine.post("/score", {"texts": 5})
    assert (await engine.score(Batch.of("q", ["ok"]))).values == [total("q", "ok")]
    await engine.close()
    with pytest.raises(EngineUnavailable):
        await engine.score(Batch.of("q", ["ok"]))


async def jobs(scorer: Scorer, count: int) -> None:
    """Wait until so many jobs are under way or waiting."""
    async with asyncio.timeout(10):
        while len(scorer.runner) != count:
            await asyncio.sleep(0)


async def test_who_hangs_up_is_computed_for_no_longer(socket: Path, scorer: Scorer, model: Sum) -> None:
    engine = WorkerEngine(spec(), socket)
    under_way = asyncio.create_task(engine.score(Batch.of("a", ["#"])))
    await asyncio.to_thread(model.at_gate.wait, 10)
    dropped = asyncio.create_task(engine.score(Batch.of("b", ["x" * 9] * 500)))
    waiting = asyncio.create_task(engine.score(Batch.of("c", ["x"])))
    await jobs(scorer, 3)
    dropped.cancel()
    await jobs(scorer, 2)
    model.gate.set()
    assert (await waiting).values == [total("c", "x")]
    assert (await under_way).values == [total("a", "#")]
    assert model.calls == 2
    await engine.close()


async def test_a_worker_that_hangs_shows_no_work_and_answers_health(socket: Path, model: Sum) -> None:
    engine = WorkerEngine(spec(), socket)
    assert await engine.shows_work(5)
    hung = asyncio.create_task(engine.score(Batch.of("a", ["#"])))
    await asyncio.to_thread(model.at_gate.wait, 10)
    assert await engine.is_ready()
    assert not await engine.shows_work(0.3)
    model.gate.set()
    assert await engine.shows_work(5)
    await hung
    await engine.close()


async def test_a_worker_that_is_gone_is_not_ready(tmp_path: Path) -> None:
    engine = WorkerEngine(spec(), tmp_path / "nobody.sock")
    assert not await engine.is_ready()
    assert await engine.shows_work(1)  # its death is seen elsewhere
    with pytest.raises(EngineUnavailable):
        await engine.score(Batch.of("q", ["x"]))
    await engine.close()
