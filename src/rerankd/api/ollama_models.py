"""Ollama's endpoints for its clients: version, list of models, loaded models, one model; load and unload."""

from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime, timedelta
from typing import Any, NotRequired

from fastapi import APIRouter, Request, Response
from typing_extensions import TypedDict

from rerankd import __version__
from rerankd.api.admin import load_in_time
from rerankd.api.body import read_json
from rerankd.api.dialects import ollama
from rerankd.api.dialects.keep_alive import keep_alive_s
from rerankd.api.responses import Route, json_response, reranker_with_key, use_dialect
from rerankd.errors import InvalidRequest
from rerankd.hub.model_ref import LATEST
from rerankd.memory import MEMORY
from rerankd.service import Reranker
from rerankd.serving.registry import ModelRegistry
from rerankd.serving.served_model import ServedModel

router = APIRouter(route_class=Route, include_in_schema=False)

# Ollama's clients read a time here. This one stands for "never".
_NEVER = datetime(9999, 12, 31, tzinfo=UTC)
_BODY_BYTES = 2**20


class Details(TypedDict):
    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class ModelRow(TypedDict):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details
    expires_at: NotRequired[str]
    size_vram: NotRequired[int]
    context_length: NotRequired[int]


class Shown(TypedDict):
    """The response of /api/show. rerankd has no Modelfile; `parameters` are the parts of the recipe."""

    license: str
    modelfile: str
    parameters: str
    template: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class Done(TypedDict):
    """The response of /api/generate and /api/chat to a request without text."""

    model: str
    created_at: str
    response: str
    message: dict[str, str]
    done: bool
    done_reason: str


@router.get("/api/version")
async def version(request: Request) -> Response:
    """rerankd's own version: clients must not expect the features of an Ollama version."""
    return json_response({"version": __version__})


@router.get("/api/tags")
async def tags(request: Request) -> Response:
    """The served models and cascades, one row for each name and alias."""
    registry = _reranker(request).registry
    rows = [_row(served, name) for served in registry.models for name in served.names]
    rows += [_remote_row(name) for one in registry.remote_models for name in one.names]
    cascades = [one for one in registry.cascades if not registry.why_not(one)]
    rows = [_cascade_row(registry, name) for one in cascades for name in one.names] + rows
    return json_response({"models": rows})


@router.get("/api/ps")
async def loaded(request: Request) -> Response:
    """The loaded models, and when each is unloaded if no request uses it."""
    registry = _reranker(request).registry
    rows: list[ModelRow] = []
    for served in registry.models:
        left_s = registry.idle_left_s(served)
        if left_s is None or served.state.engine is None:
            continue
        held = served.held() or {}
        rows.append(
            {
                **_row(served, served.name),
                "size": sum(held.values()),
                "size_vram": sum(held.values()) - held.get(MEMORY, 0),
                "context_length": served.model.recipe.max_length,
                "expires_at": _time(_NEVER if left_s == math.inf else _now() + timedelta(seconds=left_s)),
            }
        )
    return json_response({"models": rows})


@router.post("/api/show")
async def show(request: Request) -> Response:
    """One model, found by the rules of a rerank request; of a cascade, the last stage's model, with the
    stages in `parameters`."""
    registry = _reranker(request).registry
    name = _name(await read_json(request, _BODY_BYTES))
    served, cascade = registry.answering(name)[-1], registry.cascade(name)
    model, metadata, recipe = served.model, served.model.metadata, served.model.recipe
    entry = model.resolution.entry
    architecture = metadata.architecture
    body: Shown = {
        "license": entry.licence if entry is not None else "",
        "modelfile": "",
        "parameters": f"stages {cascade}"
        if cascade
        else f"method {recipe.method}\nmax_length {recipe.max_length}\n"
        f"normalization {recipe.normalization.name}",
        "template": recipe.template,
        "details": _details(served),
        "model_info": {
            "general.architecture": architecture,
            "general.parameter_count": metadata.parameters,
            f"{architecture}.context_length": recipe.max_length,
            f"{architecture}.embedding_length": metadata.embedding_length,
            f"{architecture}.block_count": metadata.block_count,
        },
        "capabilities": ["rerank", *(("embedding",) if recipe.method == "embedding" and not cascade else ())],
        "modified_at": _changed(served),
    }
    return json_response(body)


