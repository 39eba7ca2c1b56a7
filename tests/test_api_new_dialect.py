"""A new dialect needs one file and one entry in an ordered tuple."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from fastapi import FastAPI
from pydantic import Field
from typing_extensions import TypedDict

import rerankd
from rerankd.api import routes
from rerankd.api.dialects import table
from rerankd.api.dialects.dialect import Dialect, Question
from rerankd.api.dialects.lenient import Texts
from rerankd.api.dialects.option_rules import Rules
from rerankd.errors import RerankdError
from rerankd.rerank_result import RerankResult
from rerankd.service import Reranker
from support import golden_settings

_PACKAGE = Path(rerankd.__file__).parent


class ToyBody(Question):
    """The request body."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"query": "a bear", "toys": ["bread", "a panda"]}

    documents: Texts = Field(description="The documents to score.", validation_alias="toys")


class ToyAnswer(TypedDict):
    best: list[int]
    by: str


def render(result: RerankResult, request_id: str) -> ToyAnswer:
    return {"best": [scored.index for scored in result.results], "by": request_id}


class ToyError(TypedDict):
    broken: str


def render_error(error: RerankdError) -> ToyError:
    return {"broken": error.message}


TOY = Dialect(
    name="toy",
    title="Toys",
    recognised_by="`toys`",
    answers_with="`best`",
    recognises=lambda sent, on_own_path: on_own_path or "toys" in sent,
    paths={"/toy/shop": "the toy shop"},
    prefixes=("toys",),
    body=ToyBody,
    rules=Rules(own=("limit",)),
    render=render,
    render_error=render_error,
)


async def test_a_dialect_in_the_tuple_is_served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(table, "DIALECTS", (TOY, *table.DIALECTS))
    app = FastAPI()
    app.include_router(routes.all_routes())
    asked = {"query": "which bear lives in china?", "toys": ["bread", "the panda is a bear"]}
    async with Reranker(golden_settings("xlmr-head", tmp_path)) as reranker:
        app.state.rerankd = reranker
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here", timeout=60) as client:
            for path in ("/toy/shop", "/v1/rerank", "/toys/v1/rerank"):
                answer = await client.post(path, json={**asked, "limit": 1}, headers={"x-request-id": "it"})
                assert answer.status_code == 200, answer.text
                assert len(answer.json()["best"]) == 1 and answer.json()["by"] == "it"
                refused = await client.post(path, json={"toys": []})
                assert refused.status_code == 400
                assert "'query' is missing" in refused.json()["broken"] and "panda" in refused.text
            counted = (await client.get("/metrics")).text
            described = (await client.get("/openapi.json")).json()
    assert 'rerankd_requests_total{dialect="toy"' in counted
    operation = described["paths"]["/toy/shop"]["post"]
    assert operation["summary"] == "Rank documents, in the dialect of Toys"
    (schema,) = (one["schema"] for one in operation["requestBody"]["content"].values())
    assert {"query", "toys", "limit"} <= set(schema["properties"]) and schema["example"] == ToyBody.EXAMPLE
    assert "/toy/shop" in table.served() and "POST /toy/shop?" in table.hint("/toy/shops")


def test_no_other_file_names_a_dialect() -> None:
    folder = _PACKAGE / "api" / "dialects"
    tools = {
        "__init__",
        "dialect",
        "lenient",
        "options",
        "option_rules",
        "type_errors",
        "table",
        "images",
        "keep_alive",
    }
    dialects = {path.stem for path in folder.glob("*.py")} - tools
    assert dialects == {one.name for one in table.DIALECTS}
    outside = {path for path in _PACKAGE.rglob("*.py") if path.parent != folder or path.stem in tools}
    naming = {path.name for path in outside if dialects & set(_imported(path))}
    # Endpoints of one dialect alone answer errors in it, as do missing ones below /api.
    assert naming == {"table.py", "app.py", "batch.py", "embeddings.py", "ollama_models.py"}


def _imported(path: Path) -> Iterator[str]:
    """The names that a file imports from the folder of the dialects."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rerankd.api.dialects"):
            yield from (str(node.module).rpartition(".")[2], *(one.name for one in node.names))
