"""From a value or an error to an HTTP answer, with the headers that a person debugging wants.

Every answer carries `x-request-id`: the caller's own where it is sane, else a new one. An answer with scores
also carries `x-rerankd-model` and how long it took: `x-rerankd-total-ms` and, of it, what it waited
(`x-rerankd-queue-ms`) and what the engine worked (`x-rerankd-engine-ms`); and, where there are any, the
warnings (`x-rerankd-warnings`), for which most dialects have no other place.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import re
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Scope

from rerankd import logs
from rerankd.api import limits
from rerankd.api.auth import check_key
from rerankd.api.dialects.dialect import Dialect
from rerankd.api.dialects.table import DEFAULT
from rerankd.domain import RerankResult
from rerankd.errors import RerankdError
from rerankd.service import Reranker

_log = logging.getLogger("rerankd.api")

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
# Proxies refuse headers of more than 4 to 8 KiB in all.
_WARNINGS_CHARACTERS = 2000
_WARNING_CHARACTERS = 300
# Statuses after which waiting helps, and the caller is always told how long.
_WAIT = (429, 503)


class Route(APIRoute):
    """A route that takes its path with doubled and trailing slashes too, and turns rerankd's errors into
    answers; here and not in the app, so that the router also works in somebody else's.

    Whatever the dependencies of that app raise is the app's: its statuses and exception handlers hold.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, _bounded(endpoint), **options)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http":
            scope = {**scope, "path": plain_path(scope["path"])}
        return super().matches(scope)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            logs.belongs_to(request_id(request), getattr(request.state, "key", ""))
            try:
                response = await handle(request)
            except RerankdError as error:
                return error_response(request, error)
            except ClientDisconnect:
                return Response(status_code=499)
            response.headers["x-request-id"] = request_id(request)
            return response

        return limits.guard(answer)


def _bounded(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """An endpoint with the crash boundary of a request; the same one where it has it already, since a router
    that is included in another one has its routes made again."""
    if hasattr(endpoint, "is_bounded"):
        return endpoint

    @functools.wraps(endpoint)
    async def bounded(request: Request, **parameters: Any) -> Any:
        try:
            return await endpoint(request=request, **parameters)
        except (RerankdError, ClientDisconnect):
            raise
        except Exception:  # the crash boundary of a request
            _log.exception("request %s failed for an unexpected reason", request_id(request))
            raise RerankdError("rerankd failed for an unexpected reason; its log says more.") from None

    bounded.is_bounded = True  # type: ignore[attr-defined]
    return bounded


def plain_path(path: str) -> str:
    """A path without doubled or trailing slashes: //v1/rerank/ -> /v1/rerank."""
    return "/" + "/".join(part for part in path.split("/") if part)


def speaks(request: Request, dialect: Dialect) -> None:
    """From here on, this request's errors are rendered so."""
    request.state.spoken = dialect


def request_id(request: Request) -> str:
    """The caller's x-request-id where it is sane, else one made up; the same for all of a request."""
    if not hasattr(request.state, "request_id"):
        sent = request.headers.get("x-request-id", "")
        request.state.request_id = sent if _SANE_ID.fullmatch(sent) else f"rerank-{uuid.uuid4().hex}"
    return str(request.state.request_id)


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    data = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # A document may hold a lone surrogate; it comes back as the mark for what can't be read.
    return Response(data.encode("utf-8", "replace"), status, dict(headers or {}), "application/json")


def error_response(
    request: Request,
    error: RerankdError,
    headers: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Response:
    """An error as an answer in the caller's dialect, with Retry-After where waiting helps. `more` are fields
    beside the dialect's."""
    spoken: Dialect = getattr(request.state, "spoken", DEFAULT)
    sent = {**(headers or {}), "x-request-id": request_id(request)}
    if error.retry_after_s is not None or error.status_hint in _WAIT:
        sent["retry-after"] = str(math.ceil(error.retry_after_s or 1))
    if error.status_hint == 401:
        sent["www-authenticate"] = "Bearer"
    return json_response({**spoken.render_error(error), **(more or {})}, error.status_hint, sent)


def warnings_header(warnings: Sequence[str]) -> str:
    """Warnings as a JSON list in ASCII, which a header can hold; of at most `_WARNINGS_CHARACTERS`, so the
    last ones may be missing, and say so."""
    most = _WARNING_CHARACTERS
    shown = [text if len(text) <= most else f"{text[:most]}…" for text in warnings]
    for kept in range(len(shown), -1, -1):
        left_out = [f"{len(shown) - kept} more"] * (kept < len(shown))
        text = json.dumps([*shown[:kept], *left_out])
        if len(text) <= _WARNINGS_CHARACTERS:
            break
    return text


def facts(model: str, result: RerankResult) -> dict[str, str]:
    """The headers of an answer with scores."""
    told = {"x-rerankd-warnings": warnings_header(result.warnings)} if result.warnings else {}
    return {
        **told,
        # A header can't hold every script that a file may be named in.
        "x-rerankd-model": quote(model, safe=" !#$&'()*+,/:;=?@[]~|{}"),
        "x-rerankd-total-ms": f"{result.total_s * 1000:.1f}",
        "x-rerankd-queue-ms": f"{result.queue_s * 1000:.1f}",
        "x-rerankd-engine-ms": f"{result.engine_s * 1000:.1f}",
    }


def reranker_with_key(request: Request) -> Reranker:
    """The app's reranker, for whoever may ask it. Raises Unauthorized, and what `reranker_of` does."""
    reranker = reranker_of(request)
    check_key(request, reranker.keys)
    return reranker


def reranker_of(request: Request) -> Reranker:
    """The app's reranker. Raises RerankdError where the app was built without one."""
    reranker = limits.reranker_in(request)
    if reranker is None:
        raise RerankdError(
            "rerankd is not running in this app: give the app lifespan=rerankd.lifespan(settings), see the "
            "README. The lifespan of a mounted app does not run: give it to the outermost app, as in "
            "FastAPI(lifespan=rerankd.lifespan(settings, your_own_lifespan)); or mount "
            "create_app(reranker=…) with a Reranker that you have entered."
        )
    return reranker
