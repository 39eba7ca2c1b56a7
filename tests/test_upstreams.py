"""rerankd in front of other servers: real programs with the fake engine, and servers with faults on real
sockets."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

import fake_engine
from rerankd import config
from rerankd.api.app import create_app
from rerankd.config import Settings
from rerankd.domain import RerankRequest
from rerankd.errors import (
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    UpstreamLoop,
)
from rerankd.normalization import Normalization
from rerankd.scoring import normalize
from rerankd.service import Reranker
from rerankd.upstreams import other_wire
from support import GOLDEN, Program, golden, golden_settings, post, running, start_serving, until

MODEL = str(GOLDEN / golden("xlmr-head")["model"])
QUERIES = [f"query {number}" for number in range(40)]
DOCUMENTS = ["a panda", "bread", "a bear of China", "a kind of train"]


def expected(query: str) -> list[tuple[int, float]]:
    """The rows of a response for DOCUMENTS with the fake engine."""
    scores = [normalize.score(fake_engine.raw(query, text), Normalization("sigmoid")) for text in DOCUMENTS]
    return sorted(enumerate(scores), key=lambda row: -row[1])


def rows(answer: httpx.Response) -> list[tuple[int, float]]:
    return [(row["index"], row["relevance_score"]) for row in answer.json()["results"]]


class Servers:
    """Real rerankd programs with the fake engine. Each keeps its port when it is started again."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.programs: list[Program] = []

    def start(self, *flags: str, at: int | None = None, **env: str) -> Program:
        number = len(self.programs) if at is None else at
        folder = self._home / f"u{number}"
        folder.mkdir(exist_ok=True)
        port = () if at is None else ("--port", self.programs[at].url.rpartition(":")[2])
        program = start_serving(
            folder,
            MODEL,
            "--engine",
            "llama",
            "--alias",
            "m",
            *port,
            RERANKD_LLAMA_PATH=str(fake_engine.install(folder, *flags)),
            **env,
        )
        if at is None:
            self.programs.append(program)
        else:
            self.programs[at] = program
        # It listens before it has imported all that it answers with.
        until(lambda: httpx.get(f"{program.url}/ready", timeout=60, trust_env=False).status_code == 200, 60)
        return program

    def kill(self, at: int) -> None:
        program = self.programs[at]
        program.process.kill()
        program.process.wait()
        if program.process.stderr is not None:
            program.process.stderr.close()

    def stop(self) -> None:
        for at in range(len(self.programs)):
            self.kill(at)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    found = Servers(tmp_path)
    yield found
    found.stop()


def sections(*urls: str, more: str = "") -> str:
    return "".join(f'[upstreams.u{at}]\nurl = "{url}"\n{more}\n' for at, url in enumerate(urls))


def front_settings(home: Path, *urls: str, **more: Any) -> Settings:
    upstreams = {f"u{at}": {"url": url} for at, url in enumerate(urls)}
    values = {"home": home, "upstreams": upstreams, "upstream_poll_s": 0.2, **more}
    return Settings.model_validate(values)


@contextlib.asynccontextmanager
async def front(home: Path, *urls: str, **more: Any) -> AsyncIterator[Reranker]:
    async with Reranker(front_settings(home, *urls, **more)) as reranker:
        yield reranker


# Real servers.


