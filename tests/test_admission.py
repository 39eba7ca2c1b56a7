"""Who is let into the queue: bounds on everything, and a share per client."""

from __future__ import annotations

import itertools
from collections import deque

import pytest

from rerankd.serving.admission import Bounds, Client, Full, Held, Occupancy
from rerankd.serving.line import Line

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
    line = Line(bounds)
    size = 2**20 if bounds.size_bytes < MANY else 1
    assert line.join(1, Client("a"), size, 10) is None
    assert line.join(2, Client("b"), size, 10) is None
    before = line.held
    assert line.join(3, Client("c"), 2 * size, 10) == full
    assert line.held == before
    line.leave(1)
    assert line.join(3, Client("c"), 1, 10) is None


@pytest.mark.parametrize("count", [1, 2, 5])
def test_clients_that_take_all_they_can_leave_room_for_another(count: int) -> None:
    line = Line(Bounds(256, MANY, MANY, MANY))
    greedy = [Client(f"greedy {number}") for number in range(count)]
    numbers = itertools.count()
    under_way: deque[int] = deque()

    def send(client: Client) -> bool:
        request = next(numbers)
        if line.join(request, client, 1, 1) is None:
            under_way.append(request)
            return True
        return False

    # One after the other takes what it can get; then, whenever a request ends, each tries again.
    for client in greedy:
        while send(client):
            pass
    for _ in range(1000):
        line.leave(under_way.popleft())
        for client in greedy:
            send(client)
    assert len(line) == pytest.approx(256 * 3 * count / (3 * count + 1), abs=2 * count)
    refused = line.join(next(numbers), greedy[0], 1, 1)
    assert refused is not None and refused.is_share
    another = Client("another")
    assert sum(send(another) for _ in range(256)) >= 256 / (3 * count + 1) / 2


@pytest.mark.parametrize("bound", [1, 2, 3])
def test_one_client_can_use_a_small_bound(bound: int) -> None:
    line = Line(Bounds(bound, MANY, MANY, MANY))
    assert [line.join(number, Client(), 1, 1) for number in range(bound)] == [None] * bound


def test_a_request_larger_than_the_bounds_is_taken_alone() -> None:
    line = Line(Bounds(10, 10, 10, 10))
    assert line.join(1, Client("a"), 10**6, 500) is None
    assert line.expect(1, [100] * 500) is None
    assert line.join(2, Client("b"), 1, 1) == Full("500 documents", False, "documents", 491)
    line.leave(1)
    assert line.held == Held()


def test_a_document_in_many_chunks_counts_as_what_it_is() -> None:
    line = Line(Bounds(100, 1000, MANY, MANY))
    for request, client in enumerate("ab"):
        assert line.join(request, Client(client), 1, 1) is None
    assert line.expect(0, [10] * 500) is None
    assert line.expect(1, [10] * 501) == Full("500 documents", False, "documents", 1)
    assert line.expect(1, [10] * 400) == Full("0 documents", True, "documents", 25)
    assert line.held == Held(2, 501, 5000, 2)
    assert line.expect(1, [10] * 300) is None
    assert line.held == Held(2, 800, 8000, 2)


def test_what_a_client_no_longer_holds_is_forgotten() -> None:
    occupancy = Occupancy()
    occupancy.change("a", Held(), Held(1, 2, 3, 4))
    occupancy.change("a", Held(1, 2, 3, 4), Held())
    assert not occupancy._clients


def test_retry_after_is_what_is_too_much_over_the_rate() -> None:
    line = Line(Bounds(100, 100, 10_000, MANY))
    big, small = Client("big"), Client("small")
    line.join(1, big, 1, 60)
    line.expect(1, [100] * 60)
    line.join(2, small, 1, 10)
    line.expect(2, [20] * 10)
    # No rate is known: 1000 tokens a second.
    assert line.retry_after_s(Full("", False, "tokens", 5000), big) == 5
    assert line.retry_after_s(Full("", False, "tokens", 10**9), big) == 120
    # 70 documents of 6,200 tokens in all.
    assert line.retry_after_s(Full("", False, "documents", 35), big) == 4
    # One request has to end: the smallest of all, or of this client.
    assert line.retry_after_s(Full("", False, "requests", 1), big) == 1
    assert line.retry_after_s(Full("", True, "requests", 1), big) == 6