@router.post("/api/generate")
@router.post("/api/chat")
async def without_text(request: Request) -> Response:
    """Load a model, or unload it if `keep_alive` is 0: `ollama stop` sends this. A request with a text is an
    error, since rerankd generates none."""
    reranker = _reranker(request)
    sent = await read_json(request, _BODY_BYTES)
    stages = reranker.registry.answering(_name(sent))
    shown = reranker.registry.display_name(_name(sent))
    if any(sent.get(name) for name in ("prompt", "messages", "images", "suffix")):
        raise InvalidRequest(
            f"{shown} ranks texts and does not support generate or chat. Send a query and documents to "
            "/api/rerank."
        )
    keep_s = _keep_alive_s(sent)
    for served in stages:
        await load_or_unload(reranker, served, keep_s)
    body: Done = {
        "model": sent.get("model") or shown,
        "created_at": _time(_now()),
        "response": "",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "unload" if keep_s == 0 else "load",
    }
    return json_response(body)


async def load_or_unload(reranker: Reranker, served: ServedModel, keep_alive_s: float | None) -> None:
    """Load a model, or unload it for 0. Raises what a load raises."""
    if keep_alive_s == 0:
        reranker.registry.keep(served, 0)
    else:
        await load_in_time(reranker, served, keep_alive_s)


def _reranker(request: Request) -> Reranker:
    use_dialect(request, ollama.DIALECT)
    return reranker_with_key(request)


def _name(sent: dict[str, Any]) -> str | None:
    """The model name; old clients send it as `name`. Raises InvalidRequest."""
    name = sent.get("model") or sent.get("name")
    if name is not None and not isinstance(name, str):
        raise InvalidRequest("'model' must be a string: the name of a model.")
    return name


def _keep_alive_s(sent: dict[str, Any]) -> float | None:
    value = sent.get("keep_alive")
    if value in (None, ""):
        return None
    try:
        return keep_alive_s(value)
    except ValueError as error:
        raise InvalidRequest(f"'keep_alive' {error}.") from None


def _row(served: ServedModel, name: str) -> ModelRow:
    tagged = _tagged(name)
    return {
        "name": tagged,
        "model": tagged,
        "modified_at": _changed(served),
        "size": served.model.metadata.tensor_bytes,
        # Ollama returns the digest of the file. Hashing gigabytes is not worth it here.
        "digest": hashlib.sha256(served.model.fingerprint.encode("utf-8", "replace")).hexdigest(),
        "details": _details(served),
    }


def _cascade_row(registry: ModelRegistry, name: str) -> ModelRow:
    """The row of a cascade: the last stage's model with the size of all."""
    stages = [_row(served, name) for served in registry.answering(name)]
    digests = " ".join(stage["digest"] for stage in stages)
    return {
        **stages[-1],
        "size": sum(stage["size"] for stage in stages),
        "digest": hashlib.sha256(digests.encode()).hexdigest(),
    }


def _remote_row(name: str) -> ModelRow:
    """The row of a model that is served elsewhere, whose file is not known."""
    tagged = _tagged(name)
    return {
        "name": tagged,
        "model": tagged,
        "modified_at": _time(datetime.fromtimestamp(0, UTC)),
        "size": 0,
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "details": {
            "parent_model": "",
            "format": "",
            "family": "",
            "families": [],
            "parameter_size": "",
            "quantization_level": "",
        },
    }


def _tagged(name: str) -> str:
    """The name with a tag: Ollama's names have one, and clients compare with them."""
    return name if ":" in name else name + LATEST


def _details(served: ServedModel) -> Details:
    metadata = served.model.metadata
    return {
        "parent_model": "",
        "format": metadata.format,
        "family": metadata.architecture,
        "families": [metadata.architecture],
        "parameter_size": _short(metadata.parameters),
        "quantization_level": metadata.file_type or metadata.quantisation,
    }


def _short(count: int) -> str:
    """A number of parameters as Ollama writes it: 567.75M."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.2f}{letter}"
    return str(count) if count else ""


def _changed(served: ServedModel) -> str:
    return _time(datetime.fromtimestamp(served.model.changed_at, UTC))


def _now() -> datetime:
    return datetime.now(UTC)


def _time(when: datetime) -> str:
    return when.isoformat().replace("+00:00", "Z")
