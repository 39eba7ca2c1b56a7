"""Who is let into the queue: bounds on everything, and a share per client."""

from __future__ import annotations

import itertools
from collections import deque

import pytest

from rerankd.serving.admission import Bounds, Client, Full, Held, Occupancy
from rerankd.serving.scheduler import Scheduler

MANY = 10**9


@pytest.mark.parametrize(
    ("bounds", "full"),
    [
        (Bounds(2, MANY, MANY, MANY), Full("2 requests", False, "requests", 1)),
        (Bounds(MANY, 25, MANY, MANY), Full("20 documents", False, "documents", 5)),
        (Bounds(MANY, MANY, MANY, 3 * 2**20), Full("2.0 MiB of text", False, "size_bytes", 2**20)),
    ],
)
def test_over_each_bound_nothing_is_taken(bounds: Bounds, full: Full) -> None:
    scheduler = Scheduler(bounds)
    size = 2**20 if bounds.size_bytes < MANY else 1
    assert scheduler.join(1, Client("a"), size, 10) is None
    assert scheduler.join(2, Client("b"), size, 10) is None
    before = scheduler.held
    assert scheduler.join(3, Client("c"), 2 * size, 10) == full
    assert scheduler.held == before
    scheduler.leave(1)
    assert scheduler.join(3, Client("c"), 1, 10) is None


@pytest.mark.parametrize("count", [1, 2, 5])
def test_clients_that_take_all_they_can_leave_room_for_another(count: int) -> None:
    scheduler = Scheduler(Bounds(256, MANY, MANY, MANY))
    greedy = [Client(f"greedy {number}") for number in range(count)]
    numbers = itertools.count()
    under_way: deque[int] = deque()

    def send(client: Client) -> bool:
        request = next(numbers)
        if scheduler.join(request, client, 1, 1) is None:
            under_way.append(request)
            return True
        return False

    # One after the other takes what it can get; then, whenever a request ends, each tries again.
    for client in greedy:
        while send(client):
            pass
    for _ in range(1000):
        scheduler.leave(under_way.popleft())
        for client in greedy:
            send(client)
    assert len(scheduler) == pytest.approx(256 * 3 * count / (3 * count + 1), abs=2 * count)
    refused = scheduler.join(next(numbers), greedy[0], 1, 1)
    assert refused is not None and refused.is_share
    another = Client("another")
    assert sum(send(another) for _ in range(256)) >= 256 / (3 * count + 1) / 2


@pytest.mark.parametrize("bound", [1, 2, 3])
def test_one_client_can_use_a_small_bound(bound: int) -> None:
    scheduler = Scheduler(Bounds(bound, MANY, MANY, MANY))
    assert [scheduler.join(number, Client(), 1, 1) for number in range(bound)] == [None] * bound


def test_a_request_larger_than_the_bounds_is_taken_alone() -> None:
    scheduler = Scheduler(Bounds(10, 10, 10, 10))
    assert scheduler.join(1, Client("a"), 10**6, 500) is None
    assert scheduler.expect(1, [100] * 500) is None
    assert scheduler.join(2, Client("b"), 1, 1) == Full("500 documents", False, "documents", 491)
    scheduler.leave(1)
    assert scheduler.held == Held()


def test_a_document_in_many_chunks_counts_as_what_it_is() -> None:
    scheduler = Scheduler(Bounds(100, 1000, MANY, MANY))
    for request, client in enumerate("ab"):
        assert scheduler.join(request, Client(client), 1, 1) is None
    assert scheduler.expect(0, [10] * 500) is None
    assert scheduler.expect(1, [10] * 501) == Full("500 documents", False, "documents", 1)
    assert scheduler.expect(1, [10] * 400) == Full("0 documents", True, "documents", 25)
    assert scheduler.held == Held(2, 501, 5000, 2)
    assert scheduler.expect(1, [10] * 300) is None
    assert scheduler.held == Held(2, 800, 8000, 2)


def test_what_a_client_no_longer_holds_is_forgotten() -> None:
    occupancy = Occupancy()
    occupancy.change("a", Held(), Held(1, 2, 3, 4))
    occupancy.change("a", Held(1, 2, 3, 4), Held())
    assert not occupancy._clients


def test_retry_after_is_what_is_too_much_over_the_rate() -> None:
    scheduler = Scheduler(Bounds(100, 100, 10_000, MANY))
    big, small = Client("big"), Client("small")
    scheduler.join(1, big, 1, 60)
    scheduler.expect(1, [100] * 60)
    scheduler.join(2, small, 1, 10)
    scheduler.expect(2, [20] * 10)
    # No rate is known: 1000 tokens a second.
    assert scheduler.retry_after_s(Full("", False, "tokens", 5000), big) == 5
    assert scheduler.retry_after_s(Full("", False, "tokens", 10**9), big) == 120
    # 70 documents of 6,200 tokens in all.
    assert scheduler.retry_after_s(Full("", False, "documents", 35), big) == 4
    # One request has to end: the smallest of all, or of this client.
    assert scheduler.retry_after_s(Full("", False, "requests", 1), big) == 1
    assert scheduler.retry_after_s(Full("", True, "requests", 1), big) == 6
