"""The eviction policy: single cases, and invariants over any history of events."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rerankd.memory import MEMORY, Need, lacking, place, seats
from rerankd.serving.eviction import Admit, EvictionPolicy, Load, Refuse, Unload


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


def test_a_model_is_loaded_once_for_all_waiting_users() -> None:
    it = policy(20, 10, 10)
    assert it.request("a", 1, 0) == [Load("a")]
    assert it.request("a", 2, 0) == []
    assert it.loaded("a", held(12), 1) == [Admit(1), Admit(2)]
    assert it.request("a", 3, 2) == [Admit(3)]
    assert it.request("b", 4, 3) == []  # it holds 12, more than estimated


def test_the_least_recently_used_idle_model_is_evicted() -> None:
    it = policy(20, 10, 10, 10)
    it.request("a", 1, 0), it.loaded("a", held(10), 0), it.release("a", 1, 5)
    it.request("b", 2, 0), it.loaded("b", held(10), 0), it.release("b", 2, 4)
    assert it.request("c", 3, 6) == [Unload("b")]
    assert it.unloaded("b", 7) == [Load("c")]
    assert it.loaded("c", held(10), 8) == [Admit(3)]
    assert it.phase("a") == "loaded"


def test_a_busy_model_stays_for_least_stay_s_then_drains_and_is_evicted() -> None:
    it = policy(10, 10, 10)
    it.request("a", 1, 0), it.loaded("a", held(10), 0)
    assert it.request("b", 2, 1) == []
    assert it.request("a", 3, 2) == [Admit(3)]
    assert it.wake_at() == 5
    assert it.tick(5) == []
    assert it.wake_at() is None
    # From now on it admits no new users, so that the other model gets its turn.
    assert it.request("a", 4, 6) == []
    assert it.release("a", 1, 7) == []
    assert it.release("a", 3, 8) == [Unload("a")]
    assert it.unloaded("a", 9) == [Load("b")]
    assert it.loaded("b", held(10), 10) == [Admit(2)]
    assert it.release("b", 2, 11) == [Unload("b")]
    assert it.unloaded("b", 12) == [Load("a")]
    assert it.loaded("a", held(10), 13) == [Admit(4)]


def test_models_are_loaded_in_request_order_even_if_a_later_one_fits() -> None:
    it = policy(20, 15, 20, 5)
    it.request("a", 1, 0), it.loaded("a", held(15), 0)
    assert it.request("b", 2, 1) == []
    assert it.request("c", 3, 2) == []
    assert it.release("a", 1, 3) == [Unload("a")]
    assert it.unloaded("a", 4) == [Load("b")]


def test_a_user_that_stops_waiting_is_removed() -> None:
    it = policy(10, 10, 10)
    it.request("a", 1, 0), it.loaded("a", held(10), 0)
    it.request("b", 2, 1)
    it.release("b", 2, 2)
    assert it.release("a", 1, 3) == []
    assert it.phase("a") == "loaded"


def test_an_idle_model_is_unloaded_after_idle_unload_s() -> None:
    it = policy(None, 10, idle=60)
    it.request("a", 1, 0), it.loaded("a", held(10), 1)
    assert it.wake_at() is None
    it.release("a", 1, 5)
    assert it.wake_at() == 65
    assert it.tick(64) == []
    assert it.tick(65) == [Unload("a")]
    assert it.request("a", 2, 66) == []
    assert it.unloaded("a", 67) == [Load("a")]


def test_keep_alive_replaces_idle_unload_s_until_the_model_is_unloaded() -> None:
    it = policy(None, 10, idle=60)
    assert it.keep("a", 5, 0) == []  # not loaded
    it.request("a", 1, 0), it.loaded("a", held(10), 1)
    assert it.keep("a", 10, 2) == []
    it.release("a", 1, 5)
    assert (it.wake_at(), it.expires_at("a")) == (15, 15)
    assert it.keep("a", math.inf, 6) == []
    assert it.wake_at() is None
    assert it.keep("a", 0, 7) == [Unload("a")]
    it.unloaded("a", 8)
    it.request("a", 2, 9), it.loaded("a", held(10), 9), it.release("a", 2, 9)
    assert it.expires_at("a") == 69


def test_a_model_that_never_fits_is_refused_by_estimate_and_by_measurement() -> None:
    assert policy(10, 11).request("a", 1, 0) == [Refuse("a", 1, Need(11))]
    it = policy(10, 5, 8)
    it.request("b", 1, 0), it.loaded("b", held(8), 0), it.release("b", 1, 0)
    it.request("a", 2, 1), it.unloaded("b", 1)
    assert it.loaded("a", held(12), 2) == [Refuse("a", 2, Need(12)), Unload("a")]
    it.unloaded("a", 3)
    assert it.request("a", 3, 4) == [Refuse("a", 3, Need(12))]


def test_a_model_larger_than_estimated_evicts_idle_models() -> None:
    it = policy(20, 8, 8)
    it.request("a", 1, 0), it.loaded("a", held(8), 0), it.release("a", 1, 0)
    assert it.request("b", 2, 1) == [Load("b")]
    assert it.loaded("b", held(15), 2) == [Admit(2), Unload("a")]


def test_a_failed_load_is_reported_to_all_and_retried_by_the_next_request() -> None:
    it = policy(None, 10)
    it.request("a", 1, 0), it.request("a", 2, 0)
    assert it.failed("a", 1) == [Refuse("a", 1), Refuse("a", 2)]
    assert it.request("a", 3, 2) == [Load("a")]


def test_a_model_unloaded_while_loading_serves_its_waiting_users_first() -> None:
    it = policy(None, 10)
    it.request("a", 1, 0)
    assert it.unload("a", 1) == []
    assert it.loaded("a", held(10), 2) == [Admit(1)]
    assert it.release("a", 1, 3) == [Unload("a")]


def test_a_retired_model_is_removed_after_its_last_user() -> None:
    it = policy(None, 10, 10)
    it.request("a", 1, 0), it.loaded("a", held(10), 0)
    assert it.retire("a", 1) == []
    assert it.release("a", 1, 2) == [Unload("a")]
    it.unloaded("a", 3)
    assert it.phase("a") is None
    it.retire("b", 4)
    assert it.phase("b") is None


TWO_GPUS = {MEMORY: 100, "gpu0": 10, "gpu1": 20}


def on_gpus(**sizes: int) -> EvictionPolicy[str]:
    """A policy with two GPUs that knows models that need this much GPU memory."""
    made = EvictionPolicy(TWO_GPUS, least_stay_s=5)
    for name, size in sizes.items():
        made.add(name, Need(0, size))
    return made


def test_a_model_is_loaded_on_the_gpu_with_the_most_free_memory() -> None:
    it = on_gpus(a=12, b=9, c=7)
    assert it.request("a", 1, 0) == [Load("a", ("gpu1",))]
    assert it.request("b", 2, 0) == [Load("b", ("gpu0",))]
    assert it.request("c", 3, 0) == [Load("c", ("gpu1",))]


def test_a_model_too_large_for_one_gpu_is_split_over_all() -> None:
    it = on_gpus(a=24)
    assert it.request("a", 1, 0) == [Load("a", ("gpu0", "gpu1"))]
    assert place(Need(3, 24), TWO_GPUS) == {MEMORY: 3, "gpu0": 8, "gpu1": 16}


def test_each_part_of_a_model_is_on_one_gpu() -> None:
    it = EvictionPolicy[str](TWO_GPUS, least_stay_s=5)
    for name, need in (
        ("three", Need(0, 21, parts=3)),
        ("pinned", Need(0, 6, parts=1, only=("gpu0",))),
        ("large", Need(0, 22, parts=1)),
        ("twice", Need(0, 22, parts=2)),
    ):
        it.add(name, need)
    # 7 fit twice on the GPU with 20, and once on that with 10.
    assert it.request("three", 1, 0) == [Load("three", ("gpu1", "gpu1", "gpu0"))]
    it.loaded("three", {MEMORY: 2}, 1)  # its memory on the GPUs can't be measured
    assert it.request("pinned", 2, 2) == []  # 3 are left there
    it.release("three", 1, 3)
    assert it.phase("three") == "unloading"
    assert it.unloaded("three", 4) == [Load("pinned", ("gpu0",))]
    for name in ("large", "twice"):  # 30 in total are free
        (refused,) = it.request(name, 3, 5)
        assert isinstance(refused, Refuse)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 60))
def test_parts_fit_if_and_only_if_they_can_be_placed(free: list[int], parts: int, size: int) -> None:
    cards = {f"gpu{at}": one for at, one in enumerate(free)}
    need = Need(0, parts * size, parts=parts)
    if lacking(need, cards):
        assert sum(one // size for one in free) < parts
        limited = need.within(cards)
        assert limited.cards < need.cards and not lacking(limited, cards)
    else:
        held = place(need, cards)
        assert sum(held.values()) == need.cards and all(held[one] <= cards[one] for one in held)
        assert len(seats(need, held)) == parts and {*seats(need, held)} == held.keys()


def test_only_models_on_the_device_that_lacks_memory_are_evicted() -> None:
    """A single budget for both evicted the model on the CPU to make space on a GPU."""
    it = on_gpus(a=15, b=16)
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


def test_a_model_on_a_gpu_also_uses_the_machines_memory() -> None:
    it = on_gpus(a=5)
    it.add("cpu", Need(95))
    it.request("a", 1, 0), it.loaded("a", {MEMORY: 8, "gpu1": 5}, 0), it.release("a", 1, 0)
    assert it.request("cpu", 2, 1) == [Unload("a")]


def test_a_device_without_a_budget_is_unlimited() -> None:
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
@settings(max_examples=300)
def test_any_history_keeps_the_invariants(
    sizes: list[Need], budgets: dict[str, int], events: list[tuple[str, int]]
) -> None:
    """No user is lost, no model is loaded twice or unloaded while it is used, and the budgets hold."""
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
