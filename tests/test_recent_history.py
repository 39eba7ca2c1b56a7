"""The recent history for the status page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.recent_history import RecentHistory


def test_events_are_counted_in_their_step() -> None:
    recent = RecentHistory(step_s=5, steps=3)
    recent.ended(1.0, 0.5, failed=False)
    recent.ended(4.9, 0.5, failed=True)
    recent.scored(4.9, 7)
    recent.ended(11.0, 2.0, failed=False)
    series = recent.read(12.0)
    assert (series.requests, series.failed, series.documents) == ((2, 0, 1), (1, 0, 0), (7, 0, 0))
    assert series.median_s[1] is None


def test_old_steps_are_dropped() -> None:
    recent = RecentHistory(step_s=5, steps=3)
    recent.ended(1.0, 0.5, failed=False)
    assert sum(recent.read(14.9).requests) == 1
    assert sum(recent.read(15.0).requests) == 0
    recent.ended(600.0, 0.5, failed=False)
    assert recent.read(600.0).requests == (0, 0, 1)


@given(
    st.lists(st.floats(0.0002, 300), min_size=1, max_size=50),
    st.sampled_from([("median_s", 0.5), ("p95_s", 0.95)]),
)
def test_a_quantile_is_at_most_a_tenth_too_high(seconds: list[float], quantile: tuple[str, float]) -> None:
    recent = RecentHistory(step_s=5, steps=2)
    for one in seconds:
        recent.ended(0.0, one, failed=False)
    name, share = quantile
    true = sorted(seconds)[max(-(-len(seconds) * int(share * 100) // 100) - 1, 0)]
    assert true * 0.999 <= getattr(recent.read(0.0), name)[-1] <= true * 1.101


def test_the_history_does_not_grow() -> None:
    recent = RecentHistory(step_s=5, steps=10)
    for at in range(10_000):
        recent.ended(at * 1.0, at * 0.01, failed=False)
    assert len(recent.read(10_000.0).requests) == len(recent._steps) == 10
    assert recent.read(9_999.0).requests == (5,) * 10


def test_a_latency_of_zero_counts_as_the_shortest() -> None:
    recent = RecentHistory()
    recent.ended(0.0, 0.0, failed=False)
    assert recent.read(0.0).p95_s[-1] == pytest.approx(1e-4, rel=0.1)
