"""Which of several servers answers: equal queries meet the same one, and none is overloaded."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rerankd import affinity
from rerankd.content import Document, Image, ImageLink


@dataclass(frozen=True)
class Server:
    name: str
    weight: float = 1.0
    load: float = 0.0

    @property
    def seed(self) -> int:
        return affinity.seed(self.name)


names = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=12, unique=True)
keys = st.integers(0, 2**64 - 1)


@st.composite
def fleets(draw: st.DrawFn) -> list[Server]:
    return [
        Server(name, draw(st.sampled_from((0.5, 1.0, 2.0, 7.0))), draw(st.integers(0, 40)))
        for name in draw(names)
    ]


def test_key_and_choice_are_the_same_in_every_process() -> None:
    program = (
        "from rerankd import affinity\n"
        "print(affinity.key('bge', 'où est la gare ?', None), affinity.seed('gpu1'))"
    )
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hash_seed},
        )
        assert run.stdout.split() == ["1817706740066241222", "17260682131981657288"]
    assert [one.name for one in affinity.order(1, [Server(f"gpu{n}") for n in range(6)])] == [
        "gpu3",
        "gpu4",
        "gpu1",
        "gpu0",
        "gpu5",
        "gpu2",
    ]


def test_key_tells_apart_model_query_instruction_and_images() -> None:
    image, other = Image(b"one"), Image(b"two")
    different = [
        ("a", "b", None),
        ("ab", "", None),
        ("", "ab", None),
        ("a", "", "b"),
        ("a", Document((image,)), None),
        ("a", Document((other,)), None),
        ("a", Document((image, "b")), None),
        ("a", Document((ImageLink("https://a.example/1.png"),)), None),
        ("a", Document((ImageLink("https://a.example/2.png"),)), None),
        ("a", "broken \ud800", None),
    ]
    assert len({affinity.key(*one) for one in different}) == len(different)
    assert affinity.key("a", Document(("b",)), None) == affinity.key("a", "b", None)
    assert affinity.key("a", "b", "") == affinity.key("a", "b", None)


@given(keys, fleets())
def test_choice_is_the_first_in_order_within_the_bound(key: int, fleet: list[Server]) -> None:
    total, weight = 1 + sum(one.load for one in fleet), sum(one.weight for one in fleet)
    for bound in (1.0, 1.25, 2.0):
        chosen = affinity.choose(key, fleet, bound, allowed_load=0)
        assert chosen is not None
        # The paper's capacity: the bound times the fair share, rounded up, and this request included.
        assert chosen.load < bound * total * chosen.weight / weight + 1e-9
        for better in affinity.order(key, fleet)[: affinity.order(key, fleet).index(chosen)]:
            assert better.load >= bound * total * better.weight / weight - 1e-9


@given(keys, fleets())
def test_an_idle_server_is_never_passed_over_for_one_beyond_the_bound(key: int, fleet: list[Server]) -> None:
    assume(any(one.load == 0 for one in fleet))
    chosen = affinity.choose(key, fleet)
    assert chosen is not None
    total, weight = 1 + sum(one.load for one in fleet), sum(one.weight for one in fleet)
    bound = affinity.BOUND * total * chosen.weight / weight
    assert chosen.load == 0 or chosen.load < max(affinity.ALLOWED_LOAD, bound + 1e-9)


@given(keys, fleets(), st.randoms())
def test_the_sequence_of_candidates_does_not_count(
    key: int, fleet: list[Server], chance: random.Random
) -> None:
    shuffled = chance.sample(fleet, len(fleet))
    assert affinity.choose(key, shuffled) == affinity.choose(key, fleet)
    assert affinity.order(key, shuffled) == affinity.order(key, fleet)


@given(keys, fleets(), st.data())
def test_a_server_that_leaves_moves_its_own_keys_alone(
    key: int, fleet: list[Server], data: st.DataObject
) -> None:
    idle = [replace(one, load=0) for one in fleet]
    gone = data.draw(st.sampled_from(idle))
    rest = [one for one in idle if one != gone]
    before = affinity.order(key, idle)
    assert affinity.order(key, rest) == [one for one in before if one != gone]
    # A second attempt goes to the next in order; without another server there is none.
    assert affinity.choose(key, [one for one in idle if one != before[0]]) == (before[1:] or [None])[0]


def test_no_candidates_no_choice() -> None:
    assert affinity.choose(1, []) is None


def test_idle_servers_get_shares_by_weight() -> None:
    fleet = [Server("a", 1.0), Server("b", 2.0), Server("c", 0.5), Server("d", 0.5)]
    count = 20_000
    chosen = Counter(
        affinity.choose(affinity.key("m", f"query {n}", None), fleet).name  # type: ignore[union-attr]
        for n in range(count)
    )
    for one in fleet:
        expected = one.weight / 4
        deviation = (expected * (1 - expected) / count) ** 0.5
        assert chosen[one.name] / count == pytest.approx(expected, abs=4 * deviation)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=300), st.sampled_from((1.0, 1.25, 2.0)))
def test_however_popular_a_query_no_server_exceeds_the_bound(queries: list[int], bound: float) -> None:
    """Requests that never end: the loads of bounded hashing, one after another."""
    fleet = {name: Server(name, weight) for name, weight in (("a", 1.0), ("b", 1.0), ("c", 3.0))}
    for total, query in enumerate(queries, 1):
        chosen = affinity.choose(affinity.key("m", str(query), None), fleet.values(), bound, allowed_load=0)
        assert chosen is not None
        fleet[chosen.name] = replace(chosen, load=chosen.load + 1)
        assert fleet[chosen.name].load < bound * total * chosen.weight / 5 + 1


def test_one_popular_query_fills_few_caches() -> None:
    """Up to the allowed load it stays on one server, beyond it the next in order helps."""
    fleet = [Server(f"gpu{n}") for n in range(8)]
    key = affinity.key("m", "popular", None)
    first, second = affinity.order(key, fleet)[:2]
    loads = {one.name: 0 for one in fleet}
    for _ in range(4):
        chosen = affinity.choose(key, [replace(one, load=loads[one.name]) for one in fleet])
        assert chosen is not None
        loads[chosen.name] += 1
    assert {name for name, load in loads.items() if load} == {first.name, second.name}


def test_a_choice_among_a_thousand_takes_little_time() -> None:
    @dataclass(frozen=True, slots=True)
    class Known:
        seed: int
        weight: float = 1.0
        load: float = 0.0

    fleet = [Known(affinity.seed(str(n))) for n in range(1000)]
    began = time.process_time()
    for key in range(50):
        affinity.choose(key, fleet)
    assert (time.process_time() - began) / 50 < 0.01  # 0.6 ms measured; a busy machine takes longer
