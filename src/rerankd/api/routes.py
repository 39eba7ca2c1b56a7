"""The choice of a dialect, the one rerank handler, and the paths that it is served at (see paths.py).

All paths speak all dialects that differ in their bodies, since apps that call one service by another's path
are many: Cherry Studio sends TEI's body to /v1/rerank, Voyage's and Cohere's old SDKs use /rerank.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from fastapi import APIRouter, Request, Response

from rerankd.api import admin, health, limits, ollama_models, options, paths, status
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
from rerankd.api.dialects import (
    dashscope,
    jina,
    lenient,
    mixedbread,
    nvidia,
    ollama,
    tei,
    vllm,
    voyage,
    weaviate,
)
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
    def Body(self) -> type[lenient.Body]: ...
    @property
    def RULES(self) -> options.Rules: ...
    @property
    def parse(self) -> Callable[[dict[str, Any]], RerankRequest]: ...
    @property
    def render(self) -> Callable[[RerankResult, str], Any]: ...


NAMED: dict[str, Dialect] = {"cohere": jina, "jina": jina, "tei": tei, "voyage": voyage}
"""First parts of a path that name the dialect, such as /voyage/v1/rerank."""


def choose_dialect(path: str, body: dict[str, Any]) -> Dialect:
    """The dialect of a request: what the path names, else what only one dialect sends, else the path's own.
    Null is the same as not sent."""
    for part in path.split("/"):
        if part in NAMED:
            return NAMED[part]
    sent = {name for name, value in body.items() if value is not None}
    if isinstance(body.get("input"), dict):
        return dashscope
    if "documents" not in sent:
        if "texts" in sent:
            return tei
        if "passages" in sent:
            return nvidia
        if "input" in sent:
            return mixedbread
        if path.endswith(tuple(paths.NVIDIA)):
            return nvidia
        if path.endswith(tuple(paths.DASHSCOPE)):
            return dashscope
    if "property" in sent:
        return weaviate
    if path.endswith(tuple(paths.OLLAMA)):
        return ollama
    if "top_n" not in sent and sent & {"truncation", "top_k"}:
        return voyage
    return jina


async def rerank(request: Request) -> Response:
    """Every dialect but vLLM's /score."""
    reranker = reranker_of(request)
    dialect, value = await _read(request, reranker, choose_dialect)
    timeout_s = limits.wanted_timeout_s(request)
    asked = dialect.parse(value)
    entry = reranker.registry.entry(asked.model)
    request.state.model = entry.name
    result = await reranker.answer(asked, timeout_s=timeout_s)
    return json_response(
        dialect.render(result, request_id(request)),
        headers=facts(
            entry.name,
            result.warnings,
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
    entry = reranker.registry.entry(requests[0].model)
    request.state.model = entry.name
    results = await reranker.answer_all(requests, timeout_s=timeout_s)
    return json_response(
        dialect.render(results, request_id(request)),
        headers=facts(
            entry.name,
            vllm.warnings(results),
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
router.include_router(health.router)
router.include_router(ollama_models.router)
router.include_router(status.router)


def _add(served: Sequence[str], handler: Handler, spoken: Sequence[Any], summary: str, answer: Any) -> None:
    """Serve `handler` at all paths of `served`; only the first of them is in the reference."""
    bodies = [body_schema(dialect) for dialect in spoken]
    for path in served:
        router.add_api_route(
            path,
            handler,
            methods=["POST"],
            summary=summary,
            include_in_schema=path == served[0],
            responses={
                200: {"model": answer, "description": "the scores"},
                **health.errors(*(dialect.ErrorAnswer for dialect in spoken)),
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


def body_schema(dialect: Dialect) -> dict[str, Any]:
    """The JSON schema of a dialect's body, with the options and an example."""
    schema = dialect.Body.model_json_schema()
    schema["properties"] |= options.schema(dialect.RULES)
    return {**schema, "example": dialect.Body.EXAMPLE}


_add(
    (*paths.RERANK, *(path for prefix in NAMED for path in paths.prefixed(prefix))),
    rerank,
    (jina, tei, voyage, mixedbread, weaviate),
    "Order documents by how well they answer a query",
    jina.Answer | list[tei.Row] | voyage.Answer | mixedbread.Answer | weaviate.Answer,
)
_add(tuple(paths.OLLAMA), rerank, (ollama,), "The same, shaped as Ollama's endpoints are", ollama.Answer)
_add(tuple(paths.NVIDIA), rerank, (nvidia,), "The same as NVIDIA's NIM has it", nvidia.Answer)
_add(tuple(paths.DASHSCOPE), rerank, (dashscope,), "The same as DashScope has it", dashscope.Answer)
_add(tuple(paths.SCORE), score, (vllm,), "Scores of pairs, as vLLM has it", vllm.Answer)
