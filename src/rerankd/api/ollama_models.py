"""Ollama's endpoints for its clients: version, list of models, loaded models."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import NotRequired

from fastapi import APIRouter, Request, Response
from typing_extensions import TypedDict

from rerankd import __version__
from rerankd.api.responses import Route, json_response, reranker_with_key
from rerankd.serving.served_model import ServedModel

router = APIRouter(route_class=Route, include_in_schema=False)


class Details(TypedDict):
    format: str
    family: str
    families: list[str]


class ModelRow(TypedDict):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details
    size_vram: NotRequired[int]


@router.get("/api/version")
async def version(request: Request) -> Response:
    """rerankd's own version: clients must not expect the features of an Ollama version."""
    return json_response({"version": __version__})


@router.get("/api/tags")
async def tags(request: Request) -> Response:
    """The served models, one row for each name and alias."""
    reranker = reranker_with_key(request)
    rows = [_row(served, name) for served in reranker.registry.models for name in served.names]
    return json_response({"models": rows})


@router.get("/api/ps")
async def loaded(request: Request) -> Response:
    """The loaded models."""
    reranker = reranker_with_key(request)
    rows: list[ModelRow] = [
        {**_row(served, served.name), "size": served.memory_bytes() or 0, "size_vram": 0}
        for served in reranker.registry.models
        if served.state.engine is not None
    ]
    return json_response({"models": rows})


def _row(served: ServedModel, name: str) -> ModelRow:
    model = served.model
    family = model.metadata.architecture
    return {
        "name": name,
        "model": name,
        "modified_at": datetime.fromtimestamp(model.changed_at, UTC).isoformat(),
        "size": model.metadata.tensor_bytes,
        # Ollama returns the digest of the file. Hashing gigabytes is not worth it here.
        "digest": hashlib.sha256(model.fingerprint.encode("utf-8", "replace")).hexdigest(),
        "details": {
            "format": model.path.suffix.lstrip(".") or "folder",
            "family": family,
            "families": [family],
        },
    }
