"""The admin API: load, unload, pull and delete models. Enabled by the setting `admin_api`."""

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
from rerankd.serving.served_model import ServedModel

router = APIRouter(route_class=Route)

_MOST_PULLS = 2
_BODY_BYTES = 2**16
# The shortest time between two progress events: a page can't show more.
_PROGRESS_INTERVAL_S = 0.2


class Done(TypedDict):
    status: Literal["loaded", "unloading", "deleted"]
    model: str
    freed_bytes: NotRequired[int]


class Pulled(TypedDict):
    """One event of a pull. The status of the last event is `success` or `error`."""

    status: str
    completed: NotRequired[int]
    total: NotRequired[int]
    model: NotRequired[str]
    code: NotRequired[str]
    message: NotRequired[str]


def _admin(request: Request) -> Reranker:
    """Return the reranker if the client may change it. Raises Unauthorized, AdminOff and what check_change
    does."""
    reranker = reranker_with_key(request)
    if not reranker.settings.admin_api:
        raise AdminOff(
            "The admin API is disabled, so models can't be changed over HTTP. To enable it, set "
            "admin_api = true (RERANKD_ADMIN_API) and an API key."
        )
    check_change(request, reranker)
    return reranker


_ERRORS = errors(401, 403, 404, 415)


@router.post(
    "/v1/models/{name:path}/load",
    summary="Load a model and wait until it is ready (admin API)",
    responses={200: {"model": Done}, **_ERRORS, **errors(503, 507)},
)
async def load(request: Request, name: str) -> Response:
    reranker = _admin(request)
    served = reranker.registry.served(name)
    await load_in_time(reranker, served)
    return json_response({"status": "loaded", "model": served.name})


async def load_in_time(reranker: Reranker, served: ServedModel, keep_alive_s: float | None = None) -> None:
    """Load a model (see ModelRegistry.load). Raises EngineUnavailable if that takes longer than a request
    may."""
    try:
        async with asyncio.timeout(reranker.settings.request_timeout_s):
            await reranker.registry.load(served, keep_alive_s)
    except TimeoutError:
        raise EngineUnavailable(
            f"{served.name} is still loading after {reranker.settings.request_timeout_s:g} s "
            "(request_timeout_s). Retry later."
        ) from None


@router.post(
    "/v1/models/{name:path}/unload",
    status_code=202,
    summary="Unload a model when its current requests are done (admin API)",
    responses={202: {"model": Done}, **_ERRORS},
)
async def unload(request: Request, name: str) -> Response:
    reranker = _admin(request)
    served = reranker.registry.served(name)
    reranker.registry.unload(served)
    return json_response({"status": "unloading", "model": served.name}, 202)


@router.delete(
    "/v1/models/{name:path}",
    summary="Unload a model and delete its files (admin API)",
    responses={200: {"model": Done}, **_ERRORS, **errors(409)},
)
async def delete(request: Request, name: str) -> Response:
    reranker = _admin(request)
    store = Store(reranker.settings.home)
    served = reranker.registry.lookup(name)
    if not isinstance(served, ServedModel):
        record = await asyncio.to_thread(store.find, name)
        if record is None:
            raise reranker.registry.unknown(name)
    else:
        records = await asyncio.to_thread(store.records)
        record = next((one for one in records if store.path(one) == served.model.path), None)
        if record is None:
            raise Conflict(
                f"{served.name} was not pulled by rerankd, so rerankd does not delete its file. Remove the "
                "model from the settings to stop serving it."
            )
        reranker.registry.drop(served)
    freed_bytes = await asyncio.to_thread(store.remove, record)
    return json_response({"status": "deleted", "model": record.name, "freed_bytes": freed_bytes})


@router.post(
    "/v1/models/pull",
    summary="Download a model and serve it (admin API)",
    responses={
        200: {
            "model": Pulled,
            "content": {"text/event-stream": {}},
            "description": "Progress as server-sent events. With `stream` false: the last event, as JSON.",
        },
        **errors(400, 401, 403, 413, 415, 429, 502),
    },
    openapi_extra=openapi.body(
        {
            "type": "object",
            "required": ["model"],
            "properties": {
                "model": {
                    "type": "string",
                    "description": "A catalog name or a reference, as for `rerankd pull`: hf:org/repo:Q8_0",
                },
                "stream": {
                    "type": "boolean",
                    "default": True,
                    "description": "Send progress as server-sent events.",
                },
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
            '"model" is missing. Send the name of the model to pull: {"model": "bge-reranker-v2-m3"}.'
        )
    if not isinstance(stream, bool):
        raise InvalidRequest('"stream" must be true or false.')
    events = _Pull(reranker, ref.strip()).events()
    if stream:
        first = await anext(events)  # an immediate error gets an error status instead of a stream
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


class _Disconnected(RerankdError, code="client_disconnected"):
    """The client of a pull has disconnected."""


class _Pull:
    """One pull, in its own thread. It is cancelled when the client disconnects; the next pull of the same
    model resumes the download."""

    running = 0

    def __init__(self, reranker: Reranker, ref: str) -> None:
        self._reranker = reranker
        self._ref = ref
        self._events: asyncio.Queue[Pulled | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._wanted = True
        self._last_sent = ("", 0.0)

    async def events(self) -> AsyncGenerator[Pulled]:
        """Yield the events of the pull. Raises Overloaded if too many pulls are running."""
        if _Pull.running >= _MOST_PULLS:
            raise Overloaded(
                f"{_MOST_PULLS} pulls are already running. Retry when one is done.", retry_after_s=30
            )
        _Pull.running += 1
        task = asyncio.ensure_future(self._run())
        try:
            while (event := await self._events.get()) is not None:
                yield event
            await task
        finally:
            self._wanted = False
            _Pull.running -= 1

    async def _run(self) -> None:
        try:
            record = await asyncio.to_thread(self._fetch)
            self._send({"status": f"loading {record.name}"})
            served = await self._reranker.registry.add(record.name)
            await self._reranker.registry.load(served)
            self._send({"status": "success", "model": served.name})
        except RerankdError as error:
            self._send({"status": "error", "code": error.code, "message": error.message})
        finally:
            self._send(None)

    def _fetch(self) -> Record:
        # Importing the hub clients takes 0.25 s, which would delay every start.
        from rerankd import pulling

        settings = self._reranker.settings
        Store(settings.home).check_writable()
        self._progress("starting", 0, 0)
        return pulling.pull(settings, self._ref, say=self._say, progress=self._progress)

    def _say(self, text: str) -> None:
        self._send({"status": text})

    def _progress(self, what: str, done: int, total: int) -> None:
        if not self._wanted:
            raise _Disconnected("The client of this pull has disconnected.")
        last, at = self._last_sent
        now = time.monotonic()
        if what != last or done >= total or now - at >= _PROGRESS_INTERVAL_S:
            self._last_sent = (what, now)
            self._send({"status": what, "completed": done, "total": total})

    def _send(self, event: Pulled | None) -> None:
        """Queue an event, from any thread. None ends the stream."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)
