"""HTTP responses: JSON, errors in the dialect of the request, and headers for debugging.

Every response has `x-request-id`: the client's own if it is valid, else a new one. A response with scores
also has `x-rerankd-model` and the durations `x-rerankd-total-ms`, `x-rerankd-queue-ms` (waiting) and
`x-rerankd-engine-ms` (scoring), and after a cascade `x-rerankd-stages`. Warnings are in
`x-rerankd-warnings`, because most dialects have no field for them.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import random
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Scope

from rerankd import logs, onward
from rerankd.api import limits
from rerankd.api.auth import check_key
from rerankd.api.dialects.dialect import Dialect, stages
from rerankd.api.dialects.table import DEFAULT
from rerankd.errors import RerankdError
from rerankd.rerank_result import RerankResult
from rerankd.service import Reranker

_log = logging.getLogger("rerankd.api")

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
# Many proxies reject more than 4 to 8 KiB of headers.
_WARNINGS_CHARACTERS = 2000
_WARNING_CHARACTERS = 300
# Statuses after which a retry helps; they always have Retry-After.
_WAIT = (429, 503)


class Route(APIRoute):
    """A route that ignores doubled and trailing slashes, and converts rerankd's errors to responses.

    This is done in the route and not in the app, so that the router also works in another app. Exceptions
    from the dependencies of that app are left to its own exception handlers.
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
            passed = onward.passed(request.headers.get(onward.PASSED_HEADER, ""))
            onward.begins(onward.Origin(passed, request_id(request)))
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
    """Wrap an endpoint with the crash boundary of a request.

    An endpoint that has one is returned as it is: FastAPI creates the routes again when a router is included.
    """
    if hasattr(endpoint, "is_bounded"):
        return endpoint

    @functools.wraps(endpoint)
    async def bounded(request: Request, **parameters: Any) -> Any:
        try:
            return await endpoint(request=request, **parameters)
        except (RerankdError, ClientDisconnect):
            raise
        except Exception:  # the crash boundary of a request
            _log.exception("Request %s failed for an unexpected reason.", request_id(request))
            raise RerankdError("rerankd failed for an unexpected reason. See its log for details.") from None

    bounded.is_bounded = True  # type: ignore[attr-defined]
    return bounded


def plain_path(path: str) -> str:
    """Remove doubled and trailing slashes: //v1/rerank/ -> /v1/rerank."""
    return "/" + "/".join(part for part in path.split("/") if part)


def use_dialect(request: Request, dialect: Dialect) -> None:
    """Set the dialect in which this request's errors are rendered."""
    request.state.spoken = dialect


def request_id(request: Request) -> str:
    """Return the client's x-request-id if it is valid, else a generated one; the same for the whole
    request."""
    if not hasattr(request.state, "request_id"):
        sent = request.headers.get("x-request-id", "")
        # uuid4 reads the system's random numbers, and waits for Python's lock after that.
        new = f"rerank-{random.getrandbits(128):032x}"
        request.state.request_id = sent if _SANE_ID.fullmatch(sent) else new
    return str(request.state.request_id)


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    data = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # A lone surrogate in a document is returned as "?".
    return Response(data.encode("utf-8", "replace"), status, dict(headers or {}), "application/json")


def error_response(
    request: Request,
    error: RerankdError,
    headers: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Response:
    """Return an error response in the request's dialect, with Retry-After if a retry helps.

    `more` are additional JSON fields.
    """
    spoken: Dialect = getattr(request.state, "spoken", DEFAULT)
    sent = {**(headers or {}), "x-request-id": request_id(request)}
    if error.retry_after_s is not None or error.status_hint in _WAIT:
        sent["retry-after"] = str(math.ceil(error.retry_after_s or 1))
    if error.status_hint == 401:
        sent["www-authenticate"] = "Bearer"
    return json_response({**spoken.render_error(error), **(more or {})}, error.status_hint, sent)


def warnings_header(warnings: Sequence[str]) -> str:
    """Return the warnings as a JSON list in ASCII of at most `_WARNINGS_CHARACTERS`.

    If the last warnings do not fit, they are replaced by their number: "3 more".
    """
    most = _WARNING_CHARACTERS
    shown = [text if len(text) <= most else f"{text[:most]}…" for text in warnings]
    for kept in range(len(shown), -1, -1):
        left_out = [f"{len(shown) - kept} more"] * (kept < len(shown))
        text = json.dumps([*shown[:kept], *left_out])
        if len(text) <= _WARNINGS_CHARACTERS:
            break
    return text


def stages_header(result: RerankResult) -> str:
    """Return the stages of a cascade as a JSON list in ASCII; a long error is truncated."""
    rows = stages(result)
    for row in rows:
        if "error" in row:
            row["error"] = row["error"][:_WARNING_CHARACTERS]
    return json.dumps(rows)


def result_headers(model: str, result: RerankResult) -> dict[str, str]:
    """Return the headers of a response with scores."""
    warnings = {"x-rerankd-warnings": warnings_header(result.warnings)} if result.warnings else {}
    by_stage = {"x-rerankd-stages": stages_header(result)} if result.stages else {}
    return {
        **warnings,
        **by_stage,
        # Header values are ASCII; file names can have any script.
        "x-rerankd-model": quote(model, safe=" !#$&'()*+,/:;=?@[]~|{}"),
        "x-rerankd-total-ms": f"{result.total_s * 1000:.1f}",
        "x-rerankd-queue-ms": f"{result.queue_s * 1000:.1f}",
        "x-rerankd-engine-ms": f"{result.engine_s * 1000:.1f}",
    }


def reranker_with_key(request: Request) -> Reranker:
    """Return the app's reranker if the request has a valid key. Raises Unauthorized, or RerankdError if the
    app has no reranker."""
    reranker = reranker_of(request)
    check_key(request, reranker.keys)
    return reranker


def reranker_of(request: Request) -> Reranker:
    """Return the app's reranker. Raises RerankdError if the app has none."""
    reranker = limits.reranker_in(request)
    if reranker is None:
        raise RerankdError(
            "rerankd is not running in this app. Create the app with lifespan=rerankd.lifespan(settings). "
            "FastAPI does not run the lifespan of a mounted app: pass it to the outermost app, as in "
            "FastAPI(lifespan=rerankd.lifespan(settings, your_own_lifespan)), or mount "
            "create_app(reranker=…) with a Reranker that you have entered. See docs/api.md."
        )
    return reranker
