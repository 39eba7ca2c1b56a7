"""What a client asks of the models: which are served, and how one of them reads."""

from __future__ import annotations

from typing import Literal, NotRequired

from fastapi import APIRouter, Request, Response
from typing_extensions import TypedDict

from rerankd import __version__
from rerankd.api.openapi import errors
from rerankd.api.origin import check_change
from rerankd.api.responses import Route, json_response, reranker_of, reranker_with_key
from rerankd.errors import NoSuchPath
from rerankd.serving.model_names import Entry
from rerankd.serving.pending_model import PendingModel
from rerankd.serving.served_model import ServedModel

router = APIRouter(route_class=Route)


class ModelRow(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    model_type: Literal["rerank"]
    model_name: str


class Unavailable(TypedDict):
    """A model of the settings that can't be asked, and why."""

    id: str
    reason: str


class ModelList(TypedDict):
    """`data` holds what may be asked; `unavailable`, only where there is one, what was refused."""

    object: Literal["list"]
    data: list[ModelRow]
    unavailable: NotRequired[list[Unavailable]]


@router.get(
    "/v1/models",
    summary="The models that are served",
    responses={200: {"model": ModelList}, **errors(401)},
)
async def models(request: Request) -> Response:
    reranker = reranker_with_key(request)
    registry = reranker.registry
    # A client may keep this list and offer all of it to people: what was refused is not among it.
    refused = [one for one in registry.pending if one.error is not None]
    usable = [entry for entry in registry.entries if entry not in refused]
    body: ModelList = {
        "object": "list",
        "data": [_row(entry, name) for entry in usable for name in entry.names],
    }
    if refused:
        body["unavailable"] = [{"id": one.name, "reason": one.refusal().message} for one in refused]
    return json_response(body)


@router.get(
    "/v1/models/{name:path}",
    summary="One model, by any name it is taken for",
    responses={200: {"model": ModelRow}, **errors(401, 404, 422, 503)},
)
async def model(request: Request, name: str) -> Response:
    reranker = reranker_with_key(request)
    entry = reranker.registry.entry(name)
    if isinstance(entry, PendingModel) and entry.error is not None:
        raise entry.refusal()
    return json_response(_row(entry, name))


def _row(entry: Entry, name: str) -> ModelRow:
    return {
        "id": name,
        "object": "model",
        # As it was when it was read: the file may be gone by now.
        "created": entry.model.changed_at if isinstance(entry, ServedModel) else 0,
        "owned_by": "rerankd",
        "model_type": "rerank",
        "model_name": entry.name,
    }


@router.post(
    "/v1/models/{name:path}/reload",
    status_code=202,
    summary="Start a failed engine again, or replace a running one between requests",
    responses={
        202: {"description": "it has begun"},
        **errors(401, 403, 404, 415),
    },
)
async def reload(request: Request, name: str) -> Response:
    reranker = reranker_with_key(request)
    check_change(request, reranker)
    entry = reranker.registry.named(name)
    await reranker.registry.reload(entry)
    return json_response({"status": "reloading", "model": entry.name}, 202)


@router.get("/v1/cluster/auth", include_in_schema=False)
async def cluster_auth(request: Request) -> Response:
    """What Xinference's clients ask first. Without a key it is a 404, as in a Xinference without users; with
    one they only send theirs when they are told that it is asked for."""
    if not reranker_of(request).keys:
        raise NoSuchPath("This service asks for no key, so there is nothing at /v1/cluster/auth.")
    return json_response({"auth": True})


class Classes(TypedDict):
    id2label: dict[str, str]
    label2id: dict[str, int]


class ModelType(TypedDict):
    reranker: Classes


class Info(TypedDict):
    model_id: str
    model_type: ModelType
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    auto_truncate: bool
    version: str


@router.get(
    "/info", summary="The model, as Text Embeddings Inference tells of it", responses={200: {"model": Info}}
)
async def info(request: Request) -> Response:
    # Without a key, as /health: Continue sends none here.
    reranker = reranker_of(request)
    max_length = reranker.model.recipe.max_length
    body: Info = {
        "model_id": reranker.model.name,
        "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        "max_input_length": max_length,
        "max_batch_tokens": max_length,
        "max_client_batch_size": reranker.settings.max_documents,
        "auto_truncate": True,
        "version": __version__,
    }
    return json_response(body)


@router.get("/meta", include_in_schema=False)
async def weaviate_meta(request: Request) -> Response:
    """What Weaviate shows of the model in its own /v1/meta. It sends no key, so none is asked for here."""
    model = reranker_of(request).model
    return json_response({"model_name": model.name, "max_input_length": model.recipe.max_length})
