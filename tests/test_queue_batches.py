"""Which inputs form a batch, by the backend's policy, the measured throughput and out-of-memory errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from rerankd.backends.base import BatchPolicy
from rerankd.client import Client
from rerankd.serving.admission import QueueLimits
from rerankd.serving.batches import BatchLimits, whole
from rerankd.serving.scheduler import Scheduler
from rerankd.serving.throughput import Throughput

PACKS = BatchPolicy(tokens=100, most_tokens=100)
PADS = BatchPolicy(tokens=100, most_tokens=100, pads=True)


def scheduler_of(*requests: Sequence[int], questions: Sequence[bytes] = ()) -> Scheduler:
    """A scheduler with these requests, each of its own client. They have low priority, because a head start
    would keep other requests out of their batches."""
    scheduler = Scheduler(QueueLimits(10**6, 10**9, 10**12, 10**12))
    for number, tokens in enumerate(requests):
        assert scheduler.admit(number, Client(f"{number}"), 1, len(tokens), weight=0.25) is None
        question = questions[number] if questions else b""
        assert scheduler.enqueue(number, tokens, question=question) is None
    return scheduler


def batches(scheduler: Scheduler, policy: BatchPolicy, most: int = 99) -> list[list[tuple[int, int]]]:
    """All batches until no input waits."""
    found = []
    while len(found) < most and (batch := scheduler.next_batch(policy, 0.0)).inputs:
        found.append(list(batch.inputs))
    return found


def test_inputs_keep_the_order_of_the_request() -> None:
    assert batches(scheduler_of([40, 50, 20, 90, 5]), PACKS) == [
        [(0, 0), (0, 1)],
        [(0, 2)],
        [(0, 3), (0, 4)],
    ]


def test_an_input_larger_than_a_batch_is_a_batch_of_its_own() -> None:
    assert batches(scheduler_of([500, 10]), PACKS) == [[(0, 0)], [(0, 1)]]
    assert batches(scheduler_of([500, 490]), PADS) == [[(0, 0)], [(0, 1)]]


def test_other_requests_fill_the_rest_of_a_batch() -> None:
    assert batches(scheduler_of([60], [80], [30, 30]), PACKS) == [[(0, 0), (2, 0)], [(1, 0)], [(2, 1)]]


def test_the_number_of_inputs_is_limited() -> None:
    policy = replace(PACKS, inputs=3)
    assert [len(batch) for batch in batches(scheduler_of([10, 10], [10, 10]), policy)] == [3, 1]


def test_a_batch_has_one_question_if_the_policy_requires_it() -> None:
    policy = replace(PACKS, one_question=True)
    scheduler = scheduler_of([40], [40], [40], questions=[b"q", b"r", b"q"])
    assert batches(scheduler, policy) == [[(0, 0), (2, 0)], [(1, 0)]]


def test_padding_takes_the_longest_inputs_first_with_others_of_similar_length() -> None:
    assert batches(scheduler_of([20, 50, 38, 37]), PADS) == [[(0, 1), (0, 2)], [(0, 3), (0, 0)]]
    # Padding counts: 3 x 50 tokens do not fit.
    assert batches(scheduler_of([50, 40, 40]), PADS) == [[(0, 0), (0, 1)], [(0, 2)]]


def test_padding_puts_a_small_rest_into_one_batch() -> None:
    """Whatever the lengths: the engine splits the batch into passes, which costs less than another call."""
    scheduler = scheduler_of([60, 9, 20])
    given = scheduler.next_batch(PADS, 0.0)
    assert (given.inputs, given.tokens) == ([(0, 0), (0, 2), (0, 1)], 89)


def test_padding_fills_a_batch_with_inputs_of_similar_length() -> None:
    scheduler = scheduler_of([50], [20, 60, 40])
    first = scheduler.next_batch(PADS, 0.0)
    assert (first.inputs, first.tokens) == ([(0, 0), (1, 2)], 100)


def test_padding_rounds_the_number_of_inputs_down_to_a_power_of_two_in_large_batches() -> None:
    assert [whole(count, 10, 40) for count in (1, 3, 4, 7, 8, 9)] == [1, 3, 4, 4, 8, 8]
    assert [len(batch) for batch in batches(scheduler_of([10] * 7), PADS)] == [4, 3]
    assert [len(batch) for batch in batches(scheduler_of([5] * 7), PADS)] == [7]


def test_padding_keeps_the_order_of_a_request_with_a_budget() -> None:
    scheduler = scheduler_of()
    scheduler.admit(1, Client("1"), 1, 5)
    scheduler.enqueue(1, [10, 11, 20, 33, 90, 10], until=99.0)
    batch = scheduler.next_batch(PADS, 0.0)
    # Three inputs fit with padding to 20 tokens, and two of them form the batch.
    assert (batch.inputs, batch.tokens) == ([(1, 0), (1, 1)], 22)


@pytest.mark.parametrize("policy", [PACKS, PADS])
def test_a_block_is_one_batch_of_any_size(policy: BatchPolicy) -> None:
    scheduler = scheduler_of([10, 10])
    scheduler.admit(1, Client("1"), 1, 4)
    scheduler.enqueue(1, [50, 60, 10, 10], blocks=[(0, 1), (2, 3)])
    assert sorted(batches(scheduler, policy)) == [[(0, 0), (0, 1)], [(1, 0), (1, 1)], [(1, 2), (1, 3)]]


def test_a_fast_engine_gets_larger_batches() -> None:
    policy = BatchPolicy(tokens=100, most_tokens=1000, call_s=0.1)
    scheduler = scheduler_of([10] * 1000)
    first = scheduler.next_batch(policy, 0.0)
    assert first.tokens == 100
    scheduler.batch_done(first, 0.02)  # 5000 tokens a second
    assert scheduler.limits(policy) == BatchLimits(500, 64)
    scheduler.batch_done(scheduler.next_batch(policy, 1.0), 1.01)
    assert scheduler.limits(policy).tokens == 1000


def test_a_slow_engine_gets_at_most_one_second_of_work() -> None:
    policy = BatchPolicy(tokens=1000, most_tokens=4000)
    scheduler = scheduler_of([100] * 1000)
    scheduler.batch_done(scheduler.next_batch(policy, 0.0), 4.0)  # 250 tokens a second
    assert scheduler.limits(policy).tokens == 250
    assert scheduler.next_batch(policy, 4.0).tokens == 200


def test_the_batch_size_is_halved_after_out_of_memory() -> None:
    scheduler = scheduler_of([10] * 1000)
    scheduler.batch_size.halve()
    assert scheduler.limits(PACKS) == BatchLimits(50, 32)
    assert len(scheduler.next_batch(PACKS, 0.0).inputs) == 5
    for _ in range(20):
        scheduler.batch_size.halve()
    assert len(scheduler.next_batch(PACKS, 0.0).inputs) == 1
    scheduler.batch_size.reset()
    assert len(scheduler.next_batch(PACKS, 0.0).inputs) == 10


def test_the_throughput_follows_recent_batches() -> None:
    throughput, now = Throughput(), 0.0
    assert not throughput.is_measured
    for tokens in (100, 10):
        for _ in range(300):
            throughput.batch_begun(now, tokens)
            now += 1.0
            throughput.batch_ended(now, tokens, 2, is_scored=True)
    assert throughput.tokens_per_s == pytest.approx(10, rel=0.3)
    assert throughput.inputs_per_s == pytest.approx(2)


def test_idle_time_does_not_count() -> None:
    throughput = Throughput()
    for start in (0.0, 1000.0):
        throughput.batch_begun(start, 200)
        throughput.batch_ended(start + 1.0, 200, 1, is_scored=True)
    assert throughput.tokens_per_s == pytest.approx(200)


def test_waiting_for_an_engine_to_start_does_not_lower_the_throughput() -> None:
    throughput, now = Throughput(), 0.0
    for took in (30.0, 1.0, 1.0, 1.0, 1.0, 1.0, 45.0, 1.0):
        throughput.batch_begun(now, 500)
        now += took
        throughput.batch_ended(now, 500, 1, is_scored=True)
    assert throughput.tokens_per_s > 100


def test_the_next_batch_is_due_shortly_before_the_engine_is_free() -> None:
    scheduler = scheduler_of([100] * 10)
    assert scheduler.next_batch_at(PACKS, 0) == -float("inf")
    scheduler.batch_done(scheduler.next_batch(PACKS, 0.0), 1.0)  # 100 tokens a second
    scheduler.next_batch(PACKS, 1.0)
    assert scheduler.next_batch_at(PACKS, 1) == pytest.approx(1.9)
    assert scheduler.next_batch_at(replace(PACKS, ahead_s=0.3), 1) == pytest.approx(1.7)
    scheduler.remove(0)
    assert scheduler.next_batch_at(PACKS, 1) == float("inf")


def test_a_request_with_a_budget_waits_for_a_busy_engine_and_starts_if_it_is_faster_than_expected() -> None:
    scheduler = scheduler_of([100] * 10)
    scheduler.batch_done(scheduler.next_batch(PACKS, 0.0), 1.0)  # 100 tokens a second
    under_way = scheduler.next_batch(PACKS, 1.0)  # until 2.0, it seems
    scheduler.admit(1, Client("1"), 1, 1)
    scheduler.enqueue(1, [20], until=2.1)
    scheduler.remove(0)
    assert scheduler.drop_late(1.0) == []
    assert scheduler.next_batch(PACKS, 1.0).inputs == ()
    scheduler.batch_done(under_way, 1.5)
    assert scheduler.drop_late(1.5) == []
    assert scheduler.next_batch(PACKS, 1.5).inputs == [(1, 0)]


def test_a_budget_that_no_engine_can_meet_is_dropped_at_once() -> None:
    scheduler = scheduler_of([100] * 10)
    scheduler.batch_done(scheduler.next_batch(PACKS, 0.0), 1.0)
    scheduler.admit(1, Client("1"), 1, 2)
    scheduler.enqueue(1, [20, 20], until=1.1)
    assert scheduler.drop_late(1.0) == [1]
    assert scheduler.usage.documents == 9
    assert scheduler.drop_late(1.0) == []
