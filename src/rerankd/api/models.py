"""Model endpoints: list the served models, reload one, and TEI's /info."""

from __future__ import annotations

from typing import Literal, NotRequired

from fastapi import APIRouter, Request, Response
from typing_extensions import TypedDict

from rerankd import __version__
from rerankd.api.openapi import errors
from rerankd.api.origin import check_change
from rerankd.api.responses import Route, json_response, reranker_of, reranker_with_key
from rerankd.config.cascade import Cascade
from rerankd.errors import NoSuchPath
from rerankd.service import Reranker
from rerankd.serving.model_names import AnyModel
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
    max_model_len: NotRequired[int]
    method: NotRequired[str]


class Unavailable(TypedDict):
    """A model of the settings that can't be used, and the reason."""

    id: str
    reason: str


class ModelList(TypedDict):
    """`data` lists the usable models. `unavailable` lists refused models, if there are any. `behind`: see
    RemoteModels."""

    object: Literal["list"]
    data: list[ModelRow]
    unavailable: NotRequired[list[Unavailable]]
    behind: NotRequired[list[str]]


@router.get(
    "/v1/models",
    summary="List the served models",
    responses={200: {"model": ModelList}, **errors(401)},
)
async def models(request: Request) -> Response:
    reranker = reranker_with_key(request)
    registry = reranker.registry
    # Clients may offer the whole list to their users, so refused models are not in `data`.
    refused = [one for one in registry.pending if one.error is not None]
    reasons = {one.name: one.refusal().message for one in refused}
    usable: list[AnyModel | Cascade] = []
    for one in registry.listed:
        if isinstance(one, Cascade) and (why_not := registry.why_not(one)):
            reasons[one.name] = why_not
        elif one not in refused:
            usable.append(one)
    rows: dict[str, ModelRow] = {}
    for entry in usable:
        for name in entry.names:
            rows.setdefault(name, _row(entry, name))
    body: ModelList = {"object": "list", "data": list(rows.values())}
    if reasons:
        body["unavailable"] = [{"id": name, "reason": reason} for name, reason in reasons.items()]
    if registry.remote.behind:
        body["behind"] = list(registry.remote.behind)
    return json_response(body)


@router.get(
    "/v1/models/{name:path}",
    summary="Get a model by its name or an alias",
    responses={200: {"model": ModelRow}, **errors(401, 404, 422, 503)},
)
async def model(request: Request, name: str) -> Response:
    registry = reranker_with_key(request).registry
    for entry in registry.entries_of(name):
        if isinstance(entry, PendingModel) and entry.error is not None:
            raise entry.refusal()
    return json_response(_row(registry.cascade(name) or entry, name))


def _row(entry: AnyModel | Cascade, name: str) -> ModelRow:
    row: ModelRow = {
        "id": name,
        "object": "model",
        # The time was stored when the model was read, because the file may have been deleted since.
        "created": entry.model.changed_at if isinstance(entry, ServedModel) else 0,
        "owned_by": "rerankd",
        "model_type": "rerank",
        "model_name": entry.name,
    }
    if isinstance(entry, ServedModel):
        row |= {"max_model_len": entry.model.recipe.max_length, "method": entry.model.recipe.method}
    elif not isinstance(entry, Cascade | PendingModel):
        row |= {"max_model_len": entry.max_length} if entry.max_length is not None else {}
        row |= {"method": "embedding"} if entry.is_embedder else {}
    return row


@router.post(
    "/v1/models/{name:path}/reload",
    status_code=202,
    summary="Restart a failed engine, or replace a running one without downtime",
    responses={
        202: {"description": "The reload has started."},
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
    """Xinference's clients call this first, to find out whether to send their key.

    If the service needs no key, the response is 404, as from a Xinference server without users.
    """
    if not reranker_of(request).keys:
        raise NoSuchPath("The path /v1/cluster/auth does not exist, because this server needs no API key.")
    return json_response({"auth": True})


class Classes(TypedDict):
    id2label: dict[str, str]
    label2id: dict[str, int]


class Reranks(TypedDict):
    reranker: Classes


class Pooling(TypedDict):
    pooling: str


class Embeds(TypedDict):
    embedding: Pooling


class Info(TypedDict):
    model_id: str
    model_type: Reranks | Embeds
    max_input_length: NotRequired[int]  # this and the next are omitted if a remote model's are not known
    max_batch_tokens: NotRequired[int]
    max_client_batch_size: int
    auto_truncate: bool
    version: str


@router.get(
    "/info",
    summary="Get the first model in the format of Text Embeddings Inference",
    responses={200: {"model": Info}},
)
async def info(request: Request) -> Response:
    # No key is required, as for /health: Continue sends none here.
    reranker = reranker_of(request)
    max_length, name = _first(reranker)
    kind: Reranks | Embeds = {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
    registry = reranker.registry
    if registry.remote_model(None) is None and registry.cascade(None) is None:
        recipe = reranker.model.recipe
        if recipe.method == "embedding":
            kind = {"embedding": {"pooling": recipe.pooling}}
    body: Info = {
        "model_id": name,
        "model_type": kind,
        "max_client_batch_size": reranker.settings.max_documents,
        "auto_truncate": True,
        "version": __version__,
    }
    if max_length is not None:
        body["max_input_length"] = body["max_batch_tokens"] = max_length
    return json_response(body)


@router.get("/meta", include_in_schema=False)
async def weaviate_meta(request: Request) -> Response:
    """The model's data that Weaviate shows in its own /v1/meta. Weaviate sends no key, so none is
    required."""
    max_length, name = _first(reranker_of(request))
    return json_response({"model_name": name, "max_input_length": max_length})


def _first(reranker: Reranker) -> tuple[int | None, str]:
    """The max_length and the name of the model or cascade that answers requests that name no model. A text
    longer than that is truncated by one of a cascade's models. The max_length is None if it is not known."""
    registry = reranker.registry
    name = registry.display_name(None)
    if (remote := registry.remote_model(None)) is not None:
        return remote.max_length, name
    return min(one.model.recipe.max_length for one in registry.answering(None)), name
