"""One upstream server: its state by checks and by the outcome of requests, and its answers.

`watch` is the only task that makes a server usable; a request that fails for a fault of the server makes it
unusable at once. The delay between checks then grows from 0.2 s to 5 s, until a request is answered: a server
that is healthy by its checks and fails on every request is not tried all the time. A request without a usable
server has the others checked at once (`checked`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from rerankd import affinity
from rerankd.client import Client
from rerankd.config import Settings, UpstreamSettings
from rerankd.domain import RerankRequest
from rerankd.embedding import EmbedRequest, EmbedResult
from rerankd.errors import ConfigError, EngineTimeout, EngineUnavailable, RerankdError
from rerankd.process.tasks import Changes
from rerankd.remote_models import Phase
from rerankd.rerank_result import RerankResult
from rerankd.upstreams.calls import Calls
from rerankd.upstreams.connection import Connection, api_key
from rerankd.upstreams.discovery import CHECK_S, Explorer, Found, Kind, Served, base
from rerankd.upstreams.refusals import TryAnother

_log = logging.getLogger("rerankd")
T = TypeVar("T")

_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 5.0
# A server that fails on this many requests in a row is left out, although it answers checks. One that lets
# them time out is spared: it gets a request every 5 s, and another server is asked beside it.
_MOST_UNANSWERED = 3


class Server:
    """A server. Its attributes are read by all and written here alone. `changed` is called after a change of
    its state or models."""

    def __init__(
        self,
        name: str,
        settings: UpstreamSettings,
        shared: Settings,
        identity: str,
        changed: Callable[[], None],
    ) -> None:
        self.name = name
        self.settings, self.weight = settings, settings.weight
        self.seed = affinity.seed(name)
        self.phase: Phase = "starting"
        self.error: RerankdError | None = None
        # What the settings promise, until the server answers.
        self.models = tuple(Served((one,), is_starting=True) for one in settings.models)
        self.behind: tuple[str, ...] = ()
        self.requests = self.answered = self.failed = 0
        self.looked = asyncio.Event()
        # Done when the server fails: requests under way may never be answered.
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.has_listed = bool(settings.models)
        self._kind: Kind | None = None
        self._shared = shared
        self._identity = identity
        self._changed = changed
        self._failures = self._unanswered = 0
        self._next_check = 0.0
        self._wake = Changes()
        # When the last check ended, and the end of the next one that begins.
        self._last_check = self._last_request = -math.inf
        self._next_checked = Changes()
        self._is_awaited = self._answers_checks = False
        self._connection: Connection | None = None
        self._key: str | None = None

    @property
    def load(self) -> float:
        """For `affinity.choose`."""
        return self.requests

    @property
    def is_doubtful(self) -> bool:
        """Whether the last requests have not been answered, although checks may be."""
        return self._unanswered >= _MOST_UNANSWERED

    @property
    def is_spared(self) -> bool:
        """Whether others should answer the next request."""
        return self.is_doubtful and time.monotonic() < self._last_request + _LONGEST_DELAY_S

    @property
    def retry_after_s(self) -> float:
        """Seconds until the next check."""
        return max(self._next_check - time.monotonic(), 0.0)

    def serves(self, model: str) -> Served | None:
        """The model with this displayed name or alias, None if the server has none."""
        return next((one for one in self.models if model in one.names), None)

    def apply(self, settings: UpstreamSettings, shared: Settings) -> Connection | None:
        """Use changed settings with the same URL. Returns a connection that is not used any more."""
        is_same = shared.upstream_connect_timeout_s == self._shared.upstream_connect_timeout_s
        self.settings, self.weight, self._shared = settings, settings.weight, shared
        with contextlib.suppress(ConfigError):  # the next check reports it
            is_same = is_same and api_key(settings) == self._key
        self._next_check = 0.0
        self._wake.tell()
        if is_same or self._connection is None:
            return None
        old, self._connection = self._connection, None
        return old

    def takes_over(self, old: Server) -> None:
        """Keep the names of the models of a server that this one replaces, until it answers."""
        self.models, self.has_listed = old.models, old.has_listed

    # Checks.

    async def watch(self) -> None:
        """Check the server until cancelled."""
        was_late = False
        while True:
            checked, self._next_checked = self._next_checked, Changes()
            self._is_awaited = False
            found = await self.look()
            # A busy machine may answer one check late, and its requests are answered nevertheless.
            is_late = isinstance(found, EngineTimeout) and self.phase != "failed" and not was_late
            was_late = isinstance(found, EngineTimeout)
            if isinstance(found, Found):
                self._is_found(found)
            elif not is_late:
                self._answers_checks = False
                self._fails(found)
            self.looked.set()
            self._plan_check()
            checked.tell()
            while (left_s := self._next_check - time.monotonic()) > 0:
                await self._wake.wait(left_s)

    async def checked(self) -> None:
        """Wait for the end of a check that begins after this call, at most for the time of one. It is not
        waited for if the server answers its checks, and fails nevertheless."""
        if self._answers_checks and self._failures > 1:
            return
        self._is_awaited = True
        self._next_check = min(self._next_check, self._last_check + _FIRST_DELAY_S)
        self._wake.tell()
        await self._next_checked.wait(CHECK_S)

    def _plan_check(self) -> None:
        self._last_check = time.monotonic()
        delay_s = self._shared.upstream_poll_s
        if self.phase == "failed" and self._failures:
            delay_s = min(_FIRST_DELAY_S * 2.0 ** min(self._failures - 1, 16), _LONGEST_DELAY_S)
            delay_s *= 1 - random.random() / 5
        elif self.phase == "starting" or any(one.is_starting for one in self.models):
            delay_s = min(delay_s, 1.0)
        if self._is_awaited:
            delay_s = min(delay_s, _FIRST_DELAY_S)
        self._next_check = time.monotonic() + delay_s

    async def look(self) -> Found | RerankdError:
        """Ask the server for its state and models; an error if it does not answer."""
        try:
            async with self._connected().used() as connection:
                explorer = Explorer(self.name, self.settings, connection, self._identity)
                return await explorer.look(self._kind)
        except TimeoutError:
            return EngineTimeout(f"The upstream server {self.name} did not answer a health check in time.")
        except TryAnother as reason:
            if not reason.was_cut:  # an idle connection may have been closed
                self._kind = None
            return reason.error
        except (ConfigError, ValueError) as error:
            return self._unreachable(error)
        except Exception:  # the crash boundary of the checks: whatever a server answers, they go on
            _log.exception("The check of the upstream server %s failed for an unexpected reason.", self.name)
            return EngineUnavailable(f"The check of the upstream server {self.name} failed. See the log.")

    def _unreachable(self, error: ConfigError | ValueError) -> EngineUnavailable:
        return EngineUnavailable(f"The upstream server {self.name} can't be reached: {error}")

    def _connected(self) -> Connection:
        """The connection. Raises ConfigError and ValueError."""
        if self._connection is None:
            self._key = api_key(self.settings)
            self._connection = Connection(
                self.name, self.settings.url, self._key, self._shared.upstream_connect_timeout_s
            )
        return self._connection

    def _is_found(self, found: Found) -> None:
        self._kind, self.has_listed = found.kind, True
        self._answers_checks = found.problem is None
        before = (self.phase, self.error and self.error.message, self.models)
        self.models, self.behind, self.error = found.models, found.behind, found.problem
        self.phase = "failed" if found.problem is not None else "ready"
        if (self.phase, self.error and self.error.message, self.models) == before:
            return
        if self.lost.done():
            self.lost = asyncio.get_running_loop().create_future()
        if found.problem is not None:
            _log.warning("%s", found.problem.message)
        elif before[0] != "ready":
            names = ", ".join(one.names[0] for one in self.models) or "no model"
            _log.info("the upstream server %s is ready (%s): %s", self.name, found.kind.name, names)
        self._changed()

    def _fails(self, error: RerankdError) -> None:
        self._failures += 1
        is_new = self.phase != "failed" or self.error is None or self.error.message != error.message
        self.phase, self.error = "failed", error
        if not self.lost.done():
            self.lost.set_result(None)
        if is_new:
            _log.warning("%s", error.message)
            self._changed()

    # Requests.

    async def rerank(
        self, model: Served, name: str, request: RerankRequest, timeout_s: float, client: Client
    ) -> RerankResult:
        """Answer a request with a model of this server; `name` is its name in the result. Raises TryAnother,
        and the errors that every server would raise."""
        calls = self._calls(timeout_s, client)
        return await self._counted(calls.connection, calls.rerank(model, name, request))

    async def embed(
        self, model: Served, name: str, request: EmbedRequest, timeout_s: float, client: Client
    ) -> EmbedResult:
        """Return the vectors of texts; otherwise as `rerank`."""
        calls = self._calls(timeout_s, client)
        return await self._counted(calls.connection, calls.embed(model, name, request))

    def _calls(self, timeout_s: float, client: Client) -> Calls:
        if self._kind is None:
            raise TryAnother(self.error or EngineUnavailable(f"The upstream server {self.name} is starting."))
        try:
            connection = self._connected()
        except (ConfigError, ValueError) as error:
            raise TryAnother(self._unreachable(error), "server") from None
        return Calls(
            self.name, base(self.settings.url), self._kind, connection, self._identity, timeout_s, client
        )

    async def _counted(self, connection: Connection, call: Coroutine[Any, Any, T]) -> T:
        self.requests += 1
        self._last_request = started = time.monotonic()
        try:
            async with connection.used():
                result = await call
        except asyncio.CancelledError:
            # A shorter timeout is the client's, and says nothing about the server.
            if time.monotonic() - started > 0.9 * self._shared.request_timeout_s:
                self.failed += 1
                self._unanswered += 1
            raise
        except TryAnother as reason:
            self._is_not_answered(reason)
            raise
        except RerankdError:
            self._is_answered()
            raise
        finally:
            self.requests -= 1
        self._is_answered()
        return result

    def _is_answered(self) -> None:
        self.answered += 1
        self._failures = self._unanswered = 0

    def _is_not_answered(self, reason: TryAnother) -> None:
        self.failed += 1
        if reason.blame == "none" or self.phase == "failed":
            return
        self._unanswered += 1
        if reason.was_cut:
            self._next_check = 0.0
        if reason.blame == "server" or self._unanswered >= _MOST_UNANSWERED:
            self._fails(reason.error)
            self._plan_check()
        self._wake.tell()

    async def close(self, *, at_once: bool = True) -> None:
        """Close the connections; requests under way end, or are answered first."""
        self.looked.set()  # tasks may wait for a server that was removed meanwhile
        self._next_checked.tell()
        if self._connection is not None:
            await (self._connection.close() if at_once else self._connection.retire())
