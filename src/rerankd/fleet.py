"""The models that are served: which there are, by which names, and what a change of settings does to them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from rerankd import config
from rerankd import prepare as preparing
from rerankd.config import Settings, Wanted
from rerankd.engine import installed, machine, rundir
from rerankd.engine.pool import Acts, Pool
from rerankd.errors import ConfigError, Conflict, RerankdError, UnknownModel
from rerankd.metrics import Metrics, Reading
from rerankd.prepare import Model
from rerankd.served import Served, bounds
from rerankd.state import StateStore

_log = logging.getLogger("rerankd")

# What is left of the machine's memory is for the system, this service, and the caller's own programs.
_SHARE_FOR_ENGINES = 0.8


class Fleet:
    """Owner of the served models and of the settings they are served by. Which of them are loaded is the
    pool's affair (see engine/pool.py)."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self._metrics = metrics
        self._state = StateStore(settings.home)
        self._pool = Pool(_budget_bytes(settings), least_stay_s=settings.least_stay_s)
        self._served: list[Served] = []
        self._pulled: list[Wanted] = []
        self._run_dir: rundir.RunDir | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()

    @property
    def models(self) -> tuple[Served, ...]:
        """The models that are served, in the order of the settings."""
        return tuple(self._served)

    @property
    def budget_bytes(self) -> int | None:
        """What all engines may hold together; None where there is no bound."""
        return self._pool.budget_bytes

    def begin_with(self, models: Sequence[Model]) -> None:
        """Serve these. Raises ConfigError where two have one name, and DoesNotFit."""
        _check_names(models)
        self._served = [self._add(model) for model in models]

    async def start(self) -> None:
        """Load the models that are wanted from the start, in order, as far as they fit. Raises what keeps the
        only one, or all of them, from being loaded; else that is logged."""
        if not self._served:
            self.begin_with(await asyncio.to_thread(_prepare_all, self.settings))
        self._run_dir = await asyncio.to_thread(rundir.make)
        wanted = [served for served in self._served if served.model.wanted.preload]
        errors: list[RerankdError] = []
        for served in wanted:
            if self._pool.fits(served):
                try:
                    await self.load(served)
                except RerankdError as error:
                    errors.append(error)
        if errors and len(errors) == len(wanted):
            raise errors[0]
        for failure in errors:
            _log.error("%s", failure.message)

    async def drain(self) -> None:
        """Take no new requests, and wait for those under way, for up to `drain_timeout_s`."""
        everyone = self._everyone()
        for served in everyone:
            served.queue.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_timeout_s):
                await asyncio.gather(*(served.queue.wait_empty() for served in everyone))

    async def close(self, *, at_once: bool = False) -> None:
        """Stop the engines and remove what they left; safe to call again, and with `at_once` to cut an
        earlier call short."""
        everyone = self._everyone()
        for served in everyone:
            served.queue.close()
        await self._pool.close()
        await asyncio.gather(*(served.unload(at_once=at_once) for served in everyone))
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._run_dir is not None:
            self._run_dir.remove()

    def find(self, asked: str | None) -> Served:
        """The model that is served under the name `asked`.

        Where one model is served any name is it, unless strict_model_names is set: people's apps send the
        name of the hosted model that they were made for. Raises UnknownModel, which lists the known names.
        """
        if not asked or (len(self._served) == 1 and not self.settings.strict_model_names):
            return self._served[0]
        return self.named(asked)

    def named(self, name: str) -> Served:
        """The model of exactly this name. Raises UnknownModel, which lists the known names."""
        for served in self._served:
            if name in served.model.names:
                return served
        raise self.unknown(name)

    def unknown(self, name: str) -> UnknownModel:
        """The error of who asks for a model of this name; it lists the known ones."""
        known = ", ".join(known for served in self._served for known in served.model.names)
        return UnknownModel(f"There is no model {name!r} here. Served under these names: {known}.")

    async def load(self, served: Served) -> None:
        """Have a model loaded, and wait for it. Raises what a request for it would be told."""
        served.reload_failed()
        async with self.use(served):
            pass

    def use(self, served: Served) -> AbstractAsyncContextManager[None]:
        """Wait until a model is loaded, and keep it so until the block ends. Raises DoesNotFit, and what
        keeps its engine from being ready."""
        return self._pool.use(served)

    def unload(self, served: Served) -> None:
        """Have a model unloaded as soon as nobody uses it."""
        self._pool.unload(served)

    async def reload(self, served: Served) -> None:
        """Try a failed engine again, or replace a running one between requests. A file that has changed is
        read anew. Returns when that has begun. Raises what makes the new file one that can't be served."""
        async with self._changing:
            await self._reload(served)

    async def _reload(self, served: Served) -> None:
        if await asyncio.to_thread(served.is_changed):
            model = await asyncio.to_thread(preparing.prepare, self.settings, served.model.wanted)
            self._replace(served, self._add(model))
        else:
            served.reload()
            self._warm(served)

    async def add(self, ref: str) -> Served:
        """Serve one more model, or a served one anew, until the service ends. Raises what `prepare` raises,
        ConfigError and DoesNotFit."""
        async with self._changing:
            return await self._add_ref(ref)

    async def _add_ref(self, ref: str) -> Served:
        alone = self.settings.model_copy(update={"model": (ref,), "alias": ()})
        wanted = alone.wanted(ref)[0]
        model = await asyncio.to_thread(preparing.prepare, self.settings, wanted)
        for served in self._served:
            if served.model.path == model.path:
                await self._reload(served)
                return self.named(served.name)
        _check_names([*(served.model for served in self._served), model])
        self._pulled.append(wanted)
        self._served.append(self._add(model))
        return self._served[-1]

    def drop(self, served: Served) -> None:
        """Serve a model no more. Raises Conflict where it is the only one."""
        if len(self._served) == 1:
            raise Conflict(f"{served.name} is the only model that is served, so it can't be removed here.")
        self._served.remove(served)
        self._pulled = [wanted for wanted in self._pulled if wanted != served.model.wanted]
        self._pool.retire(served)

    async def apply(self, settings: Settings) -> None:
        """Go on by other settings: what has changed is stopped and started, and nothing else is touched.
        Models that have failed are tried again, and files that have changed are read anew.

        Raises what makes the new settings ones that can't be served; then nothing has changed.
        """
        async with self._changing:
            await self._apply(settings)

    async def _apply(self, settings: Settings) -> None:
        fixed = sorted(
            name for name in config.FIXED if getattr(settings, name) != getattr(self.settings, name)
        )
        settings = settings.model_copy(update={name: getattr(self.settings, name) for name in fixed})
        same = not config.engines_differ(self.settings, settings)
        kept: dict[Wanted, Served] = {}
        for served in self._served:
            if same and not await asyncio.to_thread(served.is_changed):
                kept[served.model.wanted] = served
        wanted = [*await asyncio.to_thread(preparing.wanted, settings), *self._pulled]
        models = {
            one: await asyncio.to_thread(preparing.prepare, settings, one)
            for one in wanted
            if one not in kept
        }
        _check_names([kept[one].model if one in kept else models[one] for one in wanted])
        before, self.settings = self.settings, settings
        added: dict[Wanted, Served] = {}
        try:
            for one, model in models.items():
                added[one] = self._add(model)
        except RerankdError:
            for served in added.values():
                self._pool.retire(served)
            self.settings = before
            raise
        old, self._served = self._served, [kept.get(one) or added[one] for one in wanted]
        for served in old:
            if served not in self._served:
                self._pool.retire(served)
        for served in self._served:
            served.queue.line.bounds = bounds(settings)
            if served not in old or served.state.phase == "failed":
                served.reload_failed()
                self._warm(served)
        if fixed:
            _log.warning("changed settings that need a restart of rerankd: %s", ", ".join(fixed))
        changed = [served.name for served in self._served if served not in old]
        _log.info("the settings were read again; models that are new or changed: %s", changed or "none")

    def readings(self) -> list[Reading]:
        """What is read off for the metrics."""
        return [reading for served in self._served for reading in served.readings()]

    def _add(self, model: Model) -> Served:
        """Make a model known to the pool. Raises DoesNotFit."""
        served = Served(model, self.settings, self._metrics, self._sockets, self._state)
        acts = Acts(served.load, served.unload, served.memory_bytes)
        self._pool.add(served, model.facts.size_bytes, model.memory_guess, model.wanted.idle_unload_s, acts)
        return served

    def _replace(self, old: Served, new: Served) -> None:
        self._served[self._served.index(old)] = new
        self._pool.retire(old)
        self._warm(new)

    def _warm(self, served: Served) -> None:
        """Have a model loaded that is wanted from the start, without waiting for it."""

        async def load() -> None:
            try:
                await self.load(served)
            except RerankdError as error:
                _log.error("%s: %s", served.name, error.message)

        if served.model.wanted.preload:
            task = asyncio.get_running_loop().create_task(load())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _everyone(self) -> list[Served]:
        """All models, those that are served no more but still at work among them."""
        return [key for key in self._pool.keys if isinstance(key, Served)]

    def _sockets(self) -> rundir.RunDir:
        assert self._run_dir is not None, "start the fleet first"
        return self._run_dir


def _prepare_all(settings: Settings) -> list[Model]:
    return [preparing.prepare(settings, wanted) for wanted in preparing.wanted(settings)]


def _check_names(models: Sequence[Model]) -> None:
    """Raise ConfigError where two models would answer to one name."""
    owners: dict[str, str] = {}
    for model in models:
        for name in dict.fromkeys(model.names):
            if name in owners:
                raise ConfigError(
                    f"Two models would answer to {name!r}: {owners[name]} and {model.path}. Give one of them "
                    "another name, as a [models.NAME] section or with aliases."
                )
            owners[name] = str(model.path)


def _budget_bytes(settings: Settings) -> int | None:
    """What all engines may hold together; None where it can't be told."""
    if settings.memory_budget is not None:
        return settings.memory_budget
    # Where nothing is known of a GPU, what can be measured is the machine's own memory.
    on_gpus = sum(gpu.total_bytes for gpu in installed.chosen(settings).gpus or ())
    memory = on_gpus or machine.read().memory_bytes
    return int(memory * _SHARE_FOR_ENGINES) if memory is not None else None