def test_one_of_three_servers_is_killed_under_load_and_comes_back(
    servers: Servers, tmp_path: Path, serve: Callable[..., Program]
) -> None:
    for _ in range(3):
        servers.start("--delay-ms", "2")
    file = tmp_path / "front.toml"
    file.write_text("upstream_poll_s = 0.2\n" + sections(*(one.url for one in servers.programs)))
    program = serve("--config", str(file))
    statuses: list[int] = []
    wrong: list[Any] = []
    is_over = threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(trust_env=False, timeout=30) as client:
            for turn in range(10**6):
                if is_over.is_set():
                    return
                query = QUERIES[(number + 7 * turn) % len(QUERIES)]
                answer = client.post(
                    f"{program.url}/v1/rerank", json={"query": query, "documents": DOCUMENTS}
                )
                statuses.append(answer.status_code)
                if answer.status_code not in (200, 429, 503) or (
                    answer.status_code == 200 and rows(answer) != expected(query)
                ):
                    wrong.append((answer.status_code, answer.text))

    def answered(name: str) -> int:
        (model,) = httpx.get(f"{program.url}/v1/status", trust_env=False, timeout=60).json()["remote"]
        return sum(place["answered"] for place in model["places"] if place["name"] == name)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: answered("u1") > 20, 60)
        servers.kill(1)
        seen = len(statuses)
        until(lambda: len(statuses) > seen + 100, 60)
        before = answered("u1")
        servers.start(at=1)
        until(lambda: answered("u1") > before, 10)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert set(statuses) <= {200, 429, 503}
    assert statuses.count(200) > 0.99 * len(statuses), "the others answer what the killed one did not"


def test_no_request_fails_during_a_rolling_restart(
    servers: Servers, tmp_path: Path, serve: Callable[..., Program]
) -> None:
    """Each server is stopped as soon as the one before is ready again, which the front may not know yet."""
    for _ in range(2):
        servers.start("--delay-ms", "2")
    file = tmp_path / "front.toml"
    file.write_text(sections(*(one.url for one in servers.programs)))
    program = serve("--config", str(file))
    failed: list[str] = []
    answered = 0
    is_over = threading.Event()

    def ask() -> None:
        nonlocal answered
        with httpx.Client(trust_env=False, timeout=60) as client:
            while not is_over.wait(0.05):  # a light load
                body = {"query": f"query {answered}", "documents": DOCUMENTS}
                answer = client.post(f"{program.url}/v1/rerank", json=body)
                answered += 1
                if answer.status_code != 200:
                    failed.append(answer.text)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for at in (0, 1, 0):
            until(lambda seen=answered: answered > seen, 60)
            process = servers.programs[at].process
            process.terminate()
            process.wait()
            servers.kill(at)  # closes its output
            servers.start(at=at)
        until(lambda seen=answered: answered > seen + 5, 60)
    finally:
        is_over.set()
        thread.join()
    assert failed == []


async def test_equal_queries_meet_the_same_cache(servers: Servers, tmp_path: Path) -> None:
    """The hits of three servers are at least 95 % of what one server has."""
    for _ in range(3):
        servers.start()
    queries = QUERIES * 3

    async def hits(home: Path, *urls: str) -> int:
        cached = 0
        async with front(home, *urls) as reranker:
            for at in range(0, len(queries), 3):
                answers = await asyncio.gather(
                    *(reranker.rerank(query, DOCUMENTS) for query in queries[at : at + 3])
                )
                cached += sum(answer.cached for answer in answers)
        return cached

    urls = [program.url for program in servers.programs]
    three = await hits(tmp_path / "a", *urls)
    alone = (len(queries) - len(QUERIES)) * len(DOCUMENTS)
    assert three >= 0.95 * alone
    used = [
        httpx.get(f"{url}/v1/status", trust_env=False, timeout=60).json()["models"][0]["cache"]
        for url in urls
    ]
    assert all(one["misses"] for one in used), "all three servers take part"


async def test_a_server_that_shuts_down_gets_no_new_requests(servers: Servers, tmp_path: Path) -> None:
    servers.start("--delay-ms", "100")
    servers.start()
    async with front(tmp_path, *(one.url for one in servers.programs)) as reranker:
        (model,) = reranker.registry.remote_models
        slow = await _query_for(reranker, "u0")
        under_way = asyncio.create_task(reranker.rerank(slow, [f"document {at}" for at in range(20)]))
        while not model.places[0].requests:
            await asyncio.sleep(0)
        servers.programs[0].process.send_signal(signal.SIGTERM)
        while model.places[0].phase != "failed":
            await asyncio.sleep(0.01)
        results = await asyncio.gather(*(reranker.rerank(query, DOCUMENTS) for query in QUERIES))
        assert len(results) == len(QUERIES)
        assert len((await under_way).results) == 20
        assert model.places[0].answered <= 2


