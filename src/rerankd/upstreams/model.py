"""A model on one or several upstream servers: which of them answers a request, and what happens if one
fails.

Equal queries go to the same server while it is not busier than the others (see affinity.py), so that its
caches hold. If a server fails or refuses for load, one more is asked in the time that is left. Beside a slow
one a second one may be asked (`upstream_hedge_ms`), and beside one that fails its checks a second one is: the
first answer counts.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from rerankd import affinity, onward
from rerankd.client import Client
from rerankd.config import Settings
from rerankd.domain import RerankRequest
from rerankd.embedding import EmbedRequest, EmbedResult
from rerankd.errors import EngineUnavailable, Overloaded, RerankdError, UpstreamLoop
from rerankd.process.tasks import Changes
from rerankd.remote_models import Phase, Place, RemoteModel, RemoteState
from rerankd.rerank_result import RerankResult
from rerankd.upstreams.discovery import Served
from rerankd.upstreams.refusals import TryAnother
from rerankd.upstreams.server import Server

T = TypeVar("T")
# The servers that are asked for one request, the first included. One that closed the connection is asked
# again if there is no other: it may have closed an idle one.
_MOST_SERVERS = 2
# How often another server is looked for beside one that has failed while it had the request, or has not
# answered the ones before.
_SEARCH_S = 1.0
# A call without this much time left is not begun.
_LEAST_S = 0.05

_BEST_FIRST: tuple[Phase, ...] = ("ready", "starting", "failed")

Ask = Callable[[Server, Served, float], Coroutine[Any, Any, T]]


class UpstreamModel(RemoteModel):
    """A model, by its displayed name. `update` is called when the servers or their states change."""

    def __init__(self, name: str, identity: str) -> None:
        self.names: tuple[str, ...] = (name,)
        self.max_length: int | None = None
        self.is_embedder = False
        self.where = ""
        self._identity = identity
        self._servers: tuple[Server, ...] = ()
        self._unlisted: tuple[Server, ...] = ()
        self._settings = Settings.model_construct()
        self._state = RemoteState()
        self._changes = Changes()

    @property
    def state(self) -> RemoteState:
        return self._state

    @property
    def places(self) -> Sequence[Place]:
        return [self._place(server) for server in self._servers]

    def update(self, servers: tuple[Server, ...], unlisted: tuple[Server, ...], settings: Settings) -> None:
        """Use these servers, which all have the model. The unlisted ones may have it."""
        found = [served for server in servers if (served := server.serves(self.names[0])) is not None]
        aliases = dict.fromkeys(name for served in found for name in served.names)
        self.names = (self.names[0], *(name for name in aliases if name != self.names[0]))
        self.max_length = min((one.max_length for one in found if one.max_length is not None), default=None)
        self.is_embedder = any(one.is_embedder for one in found)
        self.where = servers[0].name if len(servers) == 1 else f"{len(servers)} upstream servers"
        self._servers, self._unlisted, self._settings = servers, unlisted, settings
        phase = self._phase()
        error = self._why_not(self.places) if phase == "failed" else None
        old = self._state
        if phase != old.phase or (error and error.message) != (old.error and old.error.message):
            since = time.monotonic() if phase != old.phase else old.since
            starts = old.starts + (phase == "ready" != old.phase)
            self._state = RemoteState(phase, error, since, starts)
        self._changes.tell()

    def _place(self, server: Server) -> Place:
        served = server.serves(self.name)
        phase, error = server.phase, server.error.message if server.error is not None else ""
        if phase == "ready" and served is not None and served.problem:
            phase, error = "starting" if served.is_starting else "failed", served.problem
        return Place(server.name, phase, server.requests, server.answered, server.failed, error)

    def _why_not(self, places: Sequence[Place]) -> EngineUnavailable:
        reasons = " ".join(
            one.error if one.error.startswith("The upstream") else f"{one.name}: {one.error or one.phase}."
            for one in places
        )
        return EngineUnavailable(
            f"No upstream server can answer for {self.name}. {reasons}", retry_after_s=self.retry_after_s()
        )

    def retry_after_s(self) -> int | None:
        return max(math.ceil(min((one.retry_after_s for one in self._servers), default=1.0)), 1)

    async def answer(self, request: RerankRequest, timeout_s: float, client: Client) -> RerankResult:
        key = affinity.key(self.name, request.query, request.instruction)
        return await self._ask(
            key,
            timeout_s,
            lambda server, served, left_s: server.rerank(served, self.name, request, left_s, client),
        )

    async def embed(self, request: EmbedRequest, timeout_s: float, client: Client) -> EmbedResult:
        # Vectors are cached for each text, and a request has many: its first one stands for all.
        first = request.texts[0]
        key = affinity.key(self.name, first if isinstance(first, str) else first.data.hex(), None)
        return await self._ask(
            key,
            timeout_s,
            lambda server, served, left_s: server.embed(served, self.name, request, left_s, client),
        )

    async def _ask(self, key: int, timeout_s: float, ask: Ask[T]) -> T:
        ends = time.monotonic() + timeout_s
        self._check_passed()
        await self._find_usable(())
        return await self._first_answer(key, ends, ask)

    async def _find_usable(self, tried: Sequence[Server]) -> None:
        """Wait until a server that has not been tried is usable, or can't be. If all have failed, each is
        asked once more: one may be back since its last check, and the others may have stopped since then."""
        if self._phase(tried) == "ready":
            return
        untried = [server for server in (*self._servers, *self._unlisted) if server not in tried]
        checks = asyncio.create_task(_all_checked(untried))
        checks.add_done_callback(lambda _: self._changes.tell())
        try:
            while (phase := self._phase(tried)) == "starting" or (phase == "failed" and not checks.done()):
                await self._changes.wait()
        finally:
            checks.cancel()

    def _phase(self, without: Sequence[Server] = ()) -> Phase:
        """The best phase of the servers, `failed` if there are none."""
        phases = [self._place(server).phase for server in self._servers if server not in without]
        return min(phases, key=_BEST_FIRST.index, default="failed")

    def _check_passed(self) -> None:
        passed = onward.current().passed
        if self._identity in passed or len(passed) >= onward.MOST_SERVERS:
            raise UpstreamLoop(
                f"The request for {self.name} came back to a server that has passed it on, or has passed "
                f"{onward.MOST_SERVERS} servers. Remove one of the [upstreams] sections that form the circle."
            )

    async def _first_answer(self, key: int, ends: float, ask: Ask[T]) -> T:
        tried: list[Server] = []
        cut: list[Server] = []
        calls: dict[asyncio.Task[T], Server] = {}
        errors: list[RerankdError] = []
        hedge_s = self._settings.upstream_hedge_ms / 1000 or None

        def begin() -> None:
            left_s = ends - time.monotonic()
            other = self._choose(key, tried) if len({*tried}) < _MOST_SERVERS else None
            server = other or (None if calls else next((one for one in cut if tried.count(one) == 1), None))
            if server is None or (tried and left_s < _LEAST_S):
                return
            served = server.serves(self.name)
            if served is not None:
                tried.append(server)
                calls[asyncio.ensure_future(ask(server, served, left_s))] = server

        try:
            begin()
            while calls:
                awaited: set[asyncio.Future[Any]] = {*calls}
                wait_s = None
                if len(tried) == 1:
                    lost = tried[0].lost
                    wait_s = _SEARCH_S if lost.done() or tried[0].is_doubtful else hedge_s
                    awaited |= set() if lost.done() else {lost}
                await asyncio.wait(awaited, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                ended = {call for call in calls if call.done()}
                if not ended:
                    begin()
                for call in ended:
                    server = calls.pop(call)
                    try:
                        return call.result()
                    except TryAnother as reason:
                        errors.append(reason.error)
                        if reason.was_cut:
                            cut.append(server)
                        if not calls:
                            if not isinstance(reason.error, Overloaded):
                                await self._find_usable(tried)
                            begin()
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        raise self._worst(errors)

    def _choose(self, key: int, tried: Sequence[Server]) -> Server | None:
        usable = [
            server for server in self._servers if server not in tried and self._place(server).phase == "ready"
        ]
        return affinity.choose(key, [server for server in usable if not server.is_spared] or usable)

    def _worst(self, errors: Sequence[RerankdError]) -> RerankdError:
        """The error of a request that no server has answered: that of a busy server, which will answer
        soonest, else the last one."""
        busy = [one for one in errors if isinstance(one, Overloaded)]
        if busy:
            return min(busy, key=lambda one: one.retry_after_s or 1)
        return errors[-1] if errors else self._why_not(self.places)


async def _all_checked(servers: Sequence[Server]) -> None:
    await asyncio.gather(*(server.checked() for server in servers))
