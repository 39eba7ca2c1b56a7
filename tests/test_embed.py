"""rerankd inside other programs: in somebody's FastAPI app, and without HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

import rerankd
from rerankd.errors import EngineUnavailable
from support import golden_settings, post, running

BODY = {"query": "a bear", "documents": ["panda", "bread"]}


def get(url: str) -> httpx.Response:
    return httpx.get(url, trust_env=False)


def test_the_notes_own_app(tmp_path: Path) -> None:
    """An app with a lifespan and routes of its own, as the how-to that this project began from has it."""
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


def test_create_app_is_a_whole_app(tmp_path: Path) -> None:
    with running(rerankd.create_app(golden_settings("xlmr-head", tmp_path))) as url:
        assert get(f"{url}/ready").status_code == 200
        assert len(post(f"{url}/rerank", BODY).json()["results"]) == 2
        assert "/v1/rerank" in get(f"{url}/openapi.json").json()["paths"]


@pytest.mark.parametrize("engine", ["llama", "openvino"])
def test_it_runs_on_uvloop_which_uvicorn_takes_where_it_is_installed(tmp_path: Path, engine: str) -> None:
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
    with pytest.raises(EngineUnavailable, match="exit code 1"), rerankd.SyncReranker(settings):
        pass


def test_public_names_are_found() -> None:
    for name in rerankd.__all__:
        assert getattr(rerankd, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = rerankd.nothing
