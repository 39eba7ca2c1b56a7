"""The eviction policy as histories, and the loader that carries it out."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankd.errors import DoesNotFit, EngineUnavailable, Unscorable
from rerankd.memory import MEMORY, Need, lacking, place
from rerankd.serving.eviction import Admit, EvictionPolicy, Load, Refuse, Unload
from rerankd.serving.loader import Loader


def held(size: int) -> dict[str, int]:
    """Bytes of the machine's memory."""
    return {MEMORY: size}


def policy(
    budget: int | None, *sizes: int, idle: float | None = None, stay: float = 5.0
) -> EvictionPolicy[str]:
    """A policy that knows models a, b, c … of these sizes."""
    made = EvictionPolicy[str]({} if budget is None else held(budget), least_stay_s=stay)
    for name, size in zip("abcdef", sizes, strict=False):
        made.add(name, Need(size), idle)
    return made


def test_a_model_is_loaded_once_for_all_who_ask_and_then_admits_at_once() -> None:
    it = policy(20, 10, 10)
    assert it.request("a", 1, 0) == [Load("a")]
    assert it.request("a", 2, 0) == []
    assert it.loaded("a", held(12), 1) == [Admit(1), Admit(2)]
    assert it.request("a", 3, 2) == [Admit(3)]
    assert it.request("b", 4, 3) == []  # it holds 12, more than was expected


def test_the_least_recently_used_idle_model_makes_room() -> None:
    it = policy(20, 10, 10, 10)
    it.request("a", 1, 0), it.loaded("a", held(10), 0), it.release("a", 1, 5)
    it.request("b", 2, 0), it.loaded("b", held(10), 0), it.release("b", 2, 4)
    assert it.request("c", 3, 6) == [Unload("b")]
    assert it.unloaded("b", 7) == [Load("c")]
    assert it.loaded("c", held(10), 8) == [Admit(3)]
    assert it.phase("a") == "loaded"


def test_a_model_at_work_stays_its_least_time_then_finishes_and_goes() -> None:
    it = policy(10, 10, 10)
    it.request("a", 1, 0), it.loaded("a", held(10), 0)
    assert it.request("b", 2, 1) == []
    assert it.request("a", 3, 2) == [Admit(3)]
    assert it.wake_at() == 5
    assert it.tick(5) == []
    assert it.wake_at() is None
    # It takes nobody new from now on, so that the others get their turn.
    assert it.request("a", 4, 6) == []
    assert it.release("a", 1, 7) == []
    assert it.release("a", 3, 8) == [Unload("a")]
    assert it.unloaded("a", 9) == [Load("b")]
    assert it.loaded("b", held(10), 10) == [Admit(2)]
    assert it.release("b", 2, 11) == [Unload("b")]
    assert it.unloaded("b", 12) == [Load("a")]
    assert it.loaded("a", held(10), 13) == [Admit(4)]


def test_who_asked_first_is_loaded_first_even_where_a_later_one_would_fit() -> None:
    it = policy(20, 15, 20, 5)
    it.request("a", 1, 0), it.loaded("a", held(15), 0)
    assert it.request("b", 2, 1) == []
    assert it.request("c", 3, 2) == []
    assert it.release("a", 1, 3) == [Unload("a")]
    assert it.unloaded("a", 4) == [Load("b")]


def test_one_who_gives_up_waiting_is_forgotten() -> None:
    it = policy(10, 10, 10)
    it.request("a", 1, 0), it.loaded("a", held(10), 0)
    it.request("b", 2, 1)
    it.release("b", 2, 2)
    assert it.release("a", 1, 3) == []
    assert it.phase("a") == "loaded"


def test_an_idle_model_goes_after_its_time() -> None:
    it = policy(None, 10, idle=60)
    it.request("a", 1, 0), it.loaded("a", held(10), 1)
    assert it.wake_at() is None
    it.release("a", 1, 5)
    assert it.wake_at() == 65
    assert it.tick(64) == []
    assert it.tick(65) == [Unload("a")]
    assert it.request("a", 2, 66) == []
    assert it.unloaded("a", 67) == [Load("a")]


