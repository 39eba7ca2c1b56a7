"""The models that are served: how they come to be, and what a change of settings does to them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from rerankd import config
from rerankd.config import EffectiveModelSettings, Settings
from rerankd.errors import (
    Conflict,
    Overloaded,
    RerankdError,
    Stopping,
)
from rerankd.memory import MEMORY, Bytes, Need
from rerankd.metrics import Metrics, Reading
from rerankd.owner import Owner
from rerankd.process import rundir
from rerankd.serving import prepare as preparing
from rerankd.serving.budgets import budgets
from rerankd.serving.loader import Acts, Loader
from rerankd.serving.pending import Pending, Report
from rerankd.serving.prepare import Model
from rerankd.serving.roster import Entry, Roster, wanted_of
from rerankd.serving.served_model import ServedModel, bounds
from rerankd.state import StateStore

_log = logging.getLogger("rerankd")

# Who waits for a download looks at its rate this often.
_LOOK_S = 1.0


def _silent(what: str, done: int, total: int) -> None:
    pass


class ModelRegistry(Roster):
    """Owner of the served models and of the settings they are served by. Which of them are loaded is the
    loader's affair (see loader.py). `started` tells whether all models of the start have been read, and
    loaded as far as they are wanted loaded; `is_closing` that no requests are taken any more."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        super().__init__(settings)
        self.started = False
        self.began_at = time.monotonic()
        self._metrics = metrics
        self._state = StateStore(settings.home)
        self._loader = Loader(budgets(settings), least_stay_s=settings.least_stay_s)
        self._pulled: list[str] = []
        self._default = ""
        self._run_dir: rundir.RunDir | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._bringing: dict[Pending, asyncio.Task[None]] = {}
        self._changing = asyncio.Lock()
        self._changed = asyncio.Event()
        self._waiting = 0
        self.is_closing = False
        self.owner: Owner | None = None

    @property
    def budgets(self) -> Bytes:
        """What all engines may hold together, by device. A device that is not named has no bound."""
        return self._loader.budgets

    @property
    def budget_bytes(self) -> int | None:
        """The same where models mostly lie: of the cards, or of the machine's memory without any; None where
        there is no bound."""
        return sum(size for device, size in self.budgets.items() if device != MEMORY) or self.budgets.get(
            MEMORY
        )

    def begin_with(self, models: Sequence[Model]) -> None:
        """Serve these. Raises ConfigError where two have one name, and DoesNotFit."""
        for model in models:
            if clash := self._clash(model.names, self._entries):
                raise clash
            self._entries.append(self._add(model))

    async def begin(self, progress: Report = _silent) -> None:
        """Begin to fetch and read the models of the settings; returns at once. From now on they can be asked
        for. `progress` is told of what is fetched, from other threads."""
        if not self._entries:
            wanted = await asyncio.to_thread(preparing.wanted, self.settings)
            self._default = wanted[0].ref
            self._entries = [Pending(one, preparing.names_of(one)) for one in wanted]
        self.owner = Owner.here()
        self._run_dir = await asyncio.to_thread(rundir.make)
        for pending in self.pending:
            self._bring(pending, progress)

    async def start(self, progress: Report = _silent) -> None:
        """Read the models, and load those that are wanted from the start, in order, as far as they fit.
        Raises the reason of the first where none of them can be served; else the reasons are logged."""
        if self._run_dir is None:
            await self.begin(progress)
        failed: dict[ServedModel, RerankdError | None] = {}
        while True:
            fresh = next((served for served in self.models if served not in failed), None)
            starting = [one for one in self.pending if one.phase == "starting"]
            if fresh is not None and not any(self._comes_soon(one, fresh) for one in starting):
                failed[fresh] = await self._try(fresh, progress) if fresh.model.wanted.preload else None
            elif starting:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._changed.wait()
            else:
                break
        reasons = {
            entry: entry.error if isinstance(entry, Pending) else failed[entry] for entry in self._entries
        }
        errors = [error for error in reasons.values() if error is not None]
        if errors and len(errors) == len(reasons):
            raise errors[0]
        for entry, error in reasons.items():
            if error is not None:
                _log.error("%s is not served: %s", entry.name, error.message)
        self.started = True
        self._notify()

    def _comes_soon(self, pending: Pending, served: ServedModel) -> bool:
        """Whether a model before `served` will be read in no time, so that it may be loaded first."""
        is_before = self._entries.index(pending) < self._entries.index(served)
        return is_before and not pending.doing and time.monotonic() - pending.since < _LOOK_S

    async def _try(self, served: ServedModel, progress: Report) -> RerankdError | None:
        """What keeps a model from being loaded at the start. What does not fit beside the others waits for
        its first request."""
        if self._loader.fits(served):
            progress(f"loading {served.model.path.name}", 0, 0)
            try:
                await self.load(served)
            except RerankdError as error:
                return error
        return None

    def _bring(self, pending: Pending, progress: Report = _silent) -> None:
        """Have a model read, and tried again, until it is served or not wanted any more."""

        def report(what: str, done: int, total: int) -> None:
            pending.report(what, done, total)
            progress(what, done, total)

        async def bring() -> None:
            while True:
                if pending.error is not None and await pending.wait_for_retry():
                    pending.begin()
                try:
                    if clash := self._clash(preparing.names_of(pending.wanted), self._before(pending)):
                        raise clash
                    model = await asyncio.to_thread(preparing.prepare, self.settings, pending.wanted, report)
                    return self._take(pending, model)
                except RerankdError as error:
                    self._refuse(pending, error)
                except Exception as error:  # the crash boundary of this task
                    _log.exception("%s could not be read for an unexpected reason", pending.name)
                    self._refuse(pending, RerankdError(f"rerankd failed to read it: {error!r}."))

        task = self._bringing[pending] = asyncio.get_running_loop().create_task(bring())
        task.add_done_callback(lambda _: self._bringing.pop(pending, None))

    def _take(self, pending: Pending, model: Model) -> None:
        """A model has been read: serve it. Raises DoesNotFit."""
        if pending in self._entries:
            served = self._add(model)
            self._entries[self._entries.index(pending)] = served
            if self.started:
                _log.info("%s is served now", served.name)
                self._warm(served)
            self._notify()

    def _refuse(self, pending: Pending, error: RerankdError) -> None:
        before = pending.error
        pending.names = self._own_names(pending.wanted, self._before(pending))
        pending.refuse(error)
        if self.started and (before is None or before.message != error.message):
            _log.error("%s is not served: %s", pending.name, error.message)
        self._notify()

    def _give_up(self, pending: Pending) -> None:
        """Nobody wants the model any more."""
        pending.is_dropped = True
        if pending in self._bringing:
            self._bringing[pending].cancel()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def drain(self) -> None:
        """Take no new requests, and wait for those under way, for up to `drain_timeout_s`."""
        everyone = self._everyone()
        self._close_doors(everyone)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_timeout_s):
                await asyncio.gather(*(served.queue.wait_empty() for served in everyone))

    async def close(self, *, at_once: bool = False) -> None:
        """Stop the engines and remove what they left; safe to call again, and with `at_once` to cut an
        earlier call short."""
        everyone = self._everyone()
        self._close_doors(everyone)
        for pending in list(self._bringing):
            self._give_up(pending)
        await self._loader.close()
        await asyncio.gather(*(served.unload(at_once=at_once) for served in everyone))
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._run_dir is not None:
            self._run_dir.remove()

    def _close_doors(self, everyone: Iterable[ServedModel]) -> None:
        self.is_closing = True
        self._notify()
        for served in everyone:
            served.queue.close()

    async def until_read(self, asked: str | None, timeout_s: float) -> float:
        """Wait while the model is being fetched or read. Returns what is left of `timeout_s`.

        Raises UnknownModel; ModelPending past the time, or at once where a download's rate tells that it
        takes longer; Overloaded where too many wait already; Stopping.
        """
        entry = self.entry(asked)
        if not isinstance(entry, Pending) or entry.phase != "starting":
            return timeout_s
        if self._waiting >= self.settings.max_requests:
            raise Overloaded(
                f"{self._waiting} requests wait for models that are being made ready. Try again."
            )
        deadline = time.monotonic() + timeout_s
        self._waiting += 1
        try:
            while isinstance(entry := self.entry(asked), Pending) and entry.phase == "starting":
                if self.is_closing:
                    raise Stopping("rerankd is stopping. Ask another one, or try again.")
                left_s = deadline - time.monotonic()
                if left_s <= (entry.left_s() or 0.0):
                    raise entry.refusal()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left_s, _LOOK_S)):
                        await self._changed.wait()
        finally:
            self._waiting -= 1
        return max(deadline - time.monotonic(), 0.001)

    async def load(self, served: ServedModel) -> None:
        """Have a model loaded, and wait for it. Raises what a request for it would be told."""
        served.reload_failed()
        async with self.use(served):
            pass

    def use(self, served: ServedModel) -> AbstractAsyncContextManager[None]:
        """Wait until a model is loaded, and keep it so until the block ends. Raises DoesNotFit, and what
        keeps its engine from being ready."""
        return self._loader.use(served)

    def unload(self, served: ServedModel) -> None:
        """Have a model unloaded as soon as nobody uses it."""
        self._loader.unload(served)

    async def reload(self, entry: Entry) -> None:
        """Try a refused model or a failed engine again, or replace a running one between requests. A file
        that has changed is read anew. Returns when that has begun. Raises what makes the new file one that
        can't be served."""
        if isinstance(entry, Pending):
            return entry.retry()
        async with self._changing:
            if entry in self._entries:  # else another reload has replaced it meanwhile, or it was removed
                await self._reload(entry)

    async def _reload(self, served: ServedModel) -> None:
        if await asyncio.to_thread(served.is_changed):
            model = await asyncio.to_thread(preparing.prepare, self.settings, served.model.wanted)
            self._replace(served, self._add(model))
        else:
            served.reload()
            self._warm(served)

    async def add(self, ref: str) -> ServedModel:
        """Serve one more model, or a served one anew, until the service ends. Raises what `prepare` raises,
        ConfigError and DoesNotFit."""
        async with self._changing:
            return await self._add_ref(ref)

    async def _add_ref(self, ref: str) -> ServedModel:
        wanted = self.settings.of(ref)
        model = await asyncio.to_thread(preparing.prepare, self.settings, wanted)
        for served in self.models:
            if served.model.path == model.path:
                await self._reload(served)
                return self.find(served.name)
        waited_for = next((one for one in self.pending if set(one.names) & set(model.names)), None)
        if waited_for is not None:  # the settings name it, and it was missing until now
            model = await asyncio.to_thread(preparing.prepare, self.settings, waited_for.wanted)
            self._give_up(waited_for)
            self._take(waited_for, model)
            return self.find(model.name)
        if clash := self._clash(model.names, self._entries):
            raise clash
        self._pulled.append(wanted.ref)
        served = self._add(model)
        self._entries.append(served)
        return served

    def drop(self, served: ServedModel) -> None:
        """Serve a model no more. Raises Conflict where it is the only one."""
        if len(self.models) == 1:
            raise Conflict(f"{served.name} is the only model that is served, so it can't be removed here.")
        self._entries.remove(served)
        self._pulled = [ref for ref in self._pulled if ref != served.model.wanted.ref]
        if served.model.wanted.ref == self._default:
            self._default = ""
        self._loader.retire(served)

    async def apply(self, settings: Settings) -> None:
        """Go on by other settings: what has changed is stopped and started, and nothing else is touched.
        Models that were refused or have failed are tried again, and files that have changed are read anew. A
        model that can't be served as the new settings have it goes on as it was, or is listed as refused.

        Raises the first reason where none of the models could be served; then nothing has changed.
        """
        async with self._changing:
            await self._apply(settings)

    async def _apply(self, settings: Settings) -> None:
        fixed = config.changed(self.settings, settings, "restart")
        settings = settings.model_copy(update={name: getattr(self.settings, name) for name in fixed})
        wanted = await self._wanted(settings)
        kept = await self._kept(settings)
        read = {one: await _read(settings, one) for one in wanted if one not in kept}
        errors = [found for found in read.values() if isinstance(found, RerankdError)]
        if errors and len(errors) == len(wanted):
            raise errors[0]
        self.settings = settings
        entries = self._planned(wanted, kept, read)
        old, self._entries = self._entries, entries
        for entry in old:
            if entry not in entries:
                self._give_up(entry) if isinstance(entry, Pending) else self._loader.retire(entry)
        for entry in entries:
            if isinstance(entry, Pending):
                entry.retry() if entry in old else self._bring(entry)
            else:
                entry.queue.line.bounds = bounds(settings)
                if entry not in old or entry.state.phase == "failed":
                    entry.reload_failed()
                    self._warm(entry)
        self._notify()
        if fixed:
            _log.warning("changed settings that need a restart of rerankd: %s", ", ".join(fixed))
        changed = [entry.name for entry in entries if entry not in old]
        _log.info("the settings were read again; models that are new or changed: %s", changed or "none")

    async def _wanted(self, settings: Settings) -> list[EffectiveModelSettings]:
        """The models of the settings, and those that were pulled since the start and are not among them."""
        wanted = await asyncio.to_thread(preparing.wanted, settings)
        if not settings.model and not settings.models and self._default and wanted[0].ref in self._pulled:
            # It was pulled beside the model that is served by default, and did not replace it.
            wanted = settings.wanted(self._default)
        named = {one.ref for one in wanted}
        return [*wanted, *(settings.of(ref) for ref in self._pulled if ref not in named)]

    async def _kept(self, settings: Settings) -> dict[EffectiveModelSettings, Entry]:
        """The entries that new settings and the files leave as they are."""
        if config.engines_differ(self.settings, settings):
            return {}
        return {
            wanted_of(entry): entry
            for entry in self._entries
            if isinstance(entry, Pending) or not await asyncio.to_thread(entry.is_changed)
        }

    def _planned(
        self,
        wanted: Sequence[EffectiveModelSettings],
        kept: dict[EffectiveModelSettings, Entry],
        read: dict[EffectiveModelSettings, Model | RerankdError],
    ) -> list[Entry]:
        """The entries by new settings; the new ones are known to the loader."""
        entries: list[Entry] = []
        for one in wanted:
            own = preparing.names_of(one)
            found = kept.get(one) or read[one]
            if isinstance(found, Model):
                found = self._clash(found.names, entries) or self._add_or_error(found)
            if isinstance(found, RerankdError):
                was = next((old for old in self.models if old.name == own[0] and old not in entries), None)
                if was is None or self._clash(was.model.names, entries):
                    entries.append(Pending(one, self._own_names(one, entries), found))
                    _log.error("%s is not served: %s", entries[-1].name, found.message)
                else:
                    _log.error("%s goes on as it was: %s", was.name, found.message)
                    entries.append(was)
            else:
                entries.append(found)
        return entries

    def _add_or_error(self, model: Model) -> ServedModel | RerankdError:
        try:
            return self._add(model)
        except RerankdError as error:
            return error

    def readings(self) -> list[Reading]:
        """What is read off for the metrics."""
        found = [reading for served in self.models for reading in served.readings()]
        for entry in self._entries:
            is_served = isinstance(entry, ServedModel)
            found.append(
                Reading(
                    "model_served",
                    "1 where the model may be asked, 0 while it is read or refused",
                    entry.name,
                    is_served,
                )
            )
            if not is_served:
                found.append(Reading("engine_ready", "1 while the engine can answer", entry.name, 0))
        return found

    def _add(self, model: Model) -> ServedModel:
        """Make a model known to the loader. Raises DoesNotFit."""
        served = ServedModel(model, self.settings, self._metrics, self._sockets, self._state)
        served.on_changed_file = lambda: self._read_anew(served)
        has_cards = self.budgets.keys() - {MEMORY} != set()
        on_cards = has_cards and not model.engine.on_cpu

        def need(size_bytes: int) -> Need:
            return Need(0, size_bytes) if on_cards else Need(size_bytes)

        def held() -> Bytes | None:
            if has_cards:
                return served.held()
            size_bytes = served.memory_bytes()  # wherever that is: there is one budget for all
            return None if size_bytes is None else {MEMORY: size_bytes}

        async def load(cards: tuple[str, ...]) -> Bytes | None:
            await served.load(cards)
            return held()

        least, guess = need(model.facts.size_bytes), need(model.engine.memory_bytes)
        self._loader.add(served, least, guess, model.wanted.idle_unload_s, Acts(load, served.unload, held))
        return served

    def _replace(self, old: ServedModel, new: ServedModel) -> None:
        self._entries[self._entries.index(old)] = new
        self._loader.retire(old)
        self._warm(new)

    def _warm(self, served: ServedModel) -> None:
        """Have a model loaded that is wanted from the start, without waiting for it."""

        async def load() -> None:
            try:
                await self.load(served)
            except RerankdError as error:
                _log.error("%s: %s", served.name, error.message)

        if served.model.wanted.preload:
            self._in_background(load())

    def _read_anew(self, served: ServedModel) -> None:
        """The model's file was found to be another one at the start of an engine."""

        async def reload() -> None:
            try:
                if served in self._entries:
                    await self.reload(served)
            except RerankdError as error:  # it is looked at again with the next start
                served.why_not_read = error.message
                _log.warning("%s: %s", served.name, error.message)

        self._in_background(reload())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _everyone(self) -> list[ServedModel]:
        """All models, those that are served no more but still at work among them."""
        return [key for key in self._loader.keys if isinstance(key, ServedModel)]

    def _sockets(self) -> rundir.RunDir:
        assert self._run_dir is not None, "start the fleet first"
        return self._run_dir


async def _read(settings: Settings, wanted: EffectiveModelSettings) -> Model | RerankdError:
    try:
        return await asyncio.to_thread(preparing.prepare, settings, wanted)
    except RerankdError as error:
        return error
