"""The registry of served models: start, reload, add and remove models, and apply changed settings."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from rerankd import config
from rerankd.config import Settings
from rerankd.engine_owner import Owner
from rerankd.errors import Conflict, RerankdError
from rerankd.memory import Bytes
from rerankd.metrics import Metrics
from rerankd.process import rundir
from rerankd.process.tasks import Background
from rerankd.progress import Progress, silent
from rerankd.remote_models import RemoteModels
from rerankd.serving import prepare_model as preparing
from rerankd.serving.admission import QueueLimits
from rerankd.serving.disk_caches import DiskCaches
from rerankd.serving.loader import Loader
from rerankd.serving.memory_budgets import budgets, needs
from rerankd.serving.model_list import Entry, check_names, first_of
from rerankd.serving.model_names import AnyModel, ModelNames, at_hand
from rerankd.serving.model_setup import ModelSetup
from rerankd.serving.pending_model import PendingModel
from rerankd.serving.prepare_model import Model
from rerankd.serving.queue import Queue
from rerankd.serving.remote_calls import RemoteCalls
from rerankd.serving.served_model import ServedModel
from rerankd.state import StateStore

_log = logging.getLogger("rerankd")


class ModelRegistry(ModelNames):
    """Owns the served models and their settings. model_setup.py prepares models; loader.py decides which are
    loaded."""

    def __init__(self, settings: Settings, metrics: Metrics, remote: RemoteModels) -> None:
        super().__init__(settings, remote)
        self.remote_calls = RemoteCalls(remote, settings, metrics)
        self._metrics = metrics
        self._state = StateStore(settings.home)
        self.disk = DiskCaches(settings)
        self._loader = Loader[ServedModel](budgets(settings), least_stay_s=settings.least_stay_s)
        self.setup = ModelSetup(self, self._take)
        self._run_dir: rundir.RunDir | None = None
        self._tasks = Background()
        self._sampling: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        self.owner: Owner | None = None

    @property
    def budgets(self) -> Bytes:
        """The memory budget of all engines, by device. A device without a budget is unlimited."""
        return self._loader.budgets

    def begin_with(self, models: Sequence[Model]) -> None:
        """Serve these models. Raises ConfigError if two have the same name, and DoesNotFit."""
        for model in models:
            self.entries += (self._add(model, self.entries),)

    async def begin(self, progress: Progress = silent) -> None:
        """Start to download and read the models of the settings, and return at once. From now on they can be
        requested. `progress` reports the downloads; it is called in other threads."""
        if not self.entries and not self.remote.replaces_local(self.settings):
            self._expect(await asyncio.to_thread(preparing.wanted, self.settings))
        self.owner = Owner.here()
        self.disk.start()
        self._run_dir = await asyncio.to_thread(rundir.make)
        self._sampling = asyncio.create_task(self._metrics.sample())
        for pending in self.pending:
            self.setup.begin(pending, progress)
        self.remote_calls.begin(self.setup)

    async def start(self, progress: Progress = silent) -> None:
        """Prepare the models, and load those that are preloaded, in order, if they fit in memory together;
        the others are loaded by their first request. Raises the first model's error if none can be served;
        otherwise the errors are logged."""

        async def load(served: ServedModel) -> None:
            if served.wanted.preload and self._loader.fits(served):
                progress(f"loading {served.model.path.name}", 0, 0)
                await self.load(served)

        if self._run_dir is None:
            await self.begin(progress)
        await self.setup.start(load)

    def _take(self, pending: PendingModel, model: Model) -> None:
        """Serve a model that was prepared. Raises DoesNotFit."""
        if pending in self.entries:
            served = self._add(model)
            self._replace(pending, served)
            if self.setup.started:
                _log.info("%s is now served", served.name)
                self._warm(served)
            self.setup.changed()

    async def drain(self) -> None:
        """Admit no new requests, and wait up to `drain_timeout_s` for the others to finish."""
        everyone = self._stop_admitting()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_timeout_s):
                queues: list[RemoteCalls | Queue] = [self.remote_calls, *(one.queue for one in everyone)]
                await asyncio.gather(*(queue.wait_empty() for queue in queues))

    async def close(self, *, at_once: bool = False) -> None:
        """Stop the engines and remove their files. Safe to call again; `at_once` ends an earlier call."""
        everyone = self._stop_admitting()
        await self.remote_calls.close()
        await self._loader.close()
        await asyncio.gather(*(served.unload(at_once=at_once) for served in everyone))
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._sampling is not None:
            self._sampling.cancel()
        if self._run_dir is not None:
            self._run_dir.remove()
        await asyncio.to_thread(self.disk.close)

    def _stop_admitting(self) -> list[ServedModel]:
        """Admit no new requests. Returns all models, including removed ones that are still in use."""
        self.setup.close()
        self.remote_calls.stop_admitting()
        everyone = self._loader.models
        for served in everyone:
            served.queue.close()
        return everyone

    async def load(self, served: ServedModel, keep_alive_s: float | None = None) -> None:
        """Load a model and wait for it; for `keep_alive_s` see `use`. Raises the error of a request to it."""
        served.reload_failed()
        async with self.use(served, keep_alive_s):
            pass

    def use(
        self, served: ServedModel, keep_alive_s: float | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Wait until a model is loaded, and keep it loaded until the block ends, then for `keep_alive_s`
        (inf: for good; None: as before). Raises DoesNotFit, and the error that keeps its engine from becoming
        ready."""
        return self._loader.use(served, keep_alive_s)

    def keep(self, served: ServedModel, keep_alive_s: float) -> None:
        """Unload a loaded model after this time without users; inf for never."""
        self._loader.keep(served, keep_alive_s)

    def idle_left_s(self, served: ServedModel) -> float | None:
        """Seconds until a model is unloaded if no request uses it; inf for never, None if it is not
        loaded."""
        return self._loader.idle_left_s(served)

    def unload(self, served: ServedModel) -> None:
        """Unload a model as soon as it has no users."""
        self._loader.unload(served)

    async def reload(self, entry: AnyModel) -> None:
        """Retry a refused model or a failed engine, or restart a running engine between requests. A changed
        file is read again. Returns when that has started. Raises the error if the changed file can't be
        served, and Conflict for a remote model."""
        if isinstance(entry, PendingModel):
            return entry.retry()
        served = at_hand(entry)
        async with self._changing:
            if served in self.entries:  # otherwise it was replaced by another reload, or removed
                await self._reload(served)

    async def _reload(self, served: ServedModel) -> None:
        if await asyncio.to_thread(served.is_changed):
            new = self._add(await asyncio.to_thread(preparing.prepare, self.settings, served.wanted))
            self._replace(served, new)
            self._retire(served)
            self._warm(new)
        else:
            served.reload()
            self._warm(served)

    async def add(self, ref: str) -> ServedModel:
        """Serve another model until rerankd exits, or reload a served one. Raises what `prepare` raises,
        ConfigError and DoesNotFit."""
        async with self._changing:
            model = await asyncio.to_thread(preparing.prepare, self.settings, self.settings.of(ref))
            for served in self.models:
                if served.model.path == model.path:
                    await self._reload(served)
                    return self.find(served.name)
            waited_for = first_of(model.names, self.pending)
            if isinstance(waited_for, PendingModel):  # the settings include it, and its file was missing
                model = await asyncio.to_thread(preparing.prepare, self.settings, waited_for.wanted)
                self.setup.give_up(waited_for)
                self._take(waited_for, model)
                return self.find(model.name)
            served = self._add(model, self.entries)
            self._append_pulled(served)
            return served

    def drop(self, served: ServedModel) -> None:
        """Stop serving a model. Raises Conflict if it is the only one."""
        if len(self.models) == 1:
            raise Conflict(
                f"{served.name} is the only served model and can't be removed. Add another model first."
            )
        self._remove(served)
        self._retire(served)

    async def apply(self, settings: Settings) -> None:
        """Apply changed settings: only what has changed is restarted. Refused and failed models are retried,
        and changed files are read again. A model that can't be served with the new settings keeps its
        previous ones, or is listed as refused.

        If none of the models can be served, raises the first error and changes nothing.
        """
        async with self._changing:
            await self._apply(settings)

    async def _apply(self, settings: Settings) -> None:
        fixed = config.changed(self.settings, settings, "restart")
        settings = settings.model_copy(update={name: getattr(self.settings, name) for name in fixed})
        found = await asyncio.to_thread(self._found, settings)
        errors = [outcome for outcome in found.values() if isinstance(outcome, RerankdError)]
        if errors and len(errors) == len(found) and not self.remote.models:
            raise errors[0]
        self.settings = settings
        self.remote_calls.apply(settings)
        old, entries = self.entries, self._plan(found, self._add)
        for entry in old:
            if entry not in entries:
                self.setup.give_up(entry) if isinstance(entry, PendingModel) else self._retire(entry)
        for entry in entries:
            if isinstance(entry, PendingModel):
                entry.retry() if entry in old else self.setup.begin(entry, silent)
            else:
                entry.queue.scheduler.queue_limits = QueueLimits.of(settings)
                if entry not in old or entry.state.phase == "failed":
                    entry.reload_failed()
                    self._warm(entry)
        self.setup.changed()
        if fixed:
            _log.warning(
                "these changed settings take effect after a restart of rerankd: %s", ", ".join(fixed)
            )
        changed = [entry.name for entry in entries if entry not in old]
        _log.info("the settings were reloaded; new or changed models: %s", changed or "none")

    def _add(self, model: Model, beside: Sequence[Entry] = ()) -> ServedModel:
        """Add a model to the loader. Raises DoesNotFit, and ConfigError if a model in `beside` has one of its
        names."""
        check_names(model.names, beside)
        served = ServedModel(model, self.settings, self._metrics, self._sockets, self._state, self.disk)
        served.on_changed_file = lambda: self._reread(served)
        least, guess = needs(model, self.budgets)
        self._loader.add(served, least, guess, model.wanted.idle_unload_s)
        return served

    def _warm(self, served: ServedModel) -> None:
        """Load a preloaded model in the background."""

        async def load() -> None:
            try:
                await self.load(served)
            except RerankdError as error:
                _log.error("%s: %s", served.name, error.message)

        if served.wanted.preload:
            self._tasks.begin(load(), f"load {served.name}")

    def _retire(self, served: ServedModel) -> None:
        """Unload a model that is no longer served, as soon as the requests that it has admitted have
        finished: also those to a cascade that have not reached its stage."""

        async def retire() -> None:
            await served.queue.wait_empty()
            self._loader.retire(served)

        if len(served.queue.scheduler):
            self._tasks.begin(retire(), f"retire {served.name}")
        else:
            self._loader.retire(served)

    def _reread(self, served: ServedModel) -> None:
        """Reload a model whose file has changed, which was noticed when an engine was started."""

        async def reload() -> None:
            try:
                if served in self.entries:
                    await self.reload(served)
            except RerankdError as error:  # the next start of an engine checks again
                served.why_not_read = error.message
                _log.warning("%s: %s", served.name, error.message)

        self._tasks.begin(reload(), f"reload {served.name}")

    def _sockets(self) -> rundir.RunDir:
        assert self._run_dir is not None, "begin first"
        return self._run_dir
