"""(pure) Eviction: which models are loaded and which are evicted, within a memory budget and fair to waiting
requests.

A requested model is loaded if it fits in memory with the others. If it does not, idle models are evicted, the
least recently used one first. If all models are in use, the one that was loaded first is drained: it admits
no new requests, finishes those it has, and is evicted. Otherwise a model with steady traffic would keep the
others out forever. It is not drained before it has been loaded for `least_stay_s`; otherwise two models that
are requested alternately would spend all their time on loading.

A model's memory is measured per device when it is loaded. The machine's memory and each GPU have separate
budgets (see memory.py), and only models that hold memory on the device that lacks it are evicted. Until the
first measurement, the memory is estimated from the file size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Literal, TypeVar

from rerankd.memory import Bytes, Need, lacking, left, place, seats

K = TypeVar("K", bound=Hashable)
Phase = Literal["unloaded", "loading", "loaded", "draining", "unloading"]
_MEASURE_EVERY_S = 10.0
_GOING: tuple[Phase, ...] = ("draining", "unloading")


@dataclass(frozen=True, slots=True)
class Load(Generic[K]):
    """Load the model, then call `loaded` or `failed`. `cards` are the GPUs to use, or the GPU of each part
    (see memory.Need); empty if the model uses none, or if GPUs have no budget."""

    key: K
    cards: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unload(Generic[K]):
    """Unload the model, which has no users, then call `unloaded`."""

    key: K


@dataclass(frozen=True, slots=True)
class Admit:
    """Let the user use the model until `release`."""

    user: int


@dataclass(frozen=True, slots=True)
class Refuse(Generic[K]):
    """Reject the user's request for the model: `needs` exceeds the budgets, or if None, the load failed."""

    key: K
    user: int
    needs: Need | None = None


Action = Load[K] | Unload[K] | Admit | Refuse[K]


@dataclass(slots=True)
class _Entry(Generic[K]):
    key: K
    needs: Need
    idle_unload_s: float | None
    keep_alive_s: float | None = None  # of the last request that had one, until the model is unloaded
    phase: Phase = "unloaded"
    held: Bytes = field(default_factory=dict)
    users: set[int] = field(default_factory=set)
    waiters: list[int] = field(default_factory=list)
    unwanted: bool = False  # drain it as soon as it is loaded
    retired: bool = False
    loaded_at: float = 0.0
    last_used: float = 0.0
    measure_at: float = 0.0

    @property
    def is_idle(self) -> bool:
        return self.phase == "loaded" and not self.users

    @property
    def expires_at(self) -> float:
        """When the model is unloaded if it is idle until then; inf for never."""
        keep_s = self.idle_unload_s if self.keep_alive_s is None else self.keep_alive_s
        return math.inf if keep_s is None else self.last_used + keep_s


