"""The web page at `/` (try it, status page, connect, API reference), served from the folder `static`.

The page loads nothing from other hosts. Its URLs are relative, so it works under api_prefix and behind a
proxy's prefix. The page itself needs no API key; it asks the user for the key of the endpoints it calls.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

from rerankd.api.responses import Route, json_response, reranker_of
from rerankd.errors import NoSuchPath

_FOLDER = Path(__file__).with_name("static")
_KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
# Tells the page whether a key is needed: a request without one would log an error in the browser's console.
_KEY_MARK = b'data-key="no"'


def router(prefix: str = "") -> APIRouter:
    """Return the routes of the page at `prefix`/, its files, and `prefix`/docs."""
    found = APIRouter(route_class=Route, prefix=prefix, include_in_schema=False)
    found.add_api_route("" if prefix else "/", _page, methods=["GET", "HEAD"])
    found.add_api_route("/static/{name}", _file, methods=["GET", "HEAD"])
    found.add_api_route("/docs", _docs, methods=["GET", "HEAD"])
    if prefix:  # without a prefix, the app itself serves it
        found.add_api_route("/openapi.json", _openapi, methods=["GET"])
    return found


async def _page(request: Request) -> Response:
    path = request.scope["path"]
    if not path.endswith("/"):
        return Response(status_code=307, headers={"location": f"{path.rpartition('/')[2]}/"})
    data = _files()["index.html"]
    if reranker_of(request).keys:
        data = data.replace(_KEY_MARK, b'data-key="yes"')
    return _answer(request, data, ".html")


async def _file(request: Request, name: str) -> Response:
    if name not in _files() or name == "index.html":
        raise NoSuchPath(f"The file {name!r} does not exist.")
    return _answer(request, _files()[name], Path(name).suffix)


async def _docs(request: Request) -> Response:
    return Response(status_code=307, headers={"location": "./#api"})


async def _openapi(request: Request) -> Response:
    return json_response(request.app.openapi())


def _answer(request: Request, data: bytes, suffix: str) -> Response:
    tag = f'"{hashlib.blake2b(data, digest_size=12).hexdigest()}"'
    headers = {**_HEADERS, "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, headers=headers, media_type=_KINDS[suffix])


@cache
def _files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in _FOLDER.iterdir() if path.suffix in _KINDS}
