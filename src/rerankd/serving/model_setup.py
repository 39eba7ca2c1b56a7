"""Set up models: download and read each one, retry after failures, and let requests wait for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from rerankd import tracing
from rerankd.errors import Overloaded, RerankdError, Stopping
from rerankd.process.tasks import Changes
from rerankd.progress import Progress
from rerankd.serving import prepare_model as preparing
from rerankd.serving.model_list import check_names, own_names
from rerankd.serving.model_names import ModelNames
from rerankd.serving.pending_model import PendingModel
from rerankd.serving.prepare_model import Model
from rerankd.serving.served_model import ServedModel

_log = logging.getLogger("rerankd")

# Requests that wait for a download check its rate this often.
_LOOK_S = 1.0


class ModelSetup:
    """Prepares the pending models, and lets requests wait for them. `take` starts to serve a prepared model,
    and raises RerankdError if it can't be served.

    `started` is true once all models of the start have been prepared, and loaded if they are preloaded.
    `is_closing` is true once requests are no longer admitted.
    """

    def __init__(self, names: ModelNames, take: Callable[[PendingModel, Model], None]) -> None:
        self.started = False
        self._is_remote_found = False
        self.is_closing = False
        self._names = names
        self._take = take
        self._tasks: dict[PendingModel, asyncio.Task[None]] = {}
        self._changes = Changes()
        self._waiting = 0

    def begin(self, pending: PendingModel, progress: Progress) -> None:
        """Prepare a model in the background, and retry, until it is served or no longer wanted."""

        def report(what: str, done: int, total: int) -> None:
            pending.report(what, done, total)
            progress(what, done, total)

        async def read_and_retry() -> None:
            while True:
                if pending.error is not None and await pending.wait_for_retry():
                    pending.begin()
                try:
                    check_names(preparing.names_of(pending.wanted), self._names.before(pending))
                    settings = self._names.settings
                    model = await asyncio.to_thread(preparing.prepare, settings, pending.wanted, report)
                    return self._take(pending, model)
                except RerankdError as error:
                    self._refuse(pending, error)
                except Exception as error:  # the crash boundary of this task
                    _log.exception("%s could not be read for an unexpected reason", pending.name)
                    self._refuse(pending, RerankdError(f"rerankd failed to read it: {error!r}."))

        task = self._tasks[pending] = asyncio.get_running_loop().create_task(read_and_retry())
        task.add_done_callback(lambda _: self._tasks.pop(pending, None))

    def _refuse(self, pending: PendingModel, error: RerankdError) -> None:
        before = pending.error
        pending.names = own_names(pending.wanted, self._names.before(pending))
        pending.refuse(error)
        if self.started and (before is None or before.message != error.message):
            _log.error("%s is not served: %s", pending.name, error.message)
        self.changed()

    def give_up(self, pending: PendingModel) -> None:
        """Stop preparing a model that is no longer wanted."""
        pending.is_dropped = True
        if pending in self._tasks:
            self._tasks[pending].cancel()

    def changed(self) -> None:
        """Wake up the tasks that wait for a change of the models."""
        self._changes.tell()

    async def start(self, load: Callable[[ServedModel], Awaitable[None]]) -> None:
        """Wait until the models are prepared, and load those that are preloaded, in order. Raises the first
        model's error if none can be served; otherwise the errors are logged."""
        failed: dict[ServedModel, RerankdError | None] = {}
        while True:
            fresh = next((served for served in self._names.models if served not in failed), None)
            starting = [one for one in self._names.pending if one.phase == "starting"]
            if fresh is not None and not any(self._comes_soon(one, fresh) for one in starting):
                failed[fresh] = None
                try:
                    await load(fresh)
                except RerankdError as error:
                    failed[fresh] = error
            elif starting or not self._is_remote_found:
                await self._changes.wait(_LOOK_S)
            else:
                break
        reasons = {
            entry: entry.error if isinstance(entry, PendingModel) else failed[entry]
            for entry in self._names.entries
        }
        errors = [error for error in reasons.values() if error is not None]
        if errors and len(errors) == len(reasons) and not self._names.remote.models:
            raise errors[0]
        for entry, reason in reasons.items():
            if reason is not None:
                _log.error("%s is not served: %s", entry.name, reason.message)
        self.started = True
        self.changed()

    def remote_found(self) -> None:
        """Report that every place with remote models has answered once, or failed to."""
        self._is_remote_found = True
        self.changed()

    def _comes_soon(self, pending: PendingModel, served: ServedModel) -> bool:
        """Whether `pending` comes before `served` and will probably be prepared very soon, so that it should
        be loaded first."""
        is_before = served not in self._names.before(pending)
        return is_before and not pending.doing and time.monotonic() - pending.since < _LOOK_S

    async def wait_until_read(self, name: str | None, timeout_s: float) -> float:
        """Wait while the model is downloaded or read. Returns the rest of `timeout_s`.

        Raises UnknownModel; ModelPending after the timeout, or at once if the download will take longer;
        Overloaded if too many requests wait already; Stopping during shutdown.
        """
        if not self._must_wait(name):
            return timeout_s
        if self._waiting >= self._names.settings.max_requests:
            raise Overloaded(
                f"{self._waiting} requests already wait for models that are being prepared. Retry later."
            )
        deadline = time.monotonic() + timeout_s
        self._waiting += 1
        try:
            with tracing.step("load", least_s=tracing.SHORTEST_WAIT_S):
                while self._must_wait(name):
                    if self.is_closing:
                        raise Stopping("rerankd is shutting down. Retry later.")
                    left_s = deadline - time.monotonic()
                    pending = self._starting(name) if not self._names.may_be_found(name) else None
                    if pending is not None and left_s <= (pending.left_s() or 0.0):
                        raise pending.refusal()
                    if left_s <= 0:
                        break  # the model is not known
                    await self._changes.wait(min(left_s, _LOOK_S))
        finally:
            self._waiting -= 1
        return max(deadline - time.monotonic(), 0.001)

    def _must_wait(self, name: str | None) -> bool:
        is_awaited = not self._is_remote_found and self._names.may_be_found(name)
        return is_awaited or self._starting(name) is not None

    def _starting(self, name: str | None) -> PendingModel | None:
        """The model with this name, or of a stage of this cascade, if it is being prepared."""
        pending = (one for one in self._names.entries_of(name) if isinstance(one, PendingModel))
        return next((one for one in pending if one.phase == "starting"), None)

    def close(self) -> None:
        """Stop preparing models, and fail the waiting requests. Safe to call again."""
        self.is_closing = True
        for pending in list(self._tasks):
            self.give_up(pending)
        self.changed()