async def _query_for(reranker: Reranker, name: str) -> str:
    """A query that this server answers while none is busy."""
    (model,) = reranker.registry.remote_models
    for query in (f"find {number}" for number in range(100)):
        before = {place.name: place.answered + place.failed for place in model.places}
        with contextlib.suppress(EngineError):
            await reranker.rerank(query, ["x"])
        after = {place.name: place.answered + place.failed for place in model.places}
        if after[name] > before[name]:
            return query
    raise AssertionError(f"no query goes to {name}")


async def test_a_request_on_a_server_that_hangs_is_answered_by_another(
    servers: Servers, tmp_path: Path
) -> None:
    """As after a power failure: no connection is closed, and no check is answered."""
    for _ in range(2):
        servers.start("--delay-ms", "500")
    async with front(tmp_path, *(one.url for one in servers.programs)) as reranker:
        (model,) = reranker.registry.remote_models
        asked = asyncio.create_task(reranker.rerank("q", DOCUMENTS))
        while not any(place.requests for place in model.places):
            await asyncio.sleep(0)
        at = next(at for at, place in enumerate(model.places) if place.requests)
        servers.programs[at].process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(40):  # request_timeout_s is longer
            result = await asked
    assert [row.index for row in result.results] == [index for index, _ in expected("q")]
    assert [row.score for row in result.results] == pytest.approx([score for _, score in expected("q")])


async def test_a_slow_server_is_hedged_and_the_other_call_is_cancelled(
    servers: Servers, tmp_path: Path
) -> None:
    servers.start("--stall-on", "stall")
    servers.start()
    async with front(tmp_path, *(one.url for one in servers.programs), upstream_hedge_ms=100) as reranker:
        (model,) = reranker.registry.remote_models
        query = await _query_for(reranker, "u0")
        result = await reranker.rerank(query, ["stall", "b"])
        assert [row.index for row in result.results] in ([0, 1], [1, 0])
        assert model.places[0].requests == 0, "the slow call was cancelled"
        url = servers.programs[0].url
        async with httpx.AsyncClient(trust_env=False) as http:
            while (await http.get(f"{url}/v1/status")).json()["models"][0]["queue"]["requests"]:
                await asyncio.sleep(0.01)


async def test_servers_are_added_and_removed_under_load(servers: Servers, tmp_path: Path) -> None:
    for _ in range(2):
        servers.start("--delay-ms", "1")
    urls = [program.url for program in servers.programs]
    async with front(tmp_path, urls[0]) as reranker:
        is_over = False
        answered = 0

        async def ask(number: int) -> None:
            nonlocal answered
            turn = 0
            while not is_over:
                query = f"{number} {(turn := turn + 1)}"
                result = await reranker.rerank(query, DOCUMENTS)
                assert [(row.index, row.score) for row in result.results] == expected(query)
                answered += 1

        clients = [asyncio.create_task(ask(number)) for number in range(4)]

        async def until_places(count: int) -> None:
            (model,) = reranker.registry.remote_models
            seen = answered
            while len(model.places) != count or answered < seen + 50:
                assert not any(client.done() for client in clients)
                await asyncio.sleep(0.01)

        await until_places(1)
        new_key = front_settings(tmp_path, upstreams={"u0": {"url": urls[0], "api_key": "another"}})
        await reranker.apply(new_key)
        await until_places(1)
        await reranker.apply(front_settings(tmp_path, *urls))
        await until_places(2)
        weighted = front_settings(tmp_path, *urls).model_dump()
        weighted["upstreams"]["u1"]["weight"] = 5.0
        weighted["upstreams"]["u0"]["api_key"] = "another"
        await reranker.apply(Settings.model_validate(weighted))
        await until_places(2)
        settings = front_settings(tmp_path, urls[1])
        await reranker.apply(settings)
        await until_places(1)
        is_over = True
        await asyncio.gather(*clients)


