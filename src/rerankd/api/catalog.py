"""`GET /v1/catalog`: the models that can be pulled by name, for the page."""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter, Request, Response
from typing_extensions import TypedDict

from rerankd.api.openapi import errors
from rerankd.api.responses import Route, json_response, reranker_with_key
from rerankd.config import Settings
from rerankd.hub import listing
from rerankd.hub.store import Store
from rerankd.recipes import catalog as known
from rerankd.recipes.recommend import QUALITY_SOURCE, device_of, recommend
from rerankd.serving import backend_offers

router = APIRouter(route_class=Route)


class CatalogRow(TypedDict):
    """A model of the catalog. `ndcg10` is its published quality, `quality_source` of the answer says which.
    `fits` is the device whose memory it fits into: null for none, or if its size is not known. `best_for` is
    not empty if it is recommended for this machine. `pulled`: its files are here."""

    name: str
    size_mb: int | None
    languages: list[str]
    licence: str
    method: str
    max_length: int | None
    ndcg10: float | None
    fits: Literal["GPU", "CPU"] | None
    best_for: str
    pulled: bool


class CatalogAnswer(TypedDict):
    quality_source: str
    models: list[CatalogRow]


@router.get(
    "/v1/catalog",
    summary="List the models that can be pulled by name, and whether they fit this machine",
    responses={200: {"model": CatalogAnswer}, **errors(401)},
)
async def catalog(request: Request) -> Response:
    reranker = reranker_with_key(request)
    return json_response(await asyncio.to_thread(_answer, reranker.settings))


def _answer(settings: Settings) -> CatalogAnswer:
    wish, _ = backend_offers.wish_of(settings)
    picks = {pick.entry.name.lower(): pick.best_for for pick in recommend(known.known().entries, wish)}
    entries = {entry.name.lower(): entry for entry in known.known().entries}
    pulled = {record.source for record in Store(settings.home).records()}
    rows: list[CatalogRow] = []
    for row in listing.pullable():
        entry = entries[row["name"]]
        rows.append(
            {
                "name": row["name"],
                "size_mb": row["size_mb"],
                "languages": row["languages"],
                "licence": row["licence"],
                "method": row["method"],
                "max_length": row["max_length"],
                "ndcg10": row["ndcg10"],
                "fits": device_of(entry, wish) if entry.size_mb else None,
                "best_for": picks.get(row["name"], ""),
                "pulled": any(source.startswith(ref) for source in pulled for ref in entry.refs),
            }
        )
    return {"quality_source": QUALITY_SOURCE, "models": rows}
