"""The status of models that are served elsewhere, as JSON."""

from __future__ import annotations

import time

from typing_extensions import TypedDict

from rerankd.remote_models import Place, RemoteModel
from rerankd.serving.registry import ModelRegistry


class PlaceStatus(TypedDict):
    """A server or replica that answers for a model. `requests` are under way; `answered` and `failed` count
    calls since the start. `error` says why it can't answer now."""

    name: str
    state: str
    requests: int
    answered: int
    failed: int
    error: str


class RemoteStatus(TypedDict):
    """A model that is served elsewhere; `where` says by whom. `max_length` is None if it is not known.
    `requests` and `documents` are being answered."""

    id: str
    aliases: list[str]
    state: str
    since_s: float
    where: str
    max_length: int | None
    requests: int
    documents: int
    error: str | None
    places: list[PlaceStatus]


def unlisted_status(registry: ModelRegistry) -> list[PlaceStatus]:
    """The places whose models are not known yet."""
    return [_place(one) for one in registry.remote.unlisted]


def remote_status(registry: ModelRegistry) -> list[RemoteStatus]:
    """The status of all remote models, in order."""
    return [_status(model, registry) for model in registry.remote_models]


def _status(model: RemoteModel, registry: ModelRegistry) -> RemoteStatus:
    state, usage = model.state, registry.remote_calls.usage(model)
    return {
        "id": model.name,
        "aliases": list(model.names[1:]),
        "state": state.phase,
        "since_s": round(time.monotonic() - state.since, 1),
        "where": model.where,
        "max_length": model.max_length,
        "requests": usage.requests,
        "documents": usage.documents,
        "error": state.error.message if state.error is not None else None,
        "places": [_place(one) for one in model.places],
    }


def _place(place: Place) -> PlaceStatus:
    return {
        "name": place.name,
        "state": place.phase,
        "requests": place.requests,
        "answered": place.answered,
        "failed": place.failed,
        "error": place.error,
    }
