"""Load and unload models as the eviction policy decides (see eviction.py)."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Hashable
from typing import Generic, Protocol, TypeVar

from rerankd import tracing
from rerankd.errors import DoesNotFit, EngineUnavailable, RerankdError
from rerankd.memory import MEMORY, Bytes, Need, lacking, main_bytes
from rerankd.process.tasks import Background
from rerankd.serving.eviction import Action, Admit, EvictionPolicy, Load, Refuse, Unload

_log = logging.getLogger("rerankd.engine")

_LOAD, _UNLOAD = "load a model", "unload a model"


class Loadable(Hashable, Protocol):
    """A model that can be loaded on the given GPUs; `str()` returns its name. `load` raises RerankdError,
    `unload` raises nothing. `held` returns the memory it uses in bytes by device, or None if that can't be
    measured."""

    async def load(self, cards: tuple[str, ...]) -> None: ...
    async def unload(self) -> None: ...
    def held(self) -> Bytes | None: ...


M = TypeVar("M", bound=Loadable)


class Loader(Generic[M]):
    """Loads and unloads models as the policy decides, and lets requests use them."""

    def __init__(
        self,
        budgets: Bytes,
        *,
        least_stay_s: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budgets = budgets
        self._policy = EvictionPolicy[M](budgets, least_stay_s=least_stay_s)
        self._now = now
        self._user_ids = itertools.count()
        self._admissions: dict[int, asyncio.Future[None]] = {}
        self._tasks = Background()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def models(self) -> list[M]:
        """All known models, including retired ones that are still in use."""
        return self._policy.keys

    def add(self, key: M, least: Need, guess: Need, idle_unload_s: float | None) -> None:
        """Add a model that may be used from now on. `least` is the memory that it needs in any case, `guess`
        an estimate until it is measured. Raises DoesNotFit if it can never be loaded."""
        if (
            lacking(least.within(self.budgets), self.budgets)
            or least.within(self.budgets).total < least.total
        ):
            raise self._does_not_fit(key, least)
        # An estimate alone refuses no model: it is tried, with all others evicted if necessary.
        self._policy.add(key, guess.within(self.budgets), idle_unload_s)

    def fits(self, key: M) -> bool:
        """Whether the model can be loaded without evicting another."""
        return self._policy.fits(key)

    def retire(self, key: M) -> None:
        """Remove a model: new requests no longer use it, and it is unloaded when the current ones have
        finished."""
        if not self._closed:
            self._carry_out(self._policy.retire(key, self._now()))

    def unload(self, key: M) -> None:
        """Unload the model as soon as it has no users; the next request loads it again."""
        self._carry_out(self._policy.unload(key, self._now()))

    def keep(self, key: M, keep_alive_s: float) -> None:
        """See EvictionPolicy.keep."""
        self._carry_out(self._policy.keep(key, keep_alive_s, self._now()))

    def idle_left_s(self, key: M) -> float | None:
        """Seconds until the model is unloaded if no request uses it; inf for never, None if it is not
        loaded."""
        expires_at = self._policy.expires_at(key)
        return None if expires_at is None else expires_at - self._now()

    @contextlib.asynccontextmanager
    async def use(self, key: M, keep_alive_s: float | None = None) -> AsyncIterator[None]:
        """Wait until the model is loaded, and keep it loaded until the block ends, then for `keep_alive_s`
        (see EvictionPolicy.keep; None changes nothing).

        Raises DoesNotFit, the error of a failed load, or EngineUnavailable once the loader is closed.
        """
        if self._closed or self._policy.phase(key) is None:
            raise EngineUnavailable("The engine is stopped.")
        user = next(self._user_ids)
        admission = self._admissions[user] = asyncio.get_running_loop().create_future()
        self._carry_out(self._policy.request(key, user, self._now()))
        try:
            with tracing.step("load", least_s=tracing.SHORTEST_WAIT_S):
                await admission
            if keep_alive_s is not None:
                self.keep(key, keep_alive_s)
            yield
        finally:
            del self._admissions[user]
            if not self._closed:
                self._release(key, user)

    async def close(self) -> None:
        """Stop loading and unloading, and fail the requests that wait for a model. Safe to call again."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for user in list(self._admissions):
            self._settle(user, EngineUnavailable("The engine is stopped."))
        loading = [task for task in self._tasks if task.get_name() == _LOAD]
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)

    def _release(self, key: M, user: int) -> None:
        now = self._now()
        actions = self._policy.release(key, user, now)
        if self._policy.should_measure(key, now):
            actions += self._policy.measured(key, self._held(key), now)
        self._carry_out(actions)

    def _held(self, key: M) -> Bytes | None:
        """The memory that a model uses. If no GPU has a budget, all of it counts against the only budget."""
        held = key.held()
        if held is None or self.budgets.keys() - {MEMORY}:
            return held
        return {MEMORY: main_bytes(held) or 0}

    def _carry_out(self, actions: list[Action[M]], error: RerankdError | None = None) -> None:
        """Carry out the policy's actions. `error` is the error of a failed load."""
        for action in actions:
            match action:
                case Load(key, cards):
                    self._tasks.begin(self._load(key, cards), _LOAD)
                case Unload(key):
                    self._tasks.begin(self._unload(key), _UNLOAD)
                case Admit(user):
                    self._settle(user, None)
                case Refuse(key, user, needs) if needs is not None:
                    self._settle(user, self._does_not_fit(key, needs))
                case Refuse(_, user):
                    # A copy for each user, because a raised error collects tracebacks.
                    self._settle(user, copy.copy(error))
        self._set_timer()

    def _settle(self, user: int, error: RerankdError | None) -> None:
        admission = self._admissions.get(user)
        if admission is None or admission.done():
            return
        if error is None:
            admission.set_result(None)
        else:
            admission.set_exception(error)

    def _does_not_fit(self, key: M, needs: Need) -> DoesNotFit:
        short = lacking(needs, self.budgets) or frozenset(self.budgets)
        kind, size = "memory", needs.total
        if short == {MEMORY}:
            size = needs.memory
        elif MEMORY not in short:
            kind, size = "GPU memory", needs.cards
        bound = sum(self.budgets[device] for device in short)
        return DoesNotFit(
            f"{key} needs {size / 2**20:,.0f} MiB of {kind}, but the budget for all engines is "
            f"{bound / 2**20:,.0f} MiB. Use a smaller quantisation or a smaller model, or raise "
            "memory_budget."
        )

    async def _load(self, key: M, cards: tuple[str, ...]) -> None:
        try:
            await key.load(cards)
            held = self._held(key)
        except RerankdError as error:
            self._fail(key, error)
        except Exception as error:  # the crash boundary of this task
            _log.exception("a model could not be loaded for an unexpected reason")
            self._fail(key, EngineUnavailable(f"rerankd failed to load the model: {error!r}."))
        else:
            if not self._closed:
                self._carry_out(self._policy.loaded(key, held, self._now()))

    def _fail(self, key: M, error: RerankdError) -> None:
        if not self._closed:
            self._carry_out(self._policy.failed(key, self._now()), error)

    async def _unload(self, key: M) -> None:
        try:
            await key.unload()
        except Exception:  # the crash boundary of this task
            _log.exception("a model could not be unloaded for an unexpected reason")
        if not self._closed:
            self._carry_out(self._policy.unloaded(key, self._now()))

    def _set_timer(self) -> None:
        at = self._policy.wake_at()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at is not None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(max(at - self._now(), 0.0), self._tick)

    def _tick(self) -> None:
        self._carry_out(self._policy.tick(self._now()))
