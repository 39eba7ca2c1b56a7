"""POST /v1/rerank/batch with a real engine: answers in order, errors apart, one deadline."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from rerankd.errors import EngineTimeout, InvalidRequest
from rerankd.many_requests import answer_each
from rerankd.service import Reranker
from support import asking, golden_settings

ONE = {"query": "which bear?", "documents": ["bread", "a panda"]}
TWO = {"query": "what is bread?", "documents": ["bread", "a panda", "a polar bear"]}


@pytest.fixture(scope="module")
async def reranker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Reranker]:
    settings = golden_settings("xlmr-head", tmp_path_factory.mktemp("home"), max_documents=100)
    async with Reranker(settings) as made:
        yield made


async def send(client: httpx.AsyncClient, requests: Any, **more: Any) -> httpx.Response:
    return await client.post("/v1/rerank/batch", json={"requests": requests, **more})


def scores(answer: dict[str, Any]) -> list[tuple[int, Any]]:
    return [(row["index"], pytest.approx(row["relevance_score"], abs=1e-5)) for row in answer["results"]]


async def test_each_request_gets_the_answer_it_would_get_alone(client: httpx.AsyncClient) -> None:
    answer = (await send(client, [ONE, TWO, {**TWO, "top_n": 1}])).json()
    assert answer["object"] == "list" and answer["id"].startswith("rerank-")
    alone = [(await client.post("/v1/rerank", json=one)).json() for one in (ONE, TWO)]
    first, second, third = answer["responses"]
    assert [scores(first), scores(second)] == [scores(one) for one in alone]
    assert scores(third) == scores(second)[:1]
    assert len({one["id"] for one in answer["responses"]}) == 3
    assert first["usage"] == alone[0]["usage"]


async def test_errors_stand_beside_answers(client: httpx.AsyncClient) -> None:
    wrong = [{"query": "", "documents": ["a"]}, {"query": "q"}, {**ONE, "top_n": "many"}]
    answer = await send(client, [wrong[0], ONE, *wrong[1:]])
    assert answer.status_code == 200
    empty, good, missing, option = answer.json()["responses"]
    assert len(good["results"]) == 2
    assert empty["status"] == missing["status"] == option["status"] == 400
    assert empty["error"]["type"] == "invalid_request" and "query is empty" in empty["error"]["message"]
    assert "'documents' is missing" in missing["error"]["message"]
    assert "'top_n'" in option["error"]["message"]


async def test_fields_beside_the_list_are_defaults(client: httpx.AsyncClient) -> None:
    answer = await send(client, [ONE, {**ONE, "return_documents": False}], return_documents=True, model="m")
    first, second = answer.json()["responses"]
    assert first["model"] == second["model"] == "m"
    assert "document" in first["results"][0] and "document" not in second["results"][0]


async def test_each_request_has_its_own_dialect(client: httpx.AsyncClient) -> None:
    answer = await send(client, [{"query": "q", "texts": ["a", "b"]}, {**ONE, "top_k": 1}])
    tei, voyage = answer.json()["responses"]
    assert {"index", "score"} == set(tei[0]) and len(voyage["data"]) == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, '"requests" must be a list'),
        ({"requests": []}, '"requests" must be a list'),
        ({"requests": ONE}, '"requests" must be a list'),
        ({"requests": [ONE, "x"]}, "Request 1 is"),
        ({"requests": [{"query": "q", "documents": ["a"] * 60}] * 2}, "has 120 documents or more; the limit"),
    ],
)
async def test_the_whole_can_be_invalid(client: httpx.AsyncClient, body: dict[str, Any], says: str) -> None:
    answer = await client.post("/v1/rerank/batch", json=body)
    assert answer.status_code == 400 and says in answer.json()["message"]


async def test_a_small_body_cant_stand_for_a_billion_documents(client: httpx.AsyncClient) -> None:
    answer = await send(client, [{}] * 30_000, query="q", documents=["a"] * 50_000)
    assert answer.status_code == 400
    assert "has 50000 documents or more; the limit is 100" in answer.json()["message"]
    answer = await send(client, [{}] * 300_000)
    assert answer.status_code == 400 and "has 101 documents or more" in answer.json()["message"]


async def test_more_requests_than_run_at_once(client: httpx.AsyncClient) -> None:
    asked = [{"query": f"q{at}", "documents": [f"document {at}"]} for at in range(100)]
    answers = (await send(client, asked)).json()["responses"]
    assert all(len(one["results"]) == 1 for one in answers)
    alone = (await client.post("/v1/rerank", json=asked[77])).json()
    assert scores(answers[77]) == scores(alone)


async def test_the_deadline_is_that_of_the_whole(client: httpx.AsyncClient, reranker: Reranker) -> None:
    from rerankd.domain import RerankRequest

    requests = [RerankRequest(f"q{at}", ("a " * 300,) * 20) for at in range(5)]
    outcomes = await answer_each(reranker, requests, timeout_s=1e-3)
    assert all(isinstance(one, EngineTimeout) for one in outcomes)
    with pytest.raises(InvalidRequest):
        await answer_each(reranker, [*requests, RerankRequest("q", ("a",))])


async def test_the_batch_needs_the_key(tmp_path: Any) -> None:
    settings = golden_settings("xlmr-head", tmp_path, api_key="secret")
    async with Reranker(settings) as reranker, asking(reranker) as http:
        assert (await send(http, [ONE])).status_code == 401
        http.headers["authorization"] = "Bearer secret"
        assert (await send(http, [ONE])).status_code == 200