async def test_fair_shares_hold_behind_a_trusted_front_only(servers: Servers, tmp_path: Path) -> None:
    limits = {"RERANKD_MAX_REQUESTS": "8"}
    trusting = servers.start("--stall-on", "stall", **limits, RERANKD_TRUSTED_FRONTS="127.0.0.0/8")
    other = servers.start("--stall-on", "stall", **limits)

    async def status(url: str, client: str) -> int:
        """The status of a client's request while another client has filled its share of the queue."""
        async with httpx.AsyncClient(trust_env=False, timeout=60, base_url=url) as http:

            async def ask(name: str, number: int, timeout_s: float) -> int:
                body = {"query": f"{name} {number}", "documents": ["stall"]}
                headers = {"x-rerankd-client": name, "x-request-timeout": str(timeout_s)}
                return (await http.post("/v1/rerank", json=body, headers=headers)).status_code

            greedy = [asyncio.create_task(ask("greedy", number, 3)) for number in range(8)]
            while not any(task.done() for task in greedy):
                await asyncio.sleep(0.001)
            found = await ask(client, 0, 0.3)
            await asyncio.gather(*greedy)
            return found

    assert await status(trusting.url, "modest") in (503, 504), "it was admitted"
    assert await status(other.url, "modest") == 429, "a header that anyone can send gives no share"


# The same process in front and behind, with a real engine.


OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"top_n": 1, "return_documents": True},
    {"raw_scores": True},
    {"score_threshold": 0.5},
    {"max_tokens_per_doc": 2},
    {"max_tokens_per_doc": 2, "max_chunks_per_doc": 2, "overlap_tokens": 1},
    {"max_scored_documents": 2},
    {"instruction": "Find animals"},
    {"truncate_at": "sentence", "max_tokens_per_query": 1, "truncate_query": True},
)


async def test_a_result_is_the_same_directly_and_through_a_front(tmp_path: Path) -> None:
    documents = ("a panda is a bear", " ", "bread", "a panda is a bear", "bread \ud800")
    async with Reranker(golden_settings("qwen2-labels", tmp_path / "a")) as behind:
        with running_reranker(tmp_path / "b") as url:
            async with front(tmp_path / "c", url) as reranker:
                for options in OPTIONS:
                    request = RerankRequest("what is a panda?", documents, **options)
                    direct, through = await behind.answer(request), await reranker.answer(request)
                    times = {name: getattr(direct, name) for name in ("queue_s", "engine_s", "total_s")}
                    assert dataclasses.replace(through, **times) == direct


@pytest.mark.parametrize("is_first", [False, True])
async def test_a_request_without_a_model_name_goes_to_the_same_model(is_first: bool, tmp_path: Path) -> None:
    both = {"both": {"stages": ["xlmr", {"model": "pairs", "keep": 2}]}}
    models = {"xlmr": {"ref": MODEL}, "pairs": {"ref": str(GOLDEN / golden("bert-pairs")["model"])}}
    settings = Settings(home=tmp_path / "a", models=both | models if is_first else models | both)
    with running(create_app(settings=settings)) as url:
        body = {"query": "what is a panda?", "documents": DOCUMENTS}
        direct = post(f"{url}/v1/rerank", body)
        async with front(tmp_path / "b", url) as reranker:
            through = await reranker.rerank(body["query"], DOCUMENTS)
    assert direct.json()["model"] == through.model == ("both" if is_first else "xlmr")
    assert rows(direct) == [(row.index, row.score) for row in through.results]


@contextlib.contextmanager
def running_reranker(home: Path, name: str = "qwen2-labels", **more: Any) -> Iterator[str]:
    with running(create_app(settings=golden_settings(name, home, **more))) as url:
        yield url