def test_what_never_fits_is_refused_by_its_file_and_by_what_it_took() -> None:
    assert policy(10, 11).request("a", 1, 0) == [Refuse("a", 1, Need(11))]
    it = policy(10, 5, 8)
    it.request("b", 1, 0), it.loaded("b", held(8), 0), it.release("b", 1, 0)
    it.request("a", 2, 1), it.unloaded("b", 1)
    assert it.loaded("a", held(12), 2) == [Refuse("a", 2, Need(12)), Unload("a")]
    it.unloaded("a", 3)
    assert it.request("a", 3, 4) == [Refuse("a", 3, Need(12))]


def test_a_model_that_took_more_than_its_file_pushes_idle_ones_out() -> None:
    it = policy(20, 8, 8)
    it.request("a", 1, 0), it.loaded("a", held(8), 0), it.release("a", 1, 0)
    assert it.request("b", 2, 1) == [Load("b")]
    assert it.loaded("b", held(15), 2) == [Admit(2), Unload("a")]


def test_a_load_that_fails_is_told_to_all_and_tried_again_by_the_next() -> None:
    it = policy(None, 10)
    it.request("a", 1, 0), it.request("a", 2, 0)
    assert it.failed("a", 1) == [Refuse("a", 1), Refuse("a", 2)]
    assert it.request("a", 3, 2) == [Load("a")]


def test_one_asked_to_go_while_it_loads_serves_those_who_waited() -> None:
    it = policy(None, 10)
    it.request("a", 1, 0)
    assert it.unload("a", 1) == []
    assert it.loaded("a", held(10), 2) == [Admit(1)]
    assert it.release("a", 1, 3) == [Unload("a")]


def test_a_retired_model_is_forgotten_when_the_last_one_has_left() -> None:
    it = policy(None, 10, 10)
    it.request("a", 1, 0), it.loaded("a", held(10), 0)
    assert it.retire("a", 1) == []
    assert it.release("a", 1, 2) == [Unload("a")]
    it.unloaded("a", 3)
    assert it.phase("a") is None
    it.retire("b", 4)
    assert it.phase("b") is None


TWO_CARDS = {MEMORY: 100, "gpu0": 10, "gpu1": 20}


def on_cards(**sizes: int) -> EvictionPolicy[str]:
    """A policy of two cards that knows models that need this much of them."""
    made = EvictionPolicy(TWO_CARDS, least_stay_s=5)
    for name, size in sizes.items():
        made.add(name, Need(0, size))
    return made


def test_a_model_goes_to_the_card_with_the_most_free_memory() -> None:
    it = on_cards(a=12, b=9, c=7)
    assert it.request("a", 1, 0) == [Load("a", ("gpu1",))]
    assert it.request("b", 2, 0) == [Load("b", ("gpu0",))]
    assert it.request("c", 3, 0) == [Load("c", ("gpu1",))]


def test_a_model_too_large_for_one_card_is_spread_over_all() -> None:
    it = on_cards(a=24)
    assert it.request("a", 1, 0) == [Load("a", ("gpu0", "gpu1"))]
    assert place(Need(3, 24), TWO_CARDS) == {MEMORY: 3, "gpu0": 8, "gpu1": 16}


def test_what_is_in_memory_makes_no_room_on_a_card_nor_the_other_way_round() -> None:
    """One budget for both unloaded the CPU's model for the card's, and added what has nothing in common."""
    it = on_cards(a=15, b=16)
    it.add("cpu", Need(90))
    it.request("cpu", 1, 0), it.loaded("cpu", held(95), 0), it.release("cpu", 1, 0)
    it.request("a", 2, 1), it.loaded("a", {MEMORY: 2, "gpu1": 15}, 1), it.release("a", 2, 1)
    assert it.request("b", 3, 2) == [Unload("a")]
    assert it.phase("cpu") == "loaded"
    assert it.unloaded("a", 3) == [Load("b", ("gpu1",))]
    it.loaded("b", {MEMORY: 2, "gpu1": 16}, 4)
    it.add("more", Need(50))
    assert it.request("more", 4, 5) == [Unload("cpu")]
    assert it.phase("b") == "loaded"


