"""rerankd inside other programs: in a FastAPI app, and without HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.security import APIKeyHeader, HTTPBasic, HTTPBearer

import rerankd
from rerankd.errors import EngineUnavailable
from support import golden_settings, post, running

BODY = {"query": "a bear", "documents": ["panda", "bread"]}


def get(url: str) -> httpx.Response:
    return httpx.get(url, trust_env=False)


def test_an_app_with_its_own_lifespan_and_routes(tmp_path: Path) -> None:
    """An app with its own lifespan and routes, as in the how-to that this project began from."""
    events: list[str] = []

    @contextlib.asynccontextmanager
    async def theirs(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        events.append("start")
        yield {"their": "state"}
        events.append("stop")

    app = FastAPI(title="theirs", lifespan=rerankd.lifespan(golden_settings("xlmr-head", tmp_path), theirs))
    app.include_router(rerankd.router)

    @app.get("/mine")
    async def mine() -> str:
        return "mine"

    with running(app) as url:
        assert events == ["start"]
        assert get(f"{url}/mine").json() == "mine"
        assert len(post(f"{url}/v1/rerank", BODY).json()["results"]) == 2
        assert post(f"{url}/v1/rerank", {}).status_code == 400
    assert events == ["start", "stop"]


def needs_tenant(x_tenant: Annotated[str, Header(min_length=2)]) -> str:
    return x_tenant


def limited() -> None:
    raise HTTPException(429, "slow down", headers={"Retry-After": "7"})


def forbidden() -> None:
    raise HTTPException(403, "not you")


def closed() -> None:
    raise HTTPException(404, "no such tenant")


class TheirsError(Exception):
    pass


def theirs() -> None:
    raise TheirsError


def broken() -> None:
    raise ZeroDivisionError("an error in the app")


@pytest.fixture(scope="module")
def entered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rerankd.Settings]:
    yield golden_settings("xlmr-head", tmp_path_factory.mktemp("home"))


def test_the_apps_own_auth_validation_and_limits_keep_their_meaning(entered: rerankd.Settings) -> None:
    """401, 403, 422 and 429 of a dependency became 500 with a traceback."""
    cases: list[tuple[Any, dict[str, str], int, str]] = [
        (HTTPBearer(), {}, 401, "Not authenticated"),
        (APIKeyHeader(name="x-key"), {}, 401, "Not authenticated"),
        (HTTPBasic(), {}, 401, "Not authenticated"),
        (forbidden, {}, 403, "not you"),
        (needs_tenant, {}, 422, "x-tenant"),
        (needs_tenant, {"x-tenant": "a"}, 422, "at least 2"),
        (needs_tenant, {"x-tenant": "acme"}, 200, "results"),
        (limited, {}, 429, "slow down"),
        (closed, {}, 404, "no such tenant"),
        (theirs, {}, 418, "theirs"),
    ]
    app = FastAPI(lifespan=rerankd.lifespan(entered))
    for at, (dependency, *_) in enumerate(cases):
        app.include_router(rerankd.router, prefix=f"/{at}", dependencies=[Depends(dependency)])

    @app.exception_handler(TheirsError)
    async def handle(request: Request, error: TheirsError) -> Response:
        return Response("theirs", 418)

    with running(app) as url:
        for at, (dependency, headers, status, says) in enumerate(cases):
            answer = httpx.post(f"{url}/{at}/v1/rerank", json=BODY, headers=headers, trust_env=False)
            assert (answer.status_code, says in answer.text) == (status, True), (dependency, answer.text)
            if status == 429:
                assert answer.headers["retry-after"] == "7"


def test_dependencies_of_the_whole_app_keep_their_meaning_too(entered: rerankd.Settings) -> None:
    app = FastAPI(lifespan=rerankd.lifespan(entered), dependencies=[Depends(needs_tenant)])
    app.include_router(rerankd.router)
    with running(app) as url:
        assert post(f"{url}/v1/rerank", BODY).status_code == 422


def test_an_error_in_the_apps_dependency_reaches_the_apps_handler(entered: rerankd.Settings) -> None:
    app = FastAPI(lifespan=rerankd.lifespan(entered))
    app.include_router(rerankd.router, dependencies=[Depends(broken)])

    @app.exception_handler(ZeroDivisionError)
    async def handle(request: Request, error: ZeroDivisionError) -> Response:
        return Response("reported", 503)

    with running(app) as url:
        assert post(f"{url}/v1/rerank", BODY).text == "reported"


def test_an_error_in_rerankd_is_reported_as_such(
    entered: rerankd.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = FastAPI(lifespan=rerankd.lifespan(entered))
    app.include_router(rerankd.router)

    async def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("an error in rerankd")

    with running(app) as url:
        monkeypatch.setattr(app.state.rerankd, "answer", fail)
        answer = post(f"{url}/v1/rerank", BODY)
        assert answer.status_code == 500
        assert "failed for an unexpected reason" in answer.json()["message"]


def test_create_app_mounted_in_an_app_with_the_lifespan_works(entered: rerankd.Settings) -> None:
    outer, middle = FastAPI(lifespan=rerankd.lifespan(entered)), FastAPI()
    middle.mount("/deep", rerankd.create_app(entered))
    outer.mount("/ml", rerankd.create_app(entered))
    outer.mount("/middle", middle)
    with running(outer) as url:
        for path in ("/ml/v1/rerank", "/ml/rerank/", "/middle/deep/v1/rerank"):
            answer = post(f"{url}{path}", BODY)
            assert answer.status_code == 200, answer.text


def test_create_app_mounted_without_a_lifespan_says_what_to_do(entered: rerankd.Settings) -> None:
    outer = FastAPI()
    outer.mount("/ml", rerankd.create_app(entered))
    with running(outer) as url:
        answer = post(f"{url}/ml/v1/rerank", BODY)
        assert answer.status_code == 500
        assert "pass it to the outermost app" in answer.json()["message"]


def test_create_app_returns_a_complete_app(tmp_path: Path) -> None:
    with running(rerankd.create_app(golden_settings("xlmr-head", tmp_path))) as url:
        assert get(f"{url}/ready").status_code == 200
        assert len(post(f"{url}/rerank", BODY).json()["results"]) == 2
        assert "/v1/rerank" in get(f"{url}/openapi.json").json()["paths"]


@pytest.mark.parametrize("engine", ["llama", "openvino"])
def test_it_runs_on_uvloop(tmp_path: Path, engine: str) -> None:
    app = rerankd.create_app(golden_settings("xlmr-head", tmp_path, engine=engine))
    with running(app, loop="uvloop") as url:
        assert len(post(f"{url}/rerank", BODY).json()["results"]) == 2


def test_a_router_without_its_lifespan_says_so() -> None:
    app = FastAPI()
    app.include_router(rerankd.router)
    with running(app) as url:
        answer = post(f"{url}/v1/rerank", BODY)
        assert answer.status_code == 500
        assert "lifespan" in answer.json()["message"]


def test_without_an_event_loop(tmp_path: Path) -> None:
    with rerankd.SyncReranker(golden_settings("xlmr-head", tmp_path)) as reranker:
        result = reranker.rerank("a bear", ["panda", "bread"], top_n=1, return_documents=True)
        assert result.results[0].text in ("panda", "bread")


def test_a_sync_reranker_that_cannot_start_leaves_no_thread(tmp_path: Path) -> None:
    settings = golden_settings("xlmr-head", tmp_path, llama_path="/bin/false")
    with pytest.raises(EngineUnavailable, match="exited with code 1"), rerankd.SyncReranker(settings):
        pass


def test_public_names_are_found() -> None:
    for name in rerankd.__all__:
        assert getattr(rerankd, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = rerankd.nothing