async def test_vectors_are_the_same_directly_and_through_a_front(tmp_path: Path) -> None:
    settings = golden_settings("bert-embedder", tmp_path)
    texts = ["a panda", "word " * 900, "a panda"]
    with running(create_app(settings=settings)) as url:
        async with front(tmp_path / "c", url) as reranker, Reranker(settings) as direct:
            (model,) = reranker.registry.remote_models
            assert model.is_embedder
            for options in ({}, {"normalize": False, "input_type": "query"}, {"dimensions": 3}):
                one = await direct.embed(texts, **options)
                other = await reranker.embed(texts, **options)
                assert (one.vectors == other.vectors).all()
                assert (one.tokens, one.truncated) == (other.tokens, other.truncated)
            with pytest.raises(InvalidRequest, match="dimensions"):
                await reranker.embed(texts, dimensions=10**5)


async def test_a_name_that_a_local_model_has_belongs_to_it(tmp_path: Path) -> None:
    local = golden_settings("qwen2-labels", tmp_path / "a", alias="m")
    with running_reranker(tmp_path / "b", "bert-embedder", alias="m,other") as url:
        settings = config.override(local, {"upstreams": {"u0": {"url": url}}})
        async with Reranker(settings) as reranker:
            assert [one.name for one in reranker.registry.all] == ["m"]
            result = await reranker.rerank("q", ["a"], model="m")
            assert result.engine_s > 0


async def test_a_front_that_names_itself_says_so(tmp_path: Path, serve: Callable[..., Program]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = tmp_path / "rerankd.toml"
    file.write_text(
        f'upstream_poll_s = 0.1\n[upstreams.me]\nurl = "http://127.0.0.1:{port}"\nmodels = ["m"]\n'
    )
    program = serve("--port", str(port), "--config", str(file))
    url = program.url

    def error() -> str:
        (model,) = httpx.get(f"{url}/v1/status", trust_env=False, timeout=60).json()["remote"]
        return str(model["places"][0]["error"])

    until(lambda: "would never end" in error(), 60)
    answer = post(f"{url}/v1/rerank", {"query": "q", "documents": ["a"], "model": "m"})
    assert answer.status_code == 503 and "Remove [upstreams.me]" in answer.json()["message"]


def test_a_request_that_comes_back_is_refused(tmp_path: Path) -> None:
    """Two servers that pass requests on to each other, before their lists of models have shown it."""
    app = FastAPI()
    passed: list[str] = []
    fronts: list[str] = []

    @app.post("/jina/v1/rerank")
    async def rerank(request: Request) -> Response:
        passed.append(request.headers["x-rerankd-passed"])
        headers = {"x-rerankd-passed": passed[-1] + " another"}
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.post(f"{fronts[0]}/v1/rerank", json=await request.json(), headers=headers)
        return Response(answer.content, answer.status_code)

    _rerankd(app)
    with running(app) as url, running(create_app(settings=front_settings(tmp_path, url))) as first:
        fronts.append(first)
        answer = post(f"{first}/v1/rerank", {"query": "q", "documents": ["a"]})
    assert answer.status_code == UpstreamLoop.status_hint
    assert answer.json()["error"]["type"] == "upstream_loop"
    assert len(passed) == 1 and len(passed[0].split()) == 1


# Servers with faults.


def _rerankd(app: FastAPI, key: str | None = None) -> None:
    """What a rerankd that serves `m` says of itself."""

    @app.get("/health")
    async def health() -> Any:
        engine = {"state": "ready", "starts": 1}
        return {"status": "ok", "model": "m", "engine": engine, "models": [{"model": "m", "engine": engine}]}

    @app.get("/v1/models")
    async def models(request: Request) -> Any:
        if key is not None and request.headers.get("authorization") != f"Bearer {key}":
            return Response('{"error": {"message": "no", "type": "unauthorized", "code": 401}}', 401)
        return {"data": [{"id": "m", "model_name": "m"}]}


class Faulty:
    """A server that answers checks as rerankd does, and requests with `answer`."""

    def __init__(self, answer: Callable[[Request], Any]) -> None:
        self.app = FastAPI()
        self.calls = 0
        _rerankd(self.app)

        @self.app.post("/jina/v1/rerank")
        async def rerank(request: Request) -> Any:
            self.calls += 1
            return await answer(request)


async def not_json(request: Request) -> Any:
    return Response("<html>welcome</html>")


async def too_few_rows(request: Request) -> Any:
    return {"results": [], "meta": {"normalization": "sigmoid"}}


async def endless(request: Request) -> Any:
    async def drip() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 2**16
            await asyncio.sleep(0)

    return StreamingResponse(drip())


async def internal_error(request: Request) -> Any:
    return Response('{"error": {"message": "oh", "type": "internal_error", "code": 500}}', 500)


async def busy(request: Request) -> Any:
    body = '{"error": {"message": "The queue is full.", "type": "overloaded", "code": 429}}'
    return Response(body, 429, {"retry-after": "7"})


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (not_json, EngineError),
        (too_few_rows, EngineError),
        (endless, EngineError),
        (internal_error, EngineError),
        (busy, Overloaded),
    ],
)
async def test_a_faulty_server_costs_no_request_beside_a_good_one(
    fault: Callable[[Request], Any], error: type[Exception], tmp_path: Path
) -> None:
    bad = Faulty(fault)
    with running(bad.app) as wrong, running_reranker(tmp_path / "a", alias="m") as good:
        async with front(tmp_path / "b", wrong, good) as reranker:
            for query in QUERIES[:8]:
                assert len((await reranker.rerank(query, DOCUMENTS)).results) == len(DOCUMENTS)
        assert bad.calls
        async with front(tmp_path / "c", wrong) as reranker:
            with pytest.raises(error, match="The upstream server u0") as caught:
                await reranker.rerank("q", DOCUMENTS)
            if error is Overloaded:
                assert caught.value.retry_after_s == 7  # type: ignore[attr-defined]


