"""Contract tests of every backend's engines: start, score, stop and crash, with real processes and
sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import upstream
from cases import needs_packages
from overlap import OVERLAP
from test_refusals import SPECS

from rerankd.backends.base import Backend, Batch, Engine, EngineSpec, Offer
from rerankd.backends.table import BACKENDS
from rerankd.errors import EngineError, EngineUnavailable
from rerankd.process.child import Child
from rerankd.process.failure_reasons import died
from rerankd.scoring.engine_input import NONE, Input, Question
from rerankd.scoring.inputs import Reader
from rerankd.serving import model_tokenizer
from support import options_of

QUERY = "rings of planets"
TEXTS = ["trains leave at nine", "planets have rings", "rings are gold"]
ROWS = [pytest.param(row, marks=needs_packages(row)) for row in (*BACKENDS, OVERLAP)]


@asynccontextmanager
async def started(
    backend: Backend, spec: EngineSpec, folder: Path
) -> AsyncIterator[tuple[Child, Engine, Reader]]:
    """Start a child of the backend on this machine, and wait until it is ready or has exited. Yields the
    child, its engine, and the reader that prepares texts for it."""
    options = options_of(backend)
    offer = backend.offer(spec, options, backend.survey(options, folder, spec))
    assert isinstance(offer, Offer)
    launch = backend.launch(offer, (), (), folder / "e.sock")
    child = await Child.start(launch.argv, folder / "e.log", {**launch.environment, **os.environ})
    engine = launch.connect(folder / "e.sock")
    assert spec.metadata is not None
    own = (
        engine
        if offer.capabilities.tokenizes
        else await model_tokenizer.ModelVocabulary(spec.metadata).tokenizer()
    )
    try:
        async with asyncio.timeout(60):
            while child.exit_code is None and not await engine.is_ready():
                await asyncio.sleep(0.02)
            if child.exit_code is None:
                await engine.prepare()
        yield child, engine, model_tokenizer.reader(offer, own)
    finally:
        await child.stop(0)
        await engine.close()


every_row = pytest.mark.parametrize("backend", ROWS, ids=[row.name for row in (*BACKENDS, OVERLAP)])
HEAD = SPECS["xlmr-head.gguf"]


async def batch(reader: Reader, texts: Sequence[str] = TEXTS, query: str = QUERY) -> Batch:
    return Batch(tuple(await reader.plain(query, texts)))


async def scores(engine: Engine, reader: Reader, texts: Sequence[str] = TEXTS) -> None:
    """Check the properties of every engine that scores pairs."""
    assert await engine.is_ready() and await engine.shows_work(10)
    prepared = await batch(reader, texts)
    answer = await engine.score(prepared)
    assert len(answer.values) == len(texts) and None not in answer.values and not answer.errors
    assert len(set(answer.values)) == len(texts)
    backwards = await engine.score(Batch(prepared.inputs[::-1]))
    assert backwards.values[::-1] == pytest.approx(answer.values, abs=1e-4)
    at_once = await asyncio.gather(*(engine.score(Batch((one,))) for one in prepared.inputs))
    assert [one.values[0] for one in at_once] == pytest.approx(answer.values, abs=1e-4)


async def is_gone(engine: Engine, prepared: Batch) -> None:
    assert not await engine.is_ready()
    assert await engine.shows_work(1) in (True, False)  # it must not raise
    with pytest.raises(EngineUnavailable):
        await engine.score(prepared)


@every_row
async def test_an_engine_scores_and_a_signal_ends_it(backend: Backend, tmp_path: Path) -> None:
    async with started(backend, HEAD, tmp_path) as (child, engine, reader):
        await scores(engine, reader)
        prepared = await batch(reader)
        await child.stop(30)
        assert child.exit_code in (0, -signal.SIGTERM)
        await is_gone(engine, prepared)


@every_row
async def test_calls_to_an_engine_that_was_killed_fail_as_unavailable(
    backend: Backend, tmp_path: Path
) -> None:
    async with started(backend, HEAD, tmp_path) as (child, engine, reader):
        prepared = await batch(reader)
        call = asyncio.create_task(engine.score(prepared))
        os.kill(child.pid, signal.SIGKILL)
        assert await child.wait() == -signal.SIGKILL
        await asyncio.wait([call])  # it may have been answered before
        assert isinstance(call.exception(), EngineUnavailable | None)
        await is_gone(engine, prepared)


@pytest.mark.parametrize("backend", ROWS[:-1], ids=[row.name for row in BACKENDS])
async def test_a_damaged_file_makes_the_child_exit_with_a_message(backend: Backend, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(HEAD.path.read_bytes()[:-4000])
    async with started(backend, replace(HEAD, path=damaged), tmp_path) as (child, engine, _):
        assert await child.wait() != 0
        assert child.lines()
        assert child.lines()[-1] in died("damaged.gguf", child.exit_code or 0, child.lines(), {})
        assert not await engine.is_ready()


class _Server(BaseHTTPRequestHandler):
    """Another rerank server. Its score is the length of the text; it rejects empty queries."""

    def do_GET(self) -> None:
        self._answer(200, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        rows = [{"index": at, "relevance_score": len(text)} for at, text in enumerate(body["documents"])]
        self._answer(200 if body["query"] else 422, {"results": rows[::-1]})

    def _answer(self, status: int, value: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


async def test_another_server_is_an_engine_without_files_child_or_token_counts(
    server: ThreadingHTTPServer,
) -> None:
    engine = upstream.connect(f"http://127.0.0.1:{server.server_port}")
    await engine.prepare()
    reader = Reader(HEAD.recipe, engine, reads_text=True)
    await scores(engine, reader)
    prepared = await batch(reader)
    assert (await engine.score(prepared)).values == [20, 18, 14]
    long = "ring " * 10_000
    read = await reader.read(await reader.prepare(QUERY), [long])
    assert [one.text for one in read.inputs] == [long] and not read.truncated
    with pytest.raises(EngineError, match="rejected"):
        await engine.score(Batch((Input(Question(""), "ring", NONE, 1),)))
    await engine.close()
    with pytest.raises(EngineUnavailable):
        await engine.score(prepared)
