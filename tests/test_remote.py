"""The client of other rerank servers."""

from __future__ import annotations

import math
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Request

from rerankd.errors import RemoteError
from rerankd.remote_client import Remote, Scores, Shape, body, read, shapes
from support import running


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", ("/v1/rerank documents", "/rerank documents", "/v2/rerank documents", "/rerank texts")),
        ("/v1", ("/v1/rerank documents", "/rerank documents", "/v2/rerank documents", "/rerank texts")),
        (
            "/a/v1/",
            ("/a/v1/rerank documents", "/a/rerank documents", "/a/v2/rerank documents", "/a/rerank texts"),
        ),
        ("/x/rerank", ("/x/rerank documents", "/x/rerank texts")),
    ],
)
def test_shapes_to_try_for_a_path(path: str, expected: tuple[str, ...]) -> None:
    assert tuple(f"{shape.path} {shape.key}" for shape in shapes(path)) == expected


def test_bodies() -> None:
    assert body(Shape("/rerank", "texts"), "q", ("a",), None) == {
        "query": "q",
        "texts": ["a"],
        "truncate": True,
    }
    assert body(Shape("/v1/rerank", "documents"), "q", ("a",), "m") == {
        "query": "q",
        "documents": ["a"],
        "model": "m",
    }


@pytest.mark.parametrize(
    ("answer", "scores"),
    [
        (
            {"results": [{"index": 1, "relevance_score": 2}, {"index": 0, "relevance_score": -1.5}]},
            (-1.5, 2.0),
        ),
        ([{"index": 1, "score": 0.25}, {"index": 0, "score": 1}], (1.0, 0.25)),
    ],
)
def test_responses_of_both_formats_are_read(answer: Any, scores: tuple[float, ...]) -> None:
    assert read(answer, 2).values == scores


@pytest.mark.parametrize(
    "answer",
    [
        {"results": [{"index": 0, "relevance_score": 1}]},
        {"results": [{"index": 5, "relevance_score": 1}]},
        {"results": [{"index": 0}]},
        {"results": [{"index": 0, "relevance_score": None}]},
        {"results": [{"index": at, "relevance_score": 1} for at in (0, 1, -1)]},
        {"results": 3},
        {},
        [1, 2],
        None,
    ],
)
def test_responses_without_all_scores_are_rejected(answer: Any) -> None:
    with pytest.raises(RemoteError):
        read(answer, 2)


def test_the_order_is_by_score_and_ties_keep_theirs() -> None:
    assert Scores((0.5, 0.9, 0.5, -math.inf)).order() == [1, 0, 2, 3]


def test_equal_scores_keep_the_order_in_which_the_server_ranked_them() -> None:
    """A server that ranks by raw values, as rerankd does, knows more than its scores show."""
    rows = [{"index": index, "relevance_score": score} for index, score in ((2, 1), (0, 1), (3, 1), (1, 0))]
    assert read({"results": rows}, 4).order() == [2, 0, 3, 1]


async def test_a_tei_server_is_detected_and_gets_requests_of_its_maximum_size() -> None:
    sizes: list[int] = []
    app = FastAPI()

    @app.get("/info")
    async def info() -> dict[str, int]:
        return {"max_client_batch_size": 3}

    @app.post("/rerank")
    async def rerank(body: dict[str, Any]) -> list[dict[str, Any]]:
        if "texts" not in body:
            raise HTTPException(422, "missing field `texts`")
        sizes.append(len(body["texts"]))
        return [{"index": at, "score": len(text)} for at, text in enumerate(body["texts"])]

    with running(app) as url:
        async with Remote(url) as server:
            assert (server.shape, server.most_documents) == (Shape("/rerank", "texts"), 3)
            sizes.clear()
            scores = await server.rerank("q", ["x" * size for size in range(1, 8)])
    assert scores.values == (1, 2, 3, 4, 5, 6, 7)
    assert sorted(sizes) == [1, 3, 3]


async def test_the_time_budget_of_a_rerankd_server_is_disabled() -> None:
    asked: list[str | None] = []
    app = FastAPI()

    @app.post("/v1/rerank")
    async def rerank(request: Request) -> dict[str, Any]:
        asked.append(request.headers.get("x-rerank-budget-ms"))
        documents = (await request.json())["documents"]
        return {"results": [{"index": at, "relevance_score": 1} for at in range(len(documents))]}

    with running(app) as url:
        async with Remote(url) as server:
            await server.rerank("q", ["a"])
    assert asked == ["0", "0"]


async def test_a_server_without_rerank_endpoint_is_reported_with_its_responses() -> None:
    with (
        running(FastAPI()) as url,
        pytest.raises(
            RemoteError,
            match=r"accepts none of the known rerank requests(.|\n)*/v1/rerank with documents.*404",
        ),
    ):
        async with Remote(url):
            pass
    with pytest.raises(RemoteError, match=r"The request to .* failed"):
        async with Remote(url):
            pass