def test_a_cards_engine_takes_its_share_of_the_machines_memory_too() -> None:
    it = on_cards(a=5)
    it.add("cpu", Need(95))
    it.request("a", 1, 0), it.loaded("a", {MEMORY: 8, "gpu1": 5}, 0), it.release("a", 1, 0)
    assert it.request("cpu", 2, 1) == [Unload("a")]


def test_what_the_cards_have_no_room_for_is_expected_in_memory() -> None:
    assert Need(0, 45).within(TWO_CARDS) == Need(15, 30)
    assert Need(0, 500).within(TWO_CARDS) == Need(100, 30)
    loader = Loader[Model](TWO_CARDS)
    it = Models(loader)
    loader.add(Model(it, "fits"), Need(0, 130), Need(0, 500), None)
    with pytest.raises(DoesNotFit):
        loader.add(Model(it, "never"), Need(0, 131), Need(0, 500), None)


def test_a_device_without_a_budget_has_no_bound() -> None:
    assert lacking(Need(10**15, 10**15), {}) == frozenset()
    assert lacking(Need(5, 10**15), {MEMORY: 4}) == {MEMORY}
    assert place(Need(0, 7), {MEMORY: 4}) == {}


_EVENTS = st.lists(
    st.tuples(st.sampled_from(["ask", "leave", "tick", "unload", "done", "fail"]), st.integers(0, 5)),
    max_size=80,
)


_NEEDS = st.one_of(
    st.builds(Need, st.integers(1, 12)), st.builds(Need, st.integers(0, 3), st.integers(1, 20))
)


@given(
    sizes=st.lists(_NEEDS, min_size=1, max_size=4),
    budgets=st.sampled_from([{MEMORY: 15}, {MEMORY: 15, "gpu0": 8}, {MEMORY: 15, "gpu0": 8, "gpu1": 13}]),
    events=_EVENTS,
)
@settings(max_examples=300, deadline=None)
def test_any_history_keeps_the_promises(
    sizes: list[Need], budgets: dict[str, int], events: list[tuple[str, int]]
) -> None:
    """Nobody user asked is lost, no model is loaded twice or unloaded under a user, and the budgets hold."""
    it = EvictionPolicy[str](budgets, least_stay_s=3)
    for name, need in zip("abcdef", sizes, strict=False):
        it.add(name, need.within(budgets), 7)
    names = "abcdef"[: len(sizes)]
    waiting: dict[int, str] = {}
    using: dict[int, str] = {}
    under_way: list[Load[str] | Unload[str]] = []
    loaded: set[str] = set()
    now, user = 0.0, 0

    def carry_out(actions: list[Any]) -> None:
        for action in actions:
            match action:
                case Load(key):
                    assert key not in loaded and not any(one.key == key for one in under_way)
                    under_way.append(action)
                case Unload(key):
                    assert key in loaded and key not in using.values()
                    under_way.append(action)
                case Admit(one):
                    using[one] = waiting.pop(one)
                    assert using[one] in loaded
                case Refuse(_, one):
                    waiting.pop(one)
        assert all(size >= 0 for size in it._free().values())

    def finish(fails: bool = False) -> None:
        action = under_way.pop(0)
        name = str(action.key)
        if isinstance(action, Unload):
            loaded.discard(name)
            carry_out(it.unloaded(name, now))
        elif fails:
            carry_out(it.failed(name, now))
        else:
            loaded.add(name)
            carry_out(it.loaded(name, None, now))

    for event, number in events:
        now += 1
        name = names[number % len(names)]
        if event == "ask":
            user += 1
            waiting[user] = name
            carry_out(it.request(name, user, now))
        elif event == "leave" and using:
            one = sorted(using)[number % len(using)]
            carry_out(it.release(using.pop(one), one, now))
        elif event == "tick":
            carry_out(it.tick(now))
        elif event == "unload":
            carry_out(it.unload(name, now))
        elif event in ("done", "fail") and under_way:
            finish(event == "fail")
    for _ in range(500):
        now += 1
        if under_way:
            finish()
        elif using:
            one = min(using)
            carry_out(it.release(using.pop(one), one, now))
        elif waiting:
            carry_out(it.tick(now))
    assert not waiting


