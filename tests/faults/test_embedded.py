"""Faults as seen by a program that embeds the Reranker."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served import MODEL

import fake_engine
from rerankd import Reranker, Settings
from rerankd.errors import EngineTimeout, EngineUnavailable, Stopping
from rerankd.rerank_result import RerankResult


def reranker(tmp_path: Path, *flags: str, **settings: Any) -> Reranker:
    program = fake_engine.install(tmp_path, *flags)
    return Reranker(Settings(**{"model": str(MODEL), "home": tmp_path, "llama_path": program, **settings}))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def ask(it: Reranker, *documents: str, query: str = "q", **options: Any) -> RerankResult:
    return await it.rerank(query, documents, raw_scores=True, **options)


def test_a_changed_file_is_read_again_before_it_is_served(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "model.gguf"
        shutil.copy(MODEL, path)
        async with reranker(tmp_path, model=str(path)) as it:
            await ask(it, "a")
            before = it.registry.models[0]
            os.utime(path, (1, 1))
            os.kill(it.state.pid or 0, signal.SIGKILL)
            await until(lambda: "has changed" in str(before.state.error))
            # Reloads during the replacement have nothing to do.
            await asyncio.gather(it.registry.reload(before), it.registry.reload(before))
            await until(lambda: it.registry.models[0] is not before)
            assert (await ask(it, "a")).cached == 0
            assert it.state.starts == 1

    asyncio.run(scenario())


def test_the_error_has_retry_after_if_no_engine_is_ready_in_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with reranker(tmp_path, "--slow-load", "0.5", request_timeout_s=0.2) as it:
            os.kill(it.state.pid or 0, signal.SIGKILL)
            await until(lambda: it.state.engine is None)
            with pytest.raises(EngineUnavailable, match="No engine was ready") as caught:
                await ask(it, "a")
            assert caught.value.retry_after_s

    asyncio.run(scenario())


def test_a_hanging_engine_is_replaced_after_deadline_and_margin(tmp_path: Path) -> None:
    async def scenario() -> None:
        flags = ("--stall-after", str(fake_engine.CALLS_AT_LOAD), "--only-first", str(tmp_path / "first"))
        async with reranker(tmp_path, *flags, request_timeout_s=0.5, hang_margin_s=0.3) as it:
            with pytest.raises(EngineTimeout):
                await ask(it, "a")
            await until(lambda: it.state.starts == 2 and it.state.engine is not None)
            assert [row.score for row in (await ask(it, "a")).results] == [fake_engine.raw("q", "a")]

    asyncio.run(scenario())


def test_duplicates_are_scored_once_and_cached_documents_not_at_all(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with reranker(tmp_path, cache_entries=3) as it:
            first = await ask(it, "a", "b", "a")
            again = await ask(it, "b", "a")
            other = await ask(it, "a", query="other")
            assert (first.cached, again.cached, other.cached) == (0, 2, 0)
            assert again.tokens == 0
            assert {row.index: row.score for row in again.results} == {
                0: fake_engine.raw("q", "b"),
                1: fake_engine.raw("q", "a"),
            }
            await ask(it, "c", "d")  # more than cache_entries
            assert (await ask(it, "a")).cached == 0

    asyncio.run(scenario())


def test_a_closed_reranker_admits_no_request(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with reranker(tmp_path) as it:
            await it.drain()
            assert it.state.phase == "stopped"
            with pytest.raises(Stopping):
                await ask(it, "a")

    asyncio.run(scenario())
