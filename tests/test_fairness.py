"""Fair sharing by attained tokens: which key is next, and how far a key may be from its fair share."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.serving.fairness import HEAD_START, MOST_AHEAD, FairShare


def give(share: FairShare[str], tokens: float) -> str:
    """Give tokens to the next key."""
    key = share.pick()
    assert key is not None
    share.charge(key, tokens)
    return key


def test_without_keys_none_is_next() -> None:
    share = FairShare[str]()
    assert share.pick() is None
    share.arrive("a")
    share.leave("a")
    assert share.pick() is None


def test_equal_weights_take_turns() -> None:
    share = FairShare[str]()
    for key in "abc":
        share.arrive(key)
    assert "".join(give(share, 10) for _ in range(9)) == "abcabcabc"


def test_a_key_with_larger_turns_gets_fewer_of_them() -> None:
    share = FairShare[str]()
    share.arrive("large")
    share.arrive("small")
    got = {"large": 0, "small": 0}
    for _ in range(400):
        key = share.pick()
        assert key is not None
        tokens = 1000 if key == "large" else 100
        share.charge(key, tokens)
        got[key] += tokens
    assert abs(got["large"] - got["small"]) <= 1000


def test_a_new_key_starts_at_the_clock() -> None:
    share = FairShare[str]()
    share.arrive("old")
    for _ in range(50):
        give(share, 100)
    share.arrive("new")
    got = "".join(give(share, 100)[0] for _ in range(20))
    assert got.count("n") == 10


def test_leaving_and_returning_gains_nothing() -> None:
    share = FairShare[str]()
    share.arrive("stays")
    got = {"stays": 0, "leaves": 0}
    for _ in range(200):
        share.arrive("leaves")
        key = give(share, 100)
        got[key] += 100
        share.leave("leaves")
    assert got["leaves"] == got["stays"]


def test_kept_tags_are_removed_once_the_clock_has_passed_them() -> None:
    share = FairShare[str]()
    share.arrive("stays")
    for number in range(5000):
        share.arrive(f"{number}")
        give(share, 100)
        give(share, 100)
        share.leave(f"{number}")
    assert len(share._kept) < 200


def test_a_new_small_key_precedes_thirty_large_ones_until_its_head_start_is_used() -> None:
    share = FairShare[str]()
    for number in range(30):
        share.arrive(f"bulk {number}")
    for _ in range(45):
        give(share, 500)
    share.arrive("small", head=1000)
    assert [give(share, 500) for _ in range(2)] == ["small", "small"]
    assert give(share, 500).startswith("bulk")


def test_head_starts_are_served_in_order_of_arrival() -> None:
    share = FairShare[str]()
    share.arrive("bulk")
    for key in ("first", "second", "third"):
        share.arrive(key, head=300)
    served = [give(share, 100) for _ in range(9)]
    assert served[:3] == ["first", "second", "third"]
    assert "bulk" not in served


def test_a_head_start_is_a_loan() -> None:
    """Endless small requests get a client MOST_AHEAD tokens once, and then its fair share."""
    share = FairShare[str]()
    share.arrive("bulk")
    got = {"bulk": 0, "small": 0}
    for turn in range(3000):
        share.arrive("small", head=200)
        key = give(share, 200 if share.pick() == "small" else 500)
        got[key] += 200 if key == "small" else 500
        if key == "small":
            share.leave("small")
        if turn == 100:
            assert got["small"] > 3 * got["bulk"]
    assert abs(got["small"] - got["bulk"]) <= MOST_AHEAD + 1000


def test_ever_new_small_keys_take_at_most_half_out_of_order() -> None:
    share = FairShare[str]()
    share.arrive("bulk")
    got = {"bulk": 0, "small": 0}
    for number in range(2000):
        if len(share) == 1:
            share.arrive(f"small {number}", head=1000)
        key = give(share, 1000)
        got[key.split()[0]] += 1000
        if key != "bulk":
            share.leave(key)
    # Half is given out of order, and the other half is shared equally.
    assert got["small"] <= 0.75 * 2_000_000 + MOST_AHEAD
    assert got["small"] > got["bulk"]


def test_a_key_that_is_served_alone_owes_nothing() -> None:
    share = FairShare[str]()
    for _ in range(100):
        share.arrive("a", head=1000)
        give(share, 1000)
    assert share.credit == MOST_AHEAD
    share.arrive("b")
    share.arrive("a", head=1000)
    assert share.pick() == "a"


def test_spare_tokens_are_charged_up_to_a_limit() -> None:
    """A key that took much space that no other key could use does not have to wait for all of it later."""
    share = FairShare[str]()
    share.arrive("leads")
    share.arrive("fills")
    for _ in range(100):
        share.charge("leads", 100)
        share.charge("fills", 2000, spare=True)
    share.leave("leads")
    share.arrive("new")
    waited = 0
    while give(share, 500) != "fills":
        waited += 500
    assert waited <= 2 * HEAD_START + 500


def test_shares_are_proportional_to_weights() -> None:
    share = FairShare[str]()
    share.arrive("low", 0.25)
    share.arrive("normal", 1.0)
    share.arrive("high", 4.0)
    got = dict.fromkeys(("low", "normal", "high"), 0)
    for _ in range(2100):
        got[give(share, 10)] += 10
    assert got == {
        "low": pytest.approx(1000, abs=20),
        "normal": pytest.approx(4000, abs=20),
        "high": pytest.approx(16000, abs=20),
    }


@given(
    weights=st.lists(st.sampled_from([0.25, 1.0, 4.0]), min_size=1, max_size=6),
    turns=st.lists(st.integers(1, 2000), min_size=1, max_size=300),
)
def test_keys_that_always_wait_are_within_one_turn_of_their_share(
    weights: list[float], turns: list[int]
) -> None:
    share = FairShare[int]()
    for key, weight in enumerate(weights):
        share.arrive(key, weight)
    got = [0.0] * len(weights)
    for tokens in turns:
        key = share.pick()
        assert key is not None
        share.charge(key, tokens)
        got[key] += tokens
        for one, other in itertools.combinations(range(len(weights)), 2):
            ahead = got[one] / weights[one] - got[other] / weights[other]
            assert -max(turns) / weights[other] - 1e-6 <= ahead <= max(turns) / weights[one] + 1e-6


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(1, 2000), st.integers(0, 2 * HEAD_START)),
        min_size=1,
        max_size=400,
    )
)
def test_no_key_starves_whatever_other_keys_arrive(newcomers: list[tuple[bool, int, int]]) -> None:
    """At each step a new key may arrive and take what it is given. A waiting key gets its turn within twice
    the tokens that its tag was ahead, times the sum of weights, plus what head starts may take once."""
    share = FairShare[str]()
    share.arrive("waits")
    share.arrive("other")
    given_since, number = 0.0, 0
    for is_new, tokens, head in newcomers * 3:
        if is_new:
            number += 1
            share.arrive(f"{number}", head=head)
        key = share.pick()
        assert key is not None
        if key == "waits":
            given_since = 0.0
        else:
            given_since += tokens
        share.charge(key, tokens)
        if key not in ("waits", "other"):
            share.leave(key)
        # One turn of each other waiting key, then the head starts of new keys.
        assert given_since <= 2 * MOST_AHEAD + 8 * 2000 * (1 + len(share))