class EvictionPolicy(Generic[K]):
    """The policy. Its methods are the events, and return the actions to carry out. The caller numbers the
    users in ascending order."""

    def __init__(self, budgets: Bytes, *, least_stay_s: float = 0.0) -> None:
        """A device without a budget is unlimited. `least_stay_s` is how long a model in use may stay loaded
        while other models wait for its memory."""
        self._budgets = budgets
        self._least_stay_s = least_stay_s
        self._entries: dict[K, _Entry[K]] = {}

    @property
    def keys(self) -> list[K]:
        """All known models, including retired ones that are still in use."""
        return list(self._entries)

    def phase(self, key: K) -> Phase | None:
        """The phase of a model; None if it is not known."""
        entry = self._entries.get(key)
        return entry.phase if entry is not None else None

    def should_measure(self, key: K, now: float) -> bool:
        """Whether a loaded model is idle and was not measured recently. A measurement costs as much as a
        small request."""
        entry = self._entries.get(key)
        return entry is not None and entry.is_idle and now >= entry.measure_at

    def expires_at(self, key: K) -> float | None:
        """When the model is unloaded if it is idle until then; inf for never. None if it is not loaded, or
        about to be unloaded."""
        entry = self._entries.get(key)
        return entry.expires_at if entry is not None and entry.phase == "loaded" else None

    def fits(self, key: K) -> bool:
        """Whether the model can be loaded without evicting another."""
        return not lacking(self._entries[key].needs, self._free())

    def add(self, key: K, needs: Need, idle_unload_s: float | None = None) -> None:
        """Add a model that may be requested from now on; `needs` is an estimate of its memory."""
        self._entries[key] = _Entry(key, needs, idle_unload_s)

    def retire(self, key: K, now: float) -> list[Action[K]]:
        """Remove a model as soon as its current users and waiting requests have finished."""
        entry = self._entries[key]
        entry.retired = True
        self._forget(entry)
        return self.unload(key, now) if key in self._entries else []

    def request(self, key: K, user: int, now: float) -> list[Action[K]]:
        """A user requests the model."""
        entry = self._entries[key]
        if lacking(entry.needs, self._budgets):
            return [Refuse(key, user, entry.needs)]
        if entry.phase == "loaded":
            entry.users.add(user)
            return [Admit(user)]
        entry.waiters.append(user)
        return self._decide(now)

    def release(self, key: K, user: int, now: float) -> list[Action[K]]:
        """The user has finished with the model, or no longer wants it."""
        entry = self._entries.get(key)
        if entry is None:
            return []
        if user in entry.users:
            entry.users.discard(user)
            entry.last_used = now
        elif user in entry.waiters:
            entry.waiters.remove(user)
        self._forget(entry)
        return self._decide(now)

    def keep(self, key: K, keep_alive_s: float, now: float) -> list[Action[K]]:
        """Unload the model after this time without users (inf: never) instead of `idle_unload_s`. This holds
        until the model is unloaded; without effect on a model that is not loaded."""
        entry = self._entries[key]
        if entry.phase in ("loading", "loaded"):
            entry.keep_alive_s = keep_alive_s
        return self._decide(now)

    def loaded(self, key: K, held: Bytes | None, now: float) -> list[Action[K]]:
        """The model is loaded and holds this much memory; None if that can't be measured."""
        entry = self._entries[key]
        entry.phase, entry.loaded_at, entry.last_used = "loaded", now, now
        if held is not None:
            entry.needs, entry.held = entry.needs.measured(entry.held, held)
        actions: list[Action[K]] = []
        if lacking(entry.needs, self._budgets):
            actions += [Refuse(key, user, entry.needs) for user in entry.waiters]
            entry.unwanted = True
        else:
            actions += [Admit(user) for user in entry.waiters]
            entry.users.update(entry.waiters)
        entry.waiters.clear()
        if entry.unwanted or entry.retired:
            entry.phase = "draining"
        return actions + self._decide(now)

    def failed(self, key: K, now: float) -> list[Action[K]]:
        """The model could not be loaded. The next request retries."""
        entry = self._entries[key]
        refused: list[Action[K]] = [Refuse(key, user) for user in entry.waiters]
        entry.waiters.clear()
        return refused + self.unloaded(key, now)

    def unload(self, key: K, now: float) -> list[Action[K]]:
        """Unload the model as soon as its users have finished."""
        entry = self._entries[key]
        if entry.phase == "loaded":
            entry.phase = "draining"
        elif entry.phase == "loading":
            entry.unwanted = True
        return self._decide(now)

    def unloaded(self, key: K, now: float) -> list[Action[K]]:
        """The model is unloaded."""
        entry = self._entries[key]
        entry.phase, entry.unwanted, entry.held, entry.keep_alive_s = "unloaded", False, {}, None
        self._forget(entry)
        return self._decide(now)

    def measured(self, key: K, held: Bytes | None, now: float) -> list[Action[K]]:
        """The memory that a loaded model holds now."""
        entry = self._entries[key]
        entry.measure_at = now + _MEASURE_EVERY_S
        if held is not None:
            entry.needs, entry.held = entry.needs.measured(entry.held, held)
        return self._decide(now)

    def tick(self, now: float) -> list[Action[K]]:
        """Time has passed."""
        return self._decide(now)

    def wake_at(self) -> float | None:
        """The time at which `tick` must be called unless another event comes first; None if not at all."""
        entries = list(self._entries.values())
        times = [entry.expires_at for entry in entries if entry.is_idle and entry.expires_at < math.inf]
        first = self._first_waiting(entries)
        if first is not None and self._short_of(first):
            times += [entry.loaded_at + self._least_stay_s for entry in entries if entry.phase == "loaded"]
        return min(times, default=None)

    def _forget(self, entry: _Entry[K]) -> None:
        if entry.retired and entry.phase == "unloaded" and not entry.waiters:
            self._entries.pop(entry.key, None)

    def _decide(self, now: float) -> list[Action[K]]:
        entries = list(self._entries.values())
        for entry in entries:
            if entry.is_idle and now >= entry.expires_at:
                entry.phase = "draining"
        self._evict_idle(entries, self._overfull)
        actions: list[Action[K]] = []
        while first := self._first_waiting(entries):
            if not self.fits(first.key):
                self._evict_idle(entries, partial(self._short_of, first))
                self._drain_busy(entries, first, now)
                break
            first.phase, first.held = "loading", place(first.needs, self._free())
            actions.append(Load(first.key, seats(first.needs, first.held)))
        for entry in entries:
            if entry.phase == "draining" and not entry.users:
                entry.phase = "unloading"
                actions.append(Unload(entry.key))
        return actions

    def _first_waiting(self, entries: list[_Entry[K]]) -> _Entry[K] | None:
        """The unloaded model that was requested first. No other model is loaded before it."""
        waiting = [entry for entry in entries if entry.phase == "unloaded" and entry.waiters]
        return min(waiting, key=lambda entry: entry.waiters[0], default=None)

    def _free(self, *, without: tuple[Phase, ...] = ()) -> dict[str, float]:
        """The free part of each budget, not counting the models in the phases `without`."""
        return left(self._budgets, (one.held for one in self._entries.values() if one.phase not in without))

    def _short_of(self, first: _Entry[K]) -> frozenset[str]:
        """The devices that lack memory for `first` even after the current evictions are complete."""
        return lacking(first.needs, self._free(without=_GOING))

    def _overfull(self) -> frozenset[str]:
        """The devices on which the models that stay exceed the budget."""
        return frozenset(device for device, size in self._free(without=_GOING).items() if size < 0)

    def _evict_idle(self, entries: list[_Entry[K]], short_of: Callable[[], frozenset[str]]) -> None:
        """Evict idle models, the least recently used one first, until no device lacks memory."""
        for entry in sorted(filter(lambda entry: entry.is_idle, entries), key=lambda entry: entry.last_used):
            if short_of() & entry.held.keys():
                entry.phase = "draining"

    def _drain_busy(self, entries: list[_Entry[K]], first: _Entry[K], now: float) -> None:
        """Drain models in use, the one loaded first before the others. Models that have been loaded for less
        than `least_stay_s` are drained later."""
        for entry in sorted(entries, key=lambda entry: entry.loaded_at):
            has_stayed = entry.phase == "loaded" and now - entry.loaded_at >= self._least_stay_s
            if has_stayed and self._short_of(first) & entry.held.keys():
                entry.phase = "draining"