class Models:
    """Models of one loader, which take no time and count what is done with them."""

    def __init__(self, loader: Loader[Model], *names: str, size: int = 10) -> None:
        self.loader = loader
        self.did: Counter[str] = Counter()
        self.loaded: set[str] = set()
        self.error: Exception | None = None
        self.models = {name: Model(self, name) for name in names}
        for model in self.models.values():
            loader.add(model, Need(size), Need(2 * size), None)

    async def use(self, name: str, turns: int = 3) -> str:
        async with self.loader.use(self.models[name]):
            for _ in range(turns):
                assert name in self.loaded and len(self.loaded) <= 2
                await asyncio.sleep(0)
        return name


@dataclass(frozen=True)
class Model:
    """One of them."""

    among: Models
    name: str

    def __str__(self) -> str:
        return self.name

    async def load(self, cards: tuple[str, ...]) -> None:
        it = self.among
        assert self.name not in it.loaded
        await asyncio.sleep(0)
        if it.error is not None:
            raise it.error
        it.loaded.add(self.name)
        it.did[f"load {self.name}"] += 1

    async def unload(self) -> None:
        await asyncio.sleep(0)
        self.among.loaded.discard(self.name)
        self.among.did[f"unload {self.name}"] += 1

    def held(self) -> dict[str, int]:
        self.among.did[f"measure {self.name}"] += 1
        return held(10)


def test_three_models_share_room_for_two_and_no_request_is_lost() -> None:
    async def story() -> None:
        loader = Loader[Model](held(20))
        it = Models(loader, "a", "b", "c")
        names = [name for _ in range(20) for name in "abc"]
        async with asyncio.timeout(10):
            assert await asyncio.gather(*(it.use(name) for name in names)) == names
        # Each came in a bunch that was served together, not one by one.
        assert sum(it.did[f"load {name}"] for name in "abc") < 10
        await loader.close()

    asyncio.run(story())


def test_memory_is_measured_now_and_then_and_not_after_each_request() -> None:
    async def story() -> None:
        now = 100.0
        loader = Loader[Model]({}, now=lambda: now)
        it = Models(loader, "a")
        for _ in range(5):
            await it.use("a")
        assert it.did["measure a"] == 2  # once when it was loaded
        now += 11
        for _ in range(5):
            await it.use("a")
        assert it.did["measure a"] == 3
        await loader.close()

    asyncio.run(story())


def test_an_error_is_told_to_everyone_as_its_own_object() -> None:
    async def story() -> None:
        loader = Loader[Model]({})
        it = Models(loader, "a")
        it.error = Unscorable("no")
        errors = await asyncio.gather(*(it.use("a") for _ in range(2)), return_exceptions=True)
        assert [type(error) for error in errors] == [Unscorable, Unscorable]
        assert errors[0] is not errors[1]
        it.error = RuntimeError("a bug")
        with pytest.raises(EngineUnavailable, match="a bug"):
            await it.use("a")
        it.error = None
        assert await it.use("a") == "a"
        await loader.close()

    asyncio.run(story())


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    loader = Loader[Model](held(10 * 2**20))
    with pytest.raises(
        DoesNotFit, match="a needs 20 MiB of memory, but the budget for all engines is 10 MiB"
    ):
        Models(loader, "a", size=20 * 2**20)


def test_closing_tells_those_who_wait_and_begins_nothing() -> None:
    async def story() -> None:
        loader = Loader[Model](held(10))
        it = Models(loader, "a", "b")
        async with loader.use(it.models["a"]):
            waiting = asyncio.ensure_future(it.use("b"))
            await asyncio.sleep(0)
            await loader.close()
            with pytest.raises(EngineUnavailable):
                await waiting
        with pytest.raises(EngineUnavailable):
            await it.use("a")
        assert it.did == {"load a": 1, "measure a": 1}

    asyncio.run(story())
