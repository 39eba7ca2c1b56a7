"""What changes the served models: load, unload, pull and delete. Off unless `admin_api` is set."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Literal, NotRequired

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from typing_extensions import TypedDict

from rerankd.api import openapi
from rerankd.api.body import read_json
from rerankd.api.openapi import errors
from rerankd.api.origin import check_change
from rerankd.api.responses import Route, json_response, request_id, reranker_with_key
from rerankd.errors import (
    AdminOff,
    Conflict,
    EngineUnavailable,
    InvalidRequest,
    Overloaded,
    RerankdError,
)
from rerankd.hub.store import Record, Store
from rerankd.service import Reranker

router = APIRouter(route_class=Route)

_MOST_PULLS = 2
_BODY_BYTES = 2**16
# Progress is told this often at most: a page can't show more.
_TELL_EVERY_S = 0.2


class Done(TypedDict):
    status: Literal["loaded", "unloading", "deleted"]
    model: str
    freed_bytes: NotRequired[int]


class Pulled(TypedDict):
    """One event of a pull; the last one's status is success or error."""

    status: str
    completed: NotRequired[int]
    total: NotRequired[int]
    model: NotRequired[str]
    code: NotRequired[str]
    message: NotRequired[str]


def _admin(request: Request) -> Reranker:
    """The reranker, for one who may change it. Raises Unauthorized and AdminOff."""
    reranker = reranker_with_key(request)
    if not reranker.settings.admin_api:
        raise AdminOff(
            "Models can't be changed over HTTP here. To allow it, set admin_api = true (RERANKD_ADMIN_API) "
            "and an API key."
        )
    check_change(request, reranker)
    return reranker


_ERRORS = errors(401, 403, 404, 415)


@router.post(
    "/v1/models/{name:path}/load",
    summary="Load a model, and wait until it is ready (admin_api)",
    responses={200: {"model": Done}, **_ERRORS, **errors(503, 507)},
)
async def load(request: Request, name: str) -> Response:
    reranker = _admin(request)
    served = reranker.registry.served(name)
    try:
        async with asyncio.timeout(reranker.settings.request_timeout_s):
            await reranker.registry.load(served)
    except TimeoutError:
        raise EngineUnavailable(
            f"{served.name} is not loaded yet after {reranker.settings.request_timeout_s:g} s; try again."
        ) from None
    return json_response({"status": "loaded", "model": served.name})


@router.post(
    "/v1/models/{name:path}/unload",
    status_code=202,
    summary="Unload a model as soon as nobody uses it (admin_api)",
    responses={202: {"model": Done}, **_ERRORS},
)
async def unload(request: Request, name: str) -> Response:
    reranker = _admin(request)
    served = reranker.registry.served(name)
    reranker.registry.unload(served)
    return json_response({"status": "unloading", "model": served.name}, 202)


@router.delete(
    "/v1/models/{name:path}",
    summary="Serve a pulled model no more, and delete its files (admin_api)",
    responses={200: {"model": Done}, **_ERRORS, **errors(409)},
)
async def delete(request: Request, name: str) -> Response:
    reranker = _admin(request)
    store = Store(reranker.settings.home)
    served = next((one for one in reranker.registry.models if name in one.names), None)
    if served is None:
        record = await asyncio.to_thread(store.find, name)
        if record is None:
            raise reranker.registry.unknown(name)
    else:
        records = await asyncio.to_thread(store.records)
        record = next((one for one in records if store.path(one) == served.model.path), None)
        if record is None:
            raise Conflict(f"{served.name} was not pulled by rerankd, so its file is left alone.")
        reranker.registry.drop(served)
    await asyncio.to_thread(store.remove, record)
    return json_response({"status": "deleted", "model": record.name, "freed_bytes": record.size_bytes})