async def test_a_server_that_fails_on_every_request_is_left_out(tmp_path: Path) -> None:
    bad = Faulty(internal_error)
    with running(bad.app) as wrong, running_reranker(tmp_path / "a", alias="m") as good:
        async with front(tmp_path / "b", wrong, good, upstream_poll_s=60) as reranker:
            (model,) = reranker.registry.remote_models
            for query in QUERIES:
                await reranker.rerank(query, ["a"])
            # Three in a row, then one after each check, whose delay grows. Its share is half of the queries.
            assert 3 <= bad.calls <= 12
            assert model.state.phase == "ready"


async def test_a_server_that_answers_checks_alone_is_spared(tmp_path: Path) -> None:
    async def never(request: Request) -> Any:
        await asyncio.sleep(60)

    stuck = Faulty(never)
    timeouts = 0
    answering = running_reranker(tmp_path / "a", alias="m")
    with running(stuck.app, timeout_graceful_shutdown=1) as bad, answering as good:
        async with front(tmp_path / "b", bad, good, request_timeout_s=2) as reranker:
            for turn in range(60):
                try:
                    await reranker.rerank(f"query {turn}", ["a"])
                except EngineTimeout:
                    timeouts += 1
            assert timeouts == 3
            assert stuck.calls <= 3 + 2, "once every 5 s, beside another server"


async def test_a_short_timeout_of_a_client_is_no_fault_of_the_server(tmp_path: Path) -> None:
    async def slow(request: Request) -> Any:
        await asyncio.sleep(0.3)
        return {"results": [{"index": 0, "relevance_score": 0.5}], "meta": {"normalization": "sigmoid"}}

    with running(Faulty(slow).app) as url:
        async with front(tmp_path, url) as reranker:
            for turn in range(5):
                with pytest.raises(EngineTimeout):
                    await reranker.answer(RerankRequest(f"query {turn}", ("a",)), timeout_s=0.05)
            (model,) = reranker.registry.remote_models
            assert (model.places[0].phase, model.places[0].failed) == ("ready", 0)


