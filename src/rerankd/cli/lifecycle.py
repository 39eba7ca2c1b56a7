"""Lifecycle of the service: startup, signals (SIGTERM, SIGINT, SIGHUP) and shutdown.

    starting -(models read, at least one loaded)-> serving -(signal)-> stopping -> ended
        \\-(no model can be served)-> ended            second signal -> ended immediately

The service accepts connections in every phase before stopping. SIGTERM and SIGINT shut it down gracefully in
every phase, SIGUSR2 shuts it down to start again (`rerankd restart`), SIGHUP reloads the settings. systemd is
notified of each phase (see systemd.py).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from rerankd.api.systemd import Notifier
from rerankd.config import Settings
from rerankd.errors import RerankdError
from rerankd.process.tasks import Background
from rerankd.progress import Progress
from rerankd.service import Reranker
from rerankd.serving.model_names import AnyModel
from rerankd.serving.pending_model import PendingModel

if TYPE_CHECKING:
    from rerankd.api.server import Server

_log = logging.getLogger("rerankd")

# Interval of the notifications to systemd.
_NOTIFY_EVERY_S = 2.0
# A start may exceed systemd's TimeoutStartSec: each notification extends it by this much.
_EXTEND_S = 30


class Lifecycle:
    """One run of the service, and the only writer of its phase. `failure` is the error if no model can be
    served; `restarts`: the program starts again after its end."""

    def __init__(
        self,
        reranker: Reranker,
        reread: Callable[[], Settings],
        notifier: Notifier,
        *,
        sockets_outlive: bool = False,
    ) -> None:
        """`reread` reads the settings again. `sockets_outlive`: the service manager keeps the sockets open
        for the next process, so that new connections wait for that process instead of being refused."""
        self._reranker = reranker
        self._reread = reread
        self._notifier = notifier
        self._sockets_outlive = sockets_outlive
        self._server: Server | None = None
        self._starting: asyncio.Task[None] | None = None
        self._tasks = Background()
        self._ended = asyncio.Event()
        self._stopping = False
        self._at_once = False
        self._status = ""
        self.failure: RerankdError | None = None
        self.restarts = False

    def handle_signals(self) -> None:
        """Install the signal handlers. Call this before anything is started."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        loop.add_signal_handler(signal.SIGUSR2, self.restart)

    async def run(
        self,
        sockets: Sequence[socket.socket],
        make_server: Callable[[], Coroutine[Any, Any, Server]],
        started: Callable[[], None],
        report: Progress,
    ) -> None:
        """Serve, and load the models meanwhile, until a signal arrives or no model can be served.

        Calls `started` when startup is complete. Raises `failure`.
        """
        try:
            await self._reranker.registry.begin(report)
            self._starting = self._tasks.begin(self._start(started, report))
            if self._notifier:
                self._tasks.begin(self._notify())
            making = asyncio.ensure_future(make_server())
            ended = asyncio.ensure_future(self._ended.wait())
            await asyncio.wait({making, ended}, return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            if not self._ended.is_set():
                self._server = await making
                _freeze()
                await self._server.serve(list(sockets))
            else:
                making.cancel()
        finally:
            self._notifier.send("STOPPING=1")
            for task in self._tasks.copy():
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._reranker.close(at_once=self._at_once)
            if self._server is not None:
                await self._server.finish_responses()
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        """Shut down gracefully; on a second call, immediately."""
        if self._stopping:
            self._at_once = True
            self._tasks.begin(self._reranker.close(at_once=True))
            self._end()
            return
        self._stopping = True
        self._notifier.send("STOPPING=1", "STATUS=Finishing the requests in progress")
        if self._starting is not None:
            self._starting.cancel()
        self._tasks.begin(self._finish())

    def restart(self) -> None:
        """Shut down gracefully, to start again."""
        if not self._stopping:
            self.restarts = True
            self.stop()

    def reload(self) -> None:
        """Read the settings again and apply them."""
        self._tasks.begin(self._reload())

    async def _start(self, started: Callable[[], None], report: Progress) -> None:
        try:
            await self._reranker.registry.start(report)
        except RerankdError as error:
            self.failure = error
            self._notifier.send(f"STATUS={_one_line(error.message)}")
            self._end()
        else:
            self._notifier.send("READY=1", f"STATUS={self._describe()}")
            started()
            _freeze()

    async def _finish(self) -> None:
        if self._server is not None and self._sockets_outlive:
            await self._server.hand_over()
        await self._reranker.drain()
        self._end()

    async def _reload(self) -> None:
        is_serving = self._reranker.registry.setup.started
        if is_serving:  # during startup systemd waits for READY=1 anyway
            self._notifier.reloading()
        try:
            await self._reranker.apply(await asyncio.to_thread(self._reread))
        except RerankdError as error:
            _log.error("the settings were not reloaded: %s", error.message)
        if is_serving:
            self._notifier.send("READY=1", f"STATUS={self._describe()}")

    async def _notify(self) -> None:
        """Send systemd the watchdog signal and the status, periodically."""
        every_s = min(_NOTIFY_EVERY_S, (self._notifier.watchdog_s or _NOTIFY_EVERY_S * 2) / 2)
        while True:
            lines = ["WATCHDOG=1"] if self._notifier.watchdog_s else []
            if not self._reranker.registry.setup.started:
                lines.append(f"EXTEND_TIMEOUT_USEC={_EXTEND_S * 10**6}")
            if (status := self._describe()) != self._status and not self._stopping:
                self._status = status
                lines.append(f"STATUS={status}")
            if lines:
                self._notifier.send(*lines)
            await asyncio.sleep(every_s)

    def _describe(self) -> str:
        registry = self._reranker.registry
        return describe(registry.all, started=registry.setup.started)

    def _end(self) -> None:
        self._ended.set()
        if self._server is not None:
            self._server.end(at_once=self._at_once)


def describe(entries: Sequence[AnyModel], *, started: bool) -> str:
    """Return the state of the models in one line, for systemctl status."""
    groups: dict[str, list[str]] = {}
    for entry in entries:
        phase = entry.state.phase
        doing = f" ({entry.doing})" if isinstance(entry, PendingModel) and entry.doing else ""
        groups.setdefault(phase, []).append(entry.name + doing)
    words = "; ".join(f"{phase}: {', '.join(names)}" for phase, names in groups.items())
    return _one_line(("" if started else "Starting. ") + words)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _freeze() -> None:
    """Exclude the objects created during startup from later garbage collections: a full collection would
    traverse all of them, and no request is answered meanwhile (bench/pauses.py)."""
    gc.collect()
    gc.freeze()
