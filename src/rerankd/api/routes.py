"""The path table, the choice of a dialect, and the one rerank handler.

All paths speak all dialects that differ in their bodies, since apps that call one service by another's path
are many: Cherry Studio sends TEI's body to /v1/rerank, Voyage's and Cohere's old SDKs use /rerank. Only where
bodies are the same does the path tell: /api/rerank is Ollama's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from rerankd.api import admin, jina, limits, nvidia, ollama, ops, status, tei, vllm, voyage
from rerankd.api.answer import (
    RenderError,
    Route,
    facts,
    json_response,
    plain_path,
    request_id,
    reranker_of,
    speaks,
)
from rerankd.api.auth import refusal
from rerankd.api.body import read_json
from rerankd.domain import RerankRequest, RerankResult
from rerankd.errors import RerankdError
from rerankd.service import Reranker

# What is read of the body of a caller who is not let in, to answer in the dialect it speaks.
_REFUSED_BYTES = 2**16

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Speaker(Protocol):
    """What can say an error."""

    @property
    def __name__(self) -> str: ...
    @property
    def render_error(self) -> RenderError: ...


Spoken = TypeVar("Spoken", bound=Speaker)


class Dialect(Speaker, Protocol):
    """One way to ask and to answer; each is a pure module."""

    @property
    def Body(self) -> type[BaseModel]: ...
    @property
    def parse(self) -> Callable[[dict[str, Any]], RerankRequest]: ...
    @property
    def render(self) -> Callable[[RerankResult, str], Any]: ...


def choose_dialect(path: str, body: dict[str, Any]) -> Dialect:
    """The dialect of a request, by what only that dialect sends; by the path where nothing tells."""
    if body.get("documents") is None:
        if "texts" in body:
            return tei
        if "passages" in body or path.endswith("/ranking"):
            return nvidia
    if "truncation" in body or ("top_k" in body and "top_n" not in body):
        return voyage
    if path.endswith("/api/rerank"):
        return ollama
    return jina


async def rerank(request: Request) -> Response:
    """Every dialect but vLLM's /score."""
    reranker = reranker_of(request)
    dialect, value = await _read(request, reranker, choose_dialect)
    timeout_s = limits.wanted_timeout_s(request)
    asked = dialect.parse(value)
    entry = reranker.fleet.entry(asked.model)
    request.state.model = entry.name
    result = await reranker.answer(asked, timeout_s=timeout_s)
    return json_response(
        dialect.render(result, request_id(request)),
        headers=facts(
            entry.name,
            total_s=result.total_s,
            queue_s=result.queue_s,
            engine_s=result.engine_s,
        ),
    )


async def score(request: Request) -> Response:
    """vLLM's /score: one request, or several where the pairs have different queries."""
    started = time.perf_counter()
    reranker = reranker_of(request)
    dialect, value = await _read(request, reranker, lambda *_: vllm)
    timeout_s = limits.wanted_timeout_s(request)
    requests = dialect.parse(value)
    entry = reranker.fleet.entry(requests[0].model)
    request.state.model = entry.name
    results = await reranker.answer_all(requests, timeout_s=timeout_s)
    return json_response(
        dialect.render(results, request_id(request)),
        headers=facts(
            entry.name,
            total_s=time.perf_counter() - started,
            queue_s=sum(result.queue_s for result in results),
            engine_s=sum(result.engine_s for result in results),
        ),
    )


async def _read(
    request: Request, reranker: Reranker, choose: Callable[[str, dict[str, Any]], Spoken]
) -> tuple[Spoken, dict[str, Any]]:
    """The body and its dialect, which errors are rendered in from here on.

    Raises Unauthorized, PayloadTooLarge or InvalidRequest. A refused caller's body is read too, within
    bounds: what it says tells how to refuse.
    """
    settings = reranker.settings
    path = plain_path(request.scope["path"])  # not .url, which a malformed Host breaks
    speaks(request, choose(path, {}).render_error)
    request.state.dialect = "unknown"
    refused = refusal(request, reranker.keys)
    try:
        value = await read_json(request, settings.max_body_bytes if refused is None else _REFUSED_BYTES)
    except RerankdError as error:
        raise refused or error from None
    dialect = choose(path, value)
    request.state.dialect = dialect.__name__.rpartition(".")[2]
    speaks(request, dialect.render_error)
    if refused is not None:
        raise refused
    return dialect, value


router = APIRouter(route_class=Route)
router.include_router(admin.router)
router.include_router(ops.router)
router.include_router(status.router)


def _add(paths: Sequence[str], handler: Handler, spoken: Sequence[Any], summary: str, answer: Any) -> None:
    """Serve `handler` at all `paths`; only the first of them is in the reference."""
    bodies = [dialect.Body.model_json_schema() for dialect in spoken]
    for path in paths:
        router.add_api_route(
            path,
            handler,
            methods=["POST"],
            summary=summary,
            include_in_schema=path == paths[0],
            responses={
                200: {"model": answer, "description": "the scores"},
                **ops.errors(*(dialect.ErrorAnswer for dialect in spoken)),
            },
            openapi_extra={
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {"schema": bodies[0] if len(bodies) == 1 else {"anyOf": bodies}}
                    },
                }
            },
        )


_add(
    ("/v1/rerank", "/rerank", "/v2/rerank", "/v1/reranking", "/reranking"),
    rerank,
    (jina, tei, voyage),
    "Order documents by how well they answer a query",
    jina.Answer | list[tei.Row] | voyage.Answer,
)
_add(("/api/rerank",), rerank, (ollama,), "The same, shaped as Ollama's endpoints are", ollama.Answer)
_add(("/v1/ranking", "/ranking"), rerank, (nvidia,), "The same as NVIDIA's NIM has it", nvidia.Answer)
_add(("/v1/score", "/score"), score, (vllm,), "Scores of pairs, as vLLM has it", vllm.Answer)