async def test_a_server_that_is_back_answers_as_soon_as_it_is_needed(tmp_path: Path) -> None:
    """After a long outage it is checked rarely; meanwhile the only other server stops."""
    statuses = [502, 200]
    checks = [0, 0]

    def behind_a_proxy(at: int) -> FastAPI:
        async def scored(request: Request) -> Any:
            rows = [{"index": 0, "relevance_score": 0.5}]
            return {"results": rows, "meta": {"normalization": "sigmoid"}}

        app = Faulty(scored).app

        @app.middleware("http")
        async def proxy(request: Request, call_next: Any) -> Any:
            checks[at] += request.url.path == "/health"
            return await call_next(request) if statuses[at] == 200 else Response("down", statuses[at])

        return app

    with running(behind_a_proxy(0)) as one, running(behind_a_proxy(1)) as other:
        async with front(tmp_path, one, other, upstream_poll_s=60) as reranker:
            (model,) = reranker.registry.remote_models
            while checks[0] < 5:  # the next check follows after 2.5 s or more
                await asyncio.sleep(0.01)
            statuses[:] = [200, 502]
            for query in QUERIES[:5]:
                assert len((await reranker.rerank(query, ["a"])).results) == 1
            assert checks[0] == 6
            statuses[:] = [502, 502]
            for query in QUERIES[:5]:
                with pytest.raises((EngineError, EngineUnavailable), match="status 502"):
                    await reranker.rerank(query, ["a"])
            statuses[:] = [502, 200]
            assert len((await reranker.rerank("q", ["a"])).results) == 1
            assert model.state.phase == "ready"


async def test_a_request_that_is_too_large_for_a_server_is_not_repeated(tmp_path: Path) -> None:
    with running_reranker(tmp_path / "a", max_body_bytes=2000) as url:
        async with front(tmp_path / "b", url) as reranker:
            (model,) = reranker.registry.remote_models
            with pytest.raises(PayloadTooLarge, match="larger than"):
                await reranker.rerank("q", ["x" * 3000])
            with pytest.raises(InvalidRequest, match="max_document_characters"):
                await reranker.rerank("q", ["x" * 2 * 10**6])
            assert (model.places[0].answered, model.places[0].failed) == (1, 0)


async def test_a_slow_drip_ends_at_the_deadline(tmp_path: Path) -> None:
    async def drip(request: Request) -> Any:
        async def spaces() -> AsyncIterator[bytes]:
            while True:
                yield b" "
                await asyncio.sleep(0.05)

        return StreamingResponse(spaces())

    with running(Faulty(drip).app) as url:
        async with front(tmp_path, url) as reranker:
            with pytest.raises(EngineTimeout):
                await reranker.answer(RerankRequest("q", ("a",)), timeout_s=0.3)


async def test_a_wrong_key_is_the_servers_fault_and_not_the_clients(tmp_path: Path) -> None:
    with running_reranker(tmp_path / "a", api_key="right", alias="m") as url:
        upstreams = {"u0": {"url": url, "api_key": "wrong", "models": ["m"]}}
        async with Reranker(front_settings(tmp_path / "b", upstreams=upstreams)) as reranker:
            with pytest.raises(EngineUnavailable, match=r"rejects its API key .*\[upstreams.u0\]") as caught:
                await reranker.rerank("q", ["a"])
            assert "wrong" not in str(caught.value)
            file = tmp_path / "key"
            file.write_text("right\n")
            upstreams = {"u0": {"url": url, "api_key_file": file, "models": ["m"]}}
            await reranker.apply(front_settings(tmp_path / "b", upstreams=upstreams))
            (model,) = reranker.registry.remote_models
            while model.state.phase != "ready":
                await asyncio.sleep(0.01)
            assert len((await reranker.rerank("q", ["a"])).results) == 1


async def test_a_certificate_that_is_not_trusted_is_named(tmp_path: Path) -> None:
    files = ("-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem"))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", *files],
        check=True,
        capture_output=True,
    )
    app = FastAPI()
    _rerankd(app)
    files = {"ssl_keyfile": str(tmp_path / "key.pem"), "ssl_certfile": str(tmp_path / "cert.pem")}
    with running(app, **files) as url:
        upstreams = {"u0": {"url": url.replace("http:", "https:"), "models": ["m"]}}
        async with Reranker(front_settings(tmp_path, upstreams=upstreams)) as reranker:
            with pytest.raises(EngineUnavailable, match="certificate is not trusted"):
                await reranker.rerank("q", ["a"])


