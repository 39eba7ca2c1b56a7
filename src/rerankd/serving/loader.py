"""Loads and unloads models as the policy says (see eviction.py)."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from rerankd.errors import DoesNotFit, EngineUnavailable, RerankdError
from rerankd.memory import MEMORY, Bytes, Need, lacking
from rerankd.process.tasks import Background
from rerankd.serving.eviction import Action, Admit, EvictionPolicy, Key, Load, Refuse, Unload

_log = logging.getLogger("rerankd.engine")

_MEASURE_EVERY_S = 10.0
_LOAD, _UNLOAD = "load a model", "unload a model"


@dataclass(frozen=True, slots=True)
class Acts:
    """What can be done with one model. `load`, which is given the cards to use, and `measure` return the
    bytes it holds by device, None where that can't be told; `load` raises RerankdError, `unload` nothing."""

    load: Callable[[tuple[str, ...]], Coroutine[Any, Any, Bytes | None]]
    unload: Callable[[], Coroutine[Any, Any, None]]
    measure: Callable[[], Bytes | None]


class Loader:
    """Loads and unloads models as the policy says, and lets requests use them."""

    def __init__(
        self,
        budgets: Bytes,
        *,
        least_stay_s: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budgets = budgets
        self._policy = EvictionPolicy(budgets, least_stay_s=least_stay_s)
        self._now = now
        self._acts: dict[Key, Acts] = {}
        # Asking the system costs as much as a small request does.
        self._measure_at: dict[Key, float] = {}
        self._who = itertools.count()
        self._admissions: dict[int, asyncio.Future[None]] = {}
        self._tasks = Background()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def keys(self) -> list[Key]:
        """All models that are known, the retired ones that are still in use among them."""
        return list(self._acts)

    def add(self, key: Key, least: Need, guess: Need, idle_unload_s: float | None, acts: Acts) -> None:
        """A model that may be used from now on. `least` is what it takes in any case, `guess` what it may
        take, for as long as that has not been measured. Raises DoesNotFit where it never could be loaded."""
        if (
            lacking(least.within(self.budgets), self.budgets)
            or least.within(self.budgets).total < least.total
        ):
            raise self._does_not_fit(key, least)
        # Nothing is refused by a guess: it is tried, alone.
        self._policy.add(key, guess.within(self.budgets), idle_unload_s)
        self._acts[key] = acts

    def fits(self, key: Key) -> bool:
        """Whether the model could be loaded without unloading another."""
        return self._policy.fits(key)

    def retire(self, key: Key) -> None:
        """The model is not used any more by those who come now; when the others have gone, it is unloaded."""
        self._carry_out(self._policy.retire(key, self._now()))
        self._forget(key)

    def unload(self, key: Key) -> None:
        """Have the model unloaded as soon as nobody uses it; the next one to use it has it loaded again."""
        self._carry_out(self._policy.unload(key, self._now()))

    @contextlib.asynccontextmanager
    async def use(self, key: Key) -> AsyncIterator[None]:
        """Wait until the model is loaded, and keep it so until the block ends.

        Raises DoesNotFit, what made the load fail, or EngineUnavailable once the loader is closed.
        """
        if self._closed or key not in self._acts:
            raise EngineUnavailable("The engine is stopped.")
        who = next(self._who)
        admission = self._admissions[who] = asyncio.get_running_loop().create_future()
        self._carry_out(self._policy.ask(key, who, self._now()))
        try:
            await admission
            yield
        finally:
            del self._admissions[who]
            if not self._closed:
                self._leave(key, who)

    async def close(self) -> None:
        """Load and unload nothing more, and tell those who wait for a model. Safe to call again."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for who in list(self._admissions):
            self._settle(who, EngineUnavailable("The engine is stopped."))
        loading = [task for task in self._tasks if task.get_name() == _LOAD]
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)

    def _leave(self, key: Key, who: int) -> None:
        now = self._now()
        actions = self._policy.leave(key, who, now)
        if self._policy.is_idle(key) and now >= self._measure_at.get(key, now):
            self._measure_at[key] = now + _MEASURE_EVERY_S
            actions += self._policy.measured(key, self._acts[key].measure(), now)
        self._carry_out(actions)
        self._forget(key)

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Load(key, cards):
                    self._tasks.begin(self._load(key, cards), _LOAD)
                case Unload(key):
                    self._tasks.begin(self._unload(key), _UNLOAD)
                case Admit(who):
                    self._settle(who, None)
                case Refuse(key, who, needs) if needs is not None:
                    self._settle(who, self._does_not_fit(key, needs))
        self._set_timer()

    def _settle(self, who: int, error: RerankdError | None) -> None:
        admission = self._admissions.get(who)
        if admission is None or admission.done():
            return
        if error is None:
            admission.set_result(None)
        else:
            admission.set_exception(error)

    def _does_not_fit(self, key: Key, needs: Need) -> DoesNotFit:
        short = lacking(needs, self.budgets) or frozenset(self.budgets)
        kind, size = "memory", needs.total
        if short == {MEMORY}:
            size = needs.memory
        elif MEMORY not in short:
            kind, size = "GPU memory", needs.cards
        bound = sum(self.budgets[device] for device in short)
        return DoesNotFit(
            f"{key} needs {size / 2**20:,.0f} MiB of {kind}, and all engines together may hold "
            f"{bound / 2**20:,.0f} MiB. Take a smaller quantisation or a smaller model, or raise "
            "memory_budget."
        )

    async def _load(self, key: Key, cards: tuple[str, ...]) -> None:
        try:
            held = await self._acts[key].load(cards)
        except RerankdError as error:
            self._fail(key, error)
        except Exception as error:  # the crash boundary of this task
            _log.exception("a model could not be loaded for an unexpected reason")
            self._fail(key, EngineUnavailable(f"rerankd failed to load the model: {error!r}."))
        else:
            if not self._closed:
                self._carry_out(self._policy.loaded(key, held, self._now()))

    def _fail(self, key: Key, error: RerankdError) -> None:
        if self._closed:
            return
        actions = self._policy.failed(key, self._now())
        for action in actions:
            if isinstance(action, Refuse) and action.needs is None:
                self._settle(action.who, copy.copy(error))  # one each: a raised error collects tracebacks
        self._carry_out(actions)
        self._forget(key)

    async def _unload(self, key: Key) -> None:
        try:
            await self._acts[key].unload()
        except Exception:  # the crash boundary of this task
            _log.exception("a model could not be unloaded for an unexpected reason")
        if not self._closed:
            self._carry_out(self._policy.unloaded(key, self._now()))
            self._forget(key)

    def _forget(self, key: Key) -> None:
        if self._policy.phase(key) is None:
            self._acts.pop(key, None)
            self._measure_at.pop(key, None)

    def _set_timer(self) -> None:
        at = self._policy.wake_at()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at is not None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(max(at - self._now(), 0.0), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._carry_out(self._policy.tick(self._now()))