@router.post(
    "/v1/models/pull",
    summary="Download a model and serve it; progress as server-sent events (admin_api)",
    responses={
        200: {
            "model": Pulled,
            "content": {"text/event-stream": {}},
            "description": "one event after the other; with `stream` false, the last one alone",
        },
        **errors(400, 401, 403, 413, 415, 429, 502),
    },
    openapi_extra=openapi.body(
        {
            "type": "object",
            "required": ["model"],
            "properties": {
                "model": {"type": "string", "description": "what `rerankd pull` takes"},
                "stream": {"type": "boolean", "default": True},
            },
        }
    ),
)
async def pull(request: Request) -> Response:
    reranker = _admin(request)
    body = await read_json(request, _BODY_BYTES)
    ref, stream = body.get("model"), body.get("stream", True)
    if not isinstance(ref, str) or not ref.strip():
        raise InvalidRequest(
            '"model" is missing. Send the name to pull, as in {"model": "bge-reranker-v2-m3"}.'
        )
    if not isinstance(stream, bool):
        raise InvalidRequest('"stream" must be true or false.')
    events = _Pull(reranker, ref.strip()).events()
    if stream:
        first = await anext(events)  # what is wrong at once is an answer of its own
        return StreamingResponse(
            _as_lines(first, events),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-request-id": request_id(request)},
        )
    last: Pulled = {"status": "error"}
    async for event in events:
        last = event
    return json_response(last, 200 if last["status"] == "success" else 502)


async def _as_lines(first: Pulled, rest: AsyncGenerator[Pulled]) -> AsyncIterator[str]:
    async with contextlib.aclosing(rest):
        yield _line(first)
        async for event in rest:
            yield _line(event)


def _line(event: Pulled) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


class _HungUp(RerankdError, code="hung_up"):
    """Nobody waits for a pull any more."""


class _Pull:
    """One pull, in a thread of its own. When nobody wants its events any more it ends; the next pull of the
    model goes on where it stopped."""

    under_way = 0

    def __init__(self, reranker: Reranker, ref: str) -> None:
        self._reranker = reranker
        self._ref = ref
        self._events: asyncio.Queue[Pulled | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._wanted = True
        self._told = ("", 0.0)

    async def events(self) -> AsyncGenerator[Pulled]:
        """What happens, as it happens. Raises Overloaded where there are too many pulls."""
        if _Pull.under_way >= _MOST_PULLS:
            raise Overloaded(f"{_MOST_PULLS} pulls are under way; try again later.", retry_after_s=30)
        _Pull.under_way += 1
        task = asyncio.ensure_future(self._run())
        try:
            while (event := await self._events.get()) is not None:
                yield event
            await task
        finally:
            self._wanted = False
            _Pull.under_way -= 1

    async def _run(self) -> None:
        try:
            record = await asyncio.to_thread(self._fetch)
            self._tell({"status": f"loading {record.name}"})
            served = await self._reranker.registry.add(record.name)
            await self._reranker.registry.load(served)
            self._tell({"status": "success", "model": served.name})
        except RerankdError as error:
            self._tell({"status": "error", "code": error.code, "message": error.message})
        finally:
            self._tell(None)

    def _fetch(self) -> Record:
        # The hubs' clients take a quarter of a second to import, which every start would have to wait for.
        from rerankd import pulling

        settings = self._reranker.settings
        Store(settings.home).check_writable()
        self._progress("starting", 0, 0)
        return pulling.pull(settings, self._ref, say=self._say, progress=self._progress)

    def _say(self, text: str) -> None:
        self._tell({"status": text})

    def _progress(self, what: str, done: int, total: int) -> None:
        if not self._wanted:
            raise _HungUp("Nobody waits for this pull any more.")
        told, at = self._told
        now = time.monotonic()
        if what != told or done >= total or now - at >= _TELL_EVERY_S:
            self._told = (what, now)
            self._tell({"status": what, "completed": done, "total": total})

    def _tell(self, event: Pulled | None) -> None:
        """Also from the thread of the pull. None is the end."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)