# Other servers.


def _tei(sizes: list[int], **info: Any) -> FastAPI:
    app = FastAPI()

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.get("/info")
    async def about() -> Any:
        return {"model_id": "BAAI/bge", "max_client_batch_size": 2, "max_input_length": 512, **info}

    @app.post("/rerank")
    async def rerank(body: dict[str, Any]) -> Any:
        sizes.append(len(body["texts"]))
        found = [{"index": at, "score": len(text) / 100} for at, text in enumerate(body["texts"])]
        return sorted(found, key=lambda row: -row["score"])

    @app.post("/embed")
    async def embed(body: dict[str, Any]) -> Any:
        return [[3.0, 4.0] for _ in body["inputs"]]

    return app


async def test_a_tei_server_ranks_in_parts(tmp_path: Path) -> None:
    sizes: list[int] = []
    with running(_tei(sizes)) as url:
        async with front(tmp_path, url) as reranker:
            (model,) = reranker.registry.remote_models
            assert (model.name, model.max_length, model.is_embedder) == ("BAAI/bge", 512, False)
            result = await reranker.rerank("q", ["a", "bbb", " ", "bb", "a"], instruction="i")
    assert [(row.index, row.score) for row in result.results] == [
        (1, 0.03),
        (3, 0.02),
        (0, 0.01),
        (4, 0.01),
        (2, 0.0),
    ]
    assert sorted(sizes) == [1, 2]
    assert result.normalization == other_wire.NORMALIZATION
    assert [one for one in result.warnings if "'instruction' was ignored" in one]


async def test_a_tei_server_embeds(tmp_path: Path) -> None:
    with running(_tei([], model_type={"embedding": {"pooling": "cls"}})) as url:
        async with front(tmp_path, url) as reranker:
            result = await reranker.embed(["a", "b", "c"])
            assert result.vectors.tolist() == [pytest.approx([0.6, 0.8])] * 3
            with pytest.raises(InvalidRequest, match="embedding model"):
                await reranker.rerank("q", ["a"])


async def test_a_cohere_shaped_server_is_found_by_a_trial_request(tmp_path: Path) -> None:
    app = FastAPI()
    asked: list[Any] = []

    @app.post("/v2/rerank")
    async def rerank(request: Request) -> Any:
        if request.headers.get("authorization") != "Bearer key":
            return Response('{"message": "invalid api token"}', 401)
        body = await request.json()
        asked.append(body)
        if body["model"] != "rerank-v3.5":
            return Response('{"message": "model not found"}', 404)
        if body["query"] == "bad":
            return Response('{"message": "the query is bad"}', 400)
        found = [{"index": at, "relevance_score": 1 / (1 + at)} for at in range(len(body["documents"]))]
        return {"id": "1", "results": found, "meta": {"billed_units": {"search_units": 1}}}

    with running(app) as url:
        upstreams = {"cohere": {"url": f"{url}/v2/rerank", "api_key": "key", "models": ["rerank-v3.5"]}}
        async with Reranker(front_settings(tmp_path, upstreams=upstreams)) as reranker:
            probes = len(asked)
            result = await reranker.rerank("q", ["a", "b"], max_tokens_per_doc=7)
            assert [(row.index, row.score) for row in result.results] == [(0, 1.0), (1, 0.5)]
            assert (asked[-1]["max_tokens_per_doc"], result.warnings) == (7, ())
            with pytest.raises(InvalidRequest, match="the query is bad"):
                await reranker.rerank("bad", ["a"])
            assert len(asked) == probes + 2
    upstreams["cohere"]["models"] = []
    with running(app) as url:
        upstreams["cohere"]["url"] = url
        reranker = Reranker(front_settings(tmp_path, upstreams=upstreams))
        with pytest.raises(EngineUnavailable):
            async with reranker:
                await reranker.rerank("q", ["a"])
