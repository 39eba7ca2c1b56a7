"""What goes into a batch, by the engine's policy, its measured rate, and what memory it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from rerankd.backends.base import BatchPolicy
from rerankd.serving.admission import Client, QueueLimits
from rerankd.serving.batches import BatchLimits, whole
from rerankd.serving.scheduler import Scheduler
from rerankd.serving.throughput import Throughput

PACKS = BatchPolicy(tokens=100, most_tokens=100)
PADS = BatchPolicy(tokens=100, most_tokens=100, pads=True)


def line_of(*requests: Sequence[int], questions: Sequence[bytes] = ()) -> Scheduler:
    """A scheduler with these requests, of a client each. Their priority is low: a head start would keep the
    others out of its batch."""
    scheduler = Scheduler(QueueLimits(10**6, 10**9, 10**12, 10**12))
    for number, tokens in enumerate(requests):
        assert scheduler.admit(number, Client(f"{number}"), 1, len(tokens), weight=0.25) is None
        question = questions[number] if questions else b""
        assert scheduler.enqueue(number, tokens, question=question) is None
    return scheduler


def batches(scheduler: Scheduler, policy: BatchPolicy, most: int = 99) -> list[list[tuple[int, int]]]:
    """All that waits, batch by batch."""
    found = []
    while len(found) < most and (batch := scheduler.next_batch(policy, 0.0)).inputs:
        found.append(list(batch.inputs))
    return found


def test_inputs_are_given_in_the_order_of_the_request() -> None:
    assert batches(line_of([40, 50, 20, 90, 5]), PACKS) == [
        [(0, 0), (0, 1)],
        [(0, 2)],
        [(0, 3), (0, 4)],
    ]


def test_an_input_larger_than_a_batch_is_one_alone() -> None:
    assert batches(line_of([500, 10]), PACKS) == [[(0, 0)], [(0, 1)]]
    assert batches(line_of([500, 490]), PADS) == [[(0, 0)], [(0, 1)]]


def test_room_that_is_left_goes_to_others() -> None:
    assert batches(line_of([60], [80], [30, 30]), PACKS) == [[(0, 0), (2, 0)], [(1, 0)], [(2, 1)]]


def test_the_number_of_inputs_is_bounded() -> None:
    policy = replace(PACKS, inputs=3)
    assert [len(batch) for batch in batches(line_of([10, 10], [10, 10]), policy)] == [3, 1]


def test_one_question_a_batch() -> None:
    policy = replace(PACKS, one_question=True)
    scheduler = line_of([40], [40], [40], questions=[b"q", b"r", b"q"])
    assert batches(scheduler, policy) == [[(0, 0), (2, 0)], [(1, 0)]]


def test_where_it_pads_the_longest_come_first_with_others_of_nearly_their_length() -> None:
    assert batches(line_of([20, 50, 38, 37]), PADS) == [[(0, 1), (0, 2)], [(0, 3), (0, 0)]]
    # Padding counts: 3 x 50 tokens do not fit.
    assert batches(line_of([50, 40, 40]), PADS) == [[(0, 0), (0, 1)], [(0, 2)]]


def test_where_it_pads_little_that_is_left_is_one_batch() -> None:
    """Whatever the lengths: the engine takes them apart, and a call costs more than that."""
    scheduler = line_of([60, 9, 20])
    given = scheduler.next_batch(PADS, 0.0)
    assert (given.inputs, given.tokens) == ([(0, 0), (0, 2), (0, 1)], 89)


def test_where_it_pads_others_of_nearly_the_length_fill_a_batch() -> None:
    scheduler = line_of([50], [20, 60, 40])
    first = scheduler.next_batch(PADS, 0.0)
    assert (first.inputs, first.tokens) == ([(0, 0), (1, 2)], 100)


def test_where_it_pads_inputs_are_a_power_of_two_if_these_are_worth_a_batch() -> None:
    assert [whole(count, 10, 40) for count in (1, 3, 4, 7, 8, 9)] == [1, 3, 4, 4, 8, 8]
    assert [len(batch) for batch in batches(line_of([10] * 7), PADS)] == [4, 3]
    assert [len(batch) for batch in batches(line_of([5] * 7), PADS)] == [7]


def test_a_request_with_a_budget_keeps_its_order_where_it_pads() -> None:
    scheduler = line_of()
    scheduler.admit(1, Client("1"), 1, 5)
    scheduler.enqueue(1, [10, 11, 20, 33, 90, 10], until=99.0)
    batch = scheduler.next_batch(PADS, 0.0)
    # Three fit, with padding to 20 tokens, and two of them are a batch.
    assert (batch.inputs, batch.tokens) == ([(1, 0), (1, 1)], 22)


@pytest.mark.parametrize("policy", [PACKS, PADS])
def test_a_block_is_a_batch_alone_however_large(policy: BatchPolicy) -> None:
    scheduler = line_of([10, 10])
    scheduler.admit(1, Client("1"), 1, 4)
    scheduler.enqueue(1, [50, 60, 10, 10], blocks=[(0, 1), (2, 3)])
    assert sorted(batches(scheduler, policy)) == [[(0, 0), (0, 1)], [(1, 0), (1, 1)], [(1, 2), (1, 3)]]


def test_a_fast_engine_gets_more_at_a_time() -> None:
    policy = BatchPolicy(tokens=100, most_tokens=1000, call_s=0.1)
    scheduler = line_of([10] * 1000)
    first = scheduler.next_batch(policy, 0.0)
    assert first.tokens == 100
    scheduler.batch_done(first, 0.02)  # 5000 tokens a second
    assert scheduler.limits(policy) == BatchLimits(500, 64)
    scheduler.batch_done(scheduler.next_batch(policy, 1.0), 1.01)
    assert scheduler.limits(policy).tokens == 1000


def test_a_slow_engine_gets_no_more_than_a_second_of_work() -> None:
    policy = BatchPolicy(tokens=1000, most_tokens=4000)
    scheduler = line_of([100] * 1000)
    scheduler.batch_done(scheduler.next_batch(policy, 0.0), 4.0)  # 250 tokens a second
    assert scheduler.limits(policy).tokens == 250
    assert scheduler.next_batch(policy, 4.0).tokens == 200


def test_an_engine_that_ran_out_of_memory_gets_half() -> None:
    scheduler = line_of([10] * 1000)
    scheduler.batch_size.halve()
    assert scheduler.limits(PACKS) == BatchLimits(50, 32)
    assert len(scheduler.next_batch(PACKS, 0.0).inputs) == 5
    for _ in range(20):
        scheduler.batch_size.halve()
    assert len(scheduler.next_batch(PACKS, 0.0).inputs) == 1
    scheduler.batch_size.reset()
    assert len(scheduler.next_batch(PACKS, 0.0).inputs) == 10


def test_the_rate_forgets() -> None:
    throughput, now = Throughput(), 0.0
    assert not throughput.is_measured
    for tokens in (100, 10):
        for _ in range(300):
            throughput.batch_begun(now, tokens)
            now += 1.0
            throughput.batch_ended(now, tokens, 2, is_scored=True)
    assert throughput.tokens_per_s == pytest.approx(10, rel=0.3)
    assert throughput.inputs_per_s == pytest.approx(2)


def test_time_without_work_does_not_count() -> None:
    throughput = Throughput()
    for start in (0.0, 1000.0):
        throughput.batch_begun(start, 200)
        throughput.batch_ended(start + 1.0, 200, 1, is_scored=True)
    assert throughput.tokens_per_s == pytest.approx(200)


def test_the_start_of_an_engine_is_no_measure_of_it() -> None:
    throughput, now = Throughput(), 0.0
    for took in (30.0, 1.0, 1.0, 1.0, 1.0, 1.0, 45.0, 1.0):
        throughput.batch_begun(now, 500)
        now += took
        throughput.batch_ended(now, 500, 1, is_scored=True)
    assert throughput.tokens_per_s > 100


def test_the_next_batch_is_due_shortly_before_the_engine_is_free() -> None:
    scheduler = line_of([100] * 10)
    assert scheduler.next_batch_at(0) == -float("inf")
    scheduler.batch_done(scheduler.next_batch(PACKS, 0.0), 1.0)  # 100 tokens a second
    scheduler.next_batch(PACKS, 1.0)
    assert scheduler.next_batch_at(1) == pytest.approx(1.9)
    scheduler.remove(0)
    assert scheduler.next_batch_at(1) == float("inf")


def test_a_budget_waits_for_a_busy_engine_and_is_begun_if_that_turns_out_to_be_faster() -> None:
    scheduler = line_of([100] * 10)
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


def test_a_budget_that_no_engine_can_keep_is_given_up_at_once() -> None:
    scheduler = line_of([100] * 10)
    scheduler.batch_done(scheduler.next_batch(PACKS, 0.0), 1.0)
    scheduler.admit(1, Client("1"), 1, 2)
    scheduler.enqueue(1, [20, 20], until=1.1)
    assert scheduler.drop_late(1.0) == [1]
    assert scheduler.usage.documents == 9
    assert scheduler.drop_late(1.0) == []
