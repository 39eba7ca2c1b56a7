"""Ollama's endpoints, keep_alive, and names as Ollama's clients write them, with real engines."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from rerankd.api.dialects.keep_alive import keep_alive_s
from rerankd.config import Settings
from rerankd.service import Reranker
from rerankd.serving.model_names import plain_name
from support import GOLDEN

ASKED: dict[str, Any] = {"query": "which bear?", "documents": ["a panda", "bread"]}


@pytest.fixture(scope="module")
async def reranker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Reranker]:
    """A service with two models; the second one has an alias."""
    models = {
        "First": {"ref": str(GOLDEN / "xlmr-head.gguf")},
        "org/second:q8_0": {"ref": str(GOLDEN / "bert-embedder.gguf"), "aliases": ["other"]},
    }
    settings = Settings.model_validate({"models": models, "home": tmp_path_factory.mktemp("home")})
    async with Reranker(settings) as made:
        yield made


async def loaded(client: httpx.AsyncClient) -> dict[str, Any]:
    """What /api/ps lists, by name."""
    rows = (await client.get("/api/ps")).json()["models"]
    return {row["name"]: row for row in rows}


def left_s(row: dict[str, Any]) -> float:
    expires = datetime.fromisoformat(row["expires_at"])
    return (expires - datetime.now(expires.tzinfo)).total_seconds()


async def test_names_are_listed_with_a_tag(client: httpx.AsyncClient) -> None:
    rows = (await client.get("/api/tags")).json()["models"]
    assert [row["name"] for row in rows] == ["First:latest", "org/second:q8_0", "other:latest"]
    assert all(row["model"] == row["name"] and row["size"] > 0 for row in rows)
    assert rows[0]["details"]["family"] == "bert" and rows[0]["details"]["format"] == "gguf"
    assert (await client.get("/api/version")).json()["version"]
    assert (await client.head("/")).status_code == 200  # `ollama list` asks this first


@pytest.mark.parametrize(
    ("sent", "served"),
    [
        ("First", "First"),
        ("first", "First"),
        ("FIRST:LATEST", "First"),
        ("First:latest", "First"),
        ("ORG/second:Q8_0", "org/second:q8_0"),
        ("Other:latest", "org/second:q8_0"),
    ],
)
async def test_a_name_is_found_without_regard_to_case_and_with_latest(
    client: httpx.AsyncClient, sent: str, served: str
) -> None:
    answer = await client.post("/v1/rerank", json={**ASKED, "model": sent})
    assert answer.headers["x-rerankd-model"] == served
    assert answer.json()["model"] == sent
    assert (await client.get(f"/v1/models/{sent}")).json()["model_name"] == served
    assert (await client.post("/api/show", json={"model": sent})).status_code == 200


async def test_with_several_models_an_unknown_name_is_an_error(client: httpx.AsyncClient) -> None:
    for path, more in (("/api/rerank", ASKED), ("/api/show", {}), ("/api/generate", {})):
        answer = await client.post(path, json={**more, "model": "first:7b"})
        assert answer.status_code == 404
        assert "Known model names: First, org/second:q8_0, other." in answer.json()["error"]


def test_the_exact_name_comes_first() -> None:
    assert plain_name(" Some:LATEST ") == "some"
    assert plain_name("some:q8_0") != plain_name("some")


async def test_show(client: httpx.AsyncClient) -> None:
    shown = (await client.post("/api/show", json={"name": "other"})).json()
    assert shown["capabilities"] and shown["details"]["family"] == "bert"
    assert shown["model_info"]["bert.context_length"] > 0
    assert "method embedding" in shown["parameters"]


async def test_keep_alive_of_a_request_replaces_idle_unload_s(client: httpx.AsyncClient) -> None:
    await client.post("/api/rerank", json={**ASKED, "model": "first"})
    assert left_s((await loaded(client))["First:latest"]) > 1e9  # never: idle_unload_s is not set
    await client.post("/api/rerank", json={**ASKED, "model": "first", "keep_alive": "5m"})
    assert 290 < left_s((await loaded(client))["First:latest"]) <= 300
    # Without the option, the next request changes nothing.
    await client.post("/v1/rerank", json={**ASKED, "model": "first"})
    assert 290 < left_s((await loaded(client))["First:latest"]) <= 300
    await client.post("/api/generate", json={"model": "first", "keep_alive": -1})
    assert left_s((await loaded(client))["First:latest"]) > 1e9


async def test_keep_alive_0_unloads_after_the_request(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/rerank", json={**ASKED, "model": "other", "keep_alive": 0})
    assert len(answer.json()["results"]) == 2
    assert "org/second:q8_0" not in await loaded(client)
    assert "First:latest" in await loaded(client)


async def test_generate_without_a_prompt_loads_and_unloads(client: httpx.AsyncClient) -> None:
    done = (await client.post("/api/generate", json={"model": "other"})).json()
    assert (done["done"], done["done_reason"], done["model"]) == (True, "load", "other")
    assert "org/second:q8_0" in await loaded(client)
    done = (await client.post("/api/generate", json={"model": "other", "keep_alive": "0s"})).json()
    assert done["done_reason"] == "unload"
    assert "org/second:q8_0" not in await loaded(client)
    done = (await client.post("/api/chat", json={"model": "other", "messages": []})).json()
    assert done["message"] == {"role": "assistant", "content": ""}


async def test_generate_with_a_prompt_is_an_error(client: httpx.AsyncClient) -> None:
    for path, sent in (("/api/generate", {"prompt": "hi"}), ("/api/chat", {"messages": [{"role": "user"}]})):
        answer = await client.post(path, json={"model": "first", **sent})
        assert answer.status_code == 400 and "does not support generate or chat" in answer.json()["error"]


async def test_a_path_that_does_not_exist_has_ollamas_error(client: httpx.AsyncClient) -> None:
    for path in ("/api/pull", "/api/delete"):
        answer = await client.post(path, json={"model": "first"})
        assert answer.status_code == 404 and f"The path {path} does not exist" in answer.json()["error"]
    assert "message" in (await client.post("/v1/pull", json={})).json()["error"]
    assert (await client.post("/health", json={})).status_code == 405


async def test_an_invalid_keep_alive_is_an_error(client: httpx.AsyncClient) -> None:
    for path in ("/api/rerank", "/api/generate"):
        answer = await client.post(path, json={**ASKED, "model": "first", "keep_alive": "long"})
        assert answer.status_code == 400 and "a duration such as" in answer.json()["error"]


async def test_the_only_model_keeps_the_name_that_the_client_sends(tmp_path: Path) -> None:
    settings = Settings(model=(str(GOLDEN / "xlmr-head.gguf"),), home=tmp_path)
    async with Reranker(settings) as reranker:
        result = await reranker.rerank("which bear?", ["a panda"], model="BAAI/some-reranker:latest")
        assert result.model == "BAAI/some-reranker:latest"


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        (0, 0),
        (2.5, 2.5),
        (-1, math.inf),
        ("-1m", math.inf),
        ("0", 0),
        ("300", 300),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("+10s", 10),
        ("250ms", 0.25),
    ],
)
def test_durations(sent: object, seconds: float) -> None:
    assert keep_alive_s(sent) == seconds


@pytest.mark.parametrize("sent", ["", "m", "5 m", "5d", "1m-1s", "nan", math.nan, True, None, [], "٣s"])
def test_invalid_durations(sent: object) -> None:
    with pytest.raises(ValueError, match="a duration such as"):
        keep_alive_s(sent)
