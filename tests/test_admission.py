"""Admission to the queue: limits for all requests together, and a share for each client."""

from __future__ import annotations

import itertools
from collections import deque

import pytest

from rerankd.client import Client
from rerankd.serving.admission import LimitReached, QueueLimits, Usage, UsageByClient
from rerankd.serving.scheduler import Scheduler

MANY = 10**9


@pytest.mark.parametrize(
    ("limits", "reached"),
    [
        (QueueLimits(2, MANY, MANY, MANY), LimitReached("2 requests", False, "requests", 1)),
        (QueueLimits(MANY, 25, MANY, MANY), LimitReached("20 documents", False, "documents", 5)),
        (
            QueueLimits(MANY, MANY, MANY, 3 * 2**20),
            LimitReached("2.0 MiB of text", False, "size_bytes", 2**20),
        ),
    ],
)
def test_a_request_over_a_limit_is_not_admitted(limits: QueueLimits, reached: LimitReached) -> None:
    scheduler = Scheduler(limits)
    size = 2**20 if limits.size_bytes < MANY else 1
    assert scheduler.admit(1, Client("a"), size, 10) is None
    assert scheduler.admit(2, Client("b"), size, 10) is None
    before = scheduler.usage
    assert scheduler.admit(3, Client("c"), 2 * size, 10) == reached
    assert scheduler.usage == before
    scheduler.remove(1)
    assert scheduler.admit(3, Client("c"), 1, 10) is None


@pytest.mark.parametrize("count", [1, 2, 5])
def test_greedy_clients_leave_a_share_for_another(count: int) -> None:
    scheduler = Scheduler(QueueLimits(256, MANY, MANY, MANY))
    greedy = [Client(f"greedy {number}") for number in range(count)]
    numbers = itertools.count()
    under_way: deque[int] = deque()

    def send(client: Client) -> bool:
        request = next(numbers)
        if scheduler.admit(request, client, 1, 1) is None:
            under_way.append(request)
            return True
        return False

    # Each client sends until it is refused. Then, whenever a request ends, each tries again.
    for client in greedy:
        while send(client):
            pass
    for _ in range(1000):
        scheduler.remove(under_way.popleft())
        for client in greedy:
            send(client)
    assert len(scheduler) == pytest.approx(256 * 3 * count / (3 * count + 1), abs=2 * count)
    refused = scheduler.admit(next(numbers), greedy[0], 1, 1)
    assert refused is not None and refused.is_share
    another = Client("another")
    assert sum(send(another) for _ in range(256)) >= 256 / (3 * count + 1) / 2


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_one_client_can_use_all_of_a_small_limit(limit: int) -> None:
    scheduler = Scheduler(QueueLimits(limit, MANY, MANY, MANY))
    assert [scheduler.admit(number, Client(), 1, 1) for number in range(limit)] == [None] * limit


def test_a_request_larger_than_the_limits_is_admitted_alone() -> None:
    scheduler = Scheduler(QueueLimits(10, 10, 10, 10))
    assert scheduler.admit(1, Client("a"), 10**6, 500) is None
    assert scheduler.enqueue(1, [100] * 500) is None
    assert scheduler.admit(2, Client("b"), 1, 1) == LimitReached("500 documents", False, "documents", 491)
    scheduler.remove(1)
    assert scheduler.usage == Usage()


def test_each_chunk_of_a_document_counts() -> None:
    scheduler = Scheduler(QueueLimits(100, 1000, MANY, MANY))
    for request, client in enumerate("ab"):
        assert scheduler.admit(request, Client(client), 1, 1) is None
    assert scheduler.enqueue(0, [10] * 500) is None
    assert scheduler.enqueue(1, [10] * 501) == LimitReached("500 documents", False, "documents", 1)
    assert scheduler.enqueue(1, [10] * 400) == LimitReached("0 documents", True, "documents", 25)
    assert scheduler.usage == Usage(2, 501, 5000, 2)
    assert scheduler.enqueue(1, [10] * 300) is None
    assert scheduler.usage == Usage(2, 800, 8000, 2)


def test_a_client_without_usage_is_removed() -> None:
    usage = UsageByClient()
    usage.change("a", Usage(), Usage(1, 2, 3, 4))
    usage.change("a", Usage(1, 2, 3, 4), Usage())
    assert not usage._clients


def test_retry_after_is_the_excess_divided_by_the_throughput() -> None:
    scheduler = Scheduler(QueueLimits(100, 100, 10_000, MANY))
    big, small = Client("big"), Client("small")
    scheduler.admit(1, big, 1, 60)
    scheduler.enqueue(1, [100] * 60)
    scheduler.admit(2, small, 1, 10)
    scheduler.enqueue(2, [20] * 10)
    # The throughput is not measured yet: 1000 tokens/s.
    assert scheduler.retry_after_s(LimitReached("", False, "tokens", 5000), big) == 5
    assert scheduler.retry_after_s(LimitReached("", False, "tokens", 10**9), big) == 120
    # 70 documents have 6,200 tokens together.
    assert scheduler.retry_after_s(LimitReached("", False, "documents", 35), big) == 4
    # One request has to end: the smallest of all, or the smallest of this client.
    assert scheduler.retry_after_s(LimitReached("", False, "requests", 1), big) == 1
    assert scheduler.retry_after_s(LimitReached("", True, "requests", 1), big) == 6
