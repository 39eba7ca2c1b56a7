"""The queue with a simulated engine: how long small requests wait among bulk requests, and the share of each
client."""

from __future__ import annotations

import itertools
import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace

import pytest

from rerankd.backends.base import BatchPolicy
from rerankd.client import Client
from rerankd.serving.admission import QueueLimits
from rerankd.serving.fairness import MOST_AHEAD
from rerankd.serving.scheduler import NextBatch, Scheduler
from rerankd.serving.turn_order import TurnOrder

WIDE = QueueLimits(10**6, 10**9, 10**12, 10**12)
PADS = BatchPolicy(tokens=512, most_tokens=8192, pads=True)
PACKS = BatchPolicy(tokens=512, most_tokens=4096)
PREFIXES = BatchPolicy(tokens=1024, most_tokens=4096, one_question=True, run_tokens=4096)

SMALL = [30] * 8
BULK = [130] * 1000
SPEED = 3000
OVERHEAD_S = 0.002


class Simulation:
    """An engine that computes one batch after another, in a time that grows with the number of tokens."""

    def __init__(self, policy: BatchPolicy) -> None:
        self.policy = policy
        self.scheduler = Scheduler(WIDE)
        self.now = 0.0
        self.longest_s = 0.0
        self.got: Counter[str] = Counter()
        self.took: dict[int, float] = {}
        self.questions: list[int] = []
        self._numbers = itertools.count(1)
        self._begun: dict[int, tuple[str, float, Sequence[int]]] = {}
        self._left: Counter[int] = Counter()
        self._at_engine: deque[tuple[float, NextBatch]] = deque()
        self._free_at = 0.0
        self._timer = math.inf

    def send(self, client: str, tokens: Sequence[int], weight: float = 1.0) -> int:
        number = next(self._numbers)
        assert self.scheduler.admit(number, Client(client), 1, len(tokens), weight) is None
        assert self.scheduler.enqueue(number, tokens, question=str(number).encode()) is None
        self._begun[number], self._left[number] = (client, self.now, tokens), len(tokens)
        self._fill()
        return number

    def step(self) -> float:
        """Advance to the next event. Returns its time."""
        ends = self._at_engine[0][0] if self._at_engine else math.inf
        self.now = min(ends, self._timer)
        if self._timer >= ends:
            self._end(self._at_engine.popleft()[1])
        self._fill()
        return self.now

    def run_until(self, moment: float) -> None:
        while min(self._timer, self._at_engine[0][0] if self._at_engine else math.inf) <= moment:
            self.step()
        self.now = moment

    def finish(self, request: int) -> float:
        """Run until the request is finished. Returns the seconds it took."""
        while request not in self.took:
            self.step()
        return self.took[request]

    def is_waiting(self, request: int) -> bool:
        return self._left[request] > 0

    def _end(self, batch: NextBatch) -> None:
        self.scheduler.batch_done(batch, self.now)
        for request, at in batch.inputs:
            client, begun, tokens = self._begun[request]
            self.got[client] += tokens[at]
            self._left[request] -= 1
            if not self._left[request]:
                self.took[request] = self.now - begun
                self.scheduler.remove(request)

    def _fill(self) -> None:
        self._timer = math.inf
        while len(self._at_engine) < self.policy.at_engine:
            at = self.scheduler.next_batch_at(self.policy, len(self._at_engine))
            if at > self.now:
                self._timer = at
                return
            batch = self.scheduler.next_batch(self.policy, self.now)
            took = batch.tokens / SPEED + OVERHEAD_S
            self.longest_s = max(self.longest_s, took)
            self._free_at = max(self._free_at, self.now) + took
            self._at_engine.append((self._free_at, batch))
            self.questions.append(batch.inputs[0][0])


def alone_s(policy: BatchPolicy) -> float:
    simulation = Simulation(policy)
    return simulation.finish(simulation.send("small", SMALL))


@pytest.mark.parametrize("policy", [PADS, PACKS, PREFIXES], ids=["pads", "packs", "prefixes"])
@pytest.mark.parametrize("bulks", [0, 1, 10, 30])
@pytest.mark.parametrize("is_same", [True, False], ids=["same client", "others"])
def test_small_requests_wait_for_at_most_one_batch_and_bulk_requests_continue(
    policy: BatchPolicy, bulks: int, is_same: bool
) -> None:
    simulation = Simulation(policy)
    bulk = {}
    for number in range(bulks):
        client = "small" if is_same else f"bulk {number}"
        bulk[simulation.send(client, BULK)] = client
    simulation.run_until(2.0)
    alone = alone_s(policy)
    times, served = [], 0
    began = simulation.now
    before = simulation.got.total()
    for number in range(20):
        times.append(simulation.finish(simulation.send("small", SMALL)))
        # At various moments of the running batch.
        simulation.run_until(simulation.now + alone * (6 + 0.37 * (number % 7)))
        for request in [one for one in bulk if not simulation.is_waiting(one)]:
            client = bulk.pop(request)
            bulk[simulation.send(client, BULK)] = client
    assert max(times) <= 3 * alone + simulation.longest_s
    served = simulation.got.total() - before - 20 * sum(SMALL)
    if bulks:
        assert served >= 0.85 * SPEED * (simulation.now - began)


def test_a_client_with_one_bulk_request_gets_half_against_a_client_with_many() -> None:
    simulation = Simulation(PACKS)
    for _ in range(50):
        simulation.send("many", BULK)
    simulation.run_until(1.0)
    before = simulation.got["many"]
    one = simulation.send("one", BULK)
    simulation.finish(one)
    assert simulation.got["many"] - before <= sum(BULK) + 2 * PACKS.most_tokens


def test_weights_of_clients_and_priorities_of_requests() -> None:
    simulation = Simulation(PACKS)
    low = simulation.send("a", BULK, weight=0.25)
    high = simulation.send("a", BULK, weight=4.0)
    other = simulation.send("b", BULK)
    simulation.finish(other)
    assert simulation.got["a"] == pytest.approx(sum(BULK), abs=4 * PACKS.tokens)
    # The high priority only delays the other request of the same client.
    simulation.finish(high)
    assert simulation.got["a"] - sum(BULK) == pytest.approx(sum(BULK) / 16, abs=4 * PACKS.tokens)
    simulation.finish(low)


def test_a_client_with_only_low_priority_work_weighs_less() -> None:
    simulation = Simulation(PACKS)
    low = simulation.send("a", BULK, weight=0.25)
    simulation.finish(simulation.send("b", BULK))
    assert simulation.got["a"] == pytest.approx(sum(BULK) / 4, abs=4 * PACKS.tokens)
    simulation.finish(low)


def test_low_priority_does_not_starve_under_endless_small_requests() -> None:
    simulation = Simulation(PACKS)
    low = simulation.send("batch", BULK, weight=0.25)
    sent = 0
    while simulation.is_waiting(low):
        # New clients without end.
        simulation.finish(simulation.send(f"client {sent}", SMALL * 4))
        sent += 1
        assert sent * sum(SMALL * 4) < 12 * sum(BULK) + 2 * MOST_AHEAD
    assert sent > 100


def test_an_engine_reads_a_question_once_per_run() -> None:
    simulation = Simulation(PREFIXES)
    for client in ("a", "b"):
        simulation.send(client, BULK)
    simulation.run_until(60.0)
    runs = [len(list(run)) for _, run in itertools.groupby(simulation.questions)]
    # 7 inputs of 130 tokens are a batch.
    assert all(4 <= run <= 5 for run in runs[:-1])


def test_a_run_continues_after_a_small_request() -> None:
    simulation = Simulation(replace(PREFIXES, at_engine=1))
    a, b = simulation.send("a", BULK), simulation.send("b", BULK)
    simulation.step()
    small = simulation.send("c", SMALL)
    for _ in range(6):
        simulation.step()
    assert simulation.questions == [a, a, small, a, a, a, b, b][: len(simulation.questions)]


def test_a_batch_of_a_small_request_is_not_filled_with_bulk() -> None:
    scheduler = Scheduler(WIDE)
    for number, (client, tokens) in enumerate([("a", BULK), ("b", SMALL), ("c", SMALL), ("a", SMALL)]):
        scheduler.admit(number, Client(client), 1, len(tokens))
        scheduler.enqueue(number, tokens)
    batch = scheduler.next_batch(replace(PACKS, tokens=10_000), 0.0)
    assert {request for request, _ in batch.inputs} == {1, 2, 3}
    assert batch.tokens == 3 * sum(SMALL)


@pytest.mark.parametrize(("weight", "priority"), [(1.0, 0.25), (0.25, 1.0)])
def test_low_priority_has_no_head_start(weight: float, priority: float) -> None:
    scheduler = Scheduler(WIDE)
    for number in range(10):
        scheduler.admit(number, Client(f"{number}"), 1, len(BULK))
        scheduler.enqueue(number, BULK)
    scheduler.next_batch(PACKS, 0.0)
    for number, client in ((10, Client("low", weight)), (11, Client("normal"))):
        scheduler.admit(number, client, 1, 8, priority if number == 10 else 1.0)
        scheduler.enqueue(number, BULK[:8])
    leads = [scheduler.next_batch(PACKS, 0.0).inputs[0][0] for _ in range(13)]
    assert leads[:3] == [11] * 3
    assert leads.index(10) == len(leads) - 1


def test_a_client_weighs_less_again_when_only_its_low_priority_work_is_left() -> None:
    simulation = Simulation(PACKS)
    simulation.send("a", BULK, weight=0.25)
    normal = simulation.send("a", BULK)
    simulation.send("b", BULK * 10)
    simulation.finish(normal)
    before = simulation.got.copy()
    simulation.run_until(simulation.now + 60.0)
    got = simulation.got - before
    assert got["a"] == pytest.approx(got["b"] / 4, abs=4 * PACKS.tokens)


def test_a_client_without_head_start_does_not_join_a_batch_of_one_with_head_start() -> None:
    turns = TurnOrder()
    turns.arrive(0, Client("bulk"), 1.0, 10**6)
    request = 1
    while True:
        turns.arrive(request, Client("small"), 1.0, 3000)
        turn = turns.next()
        if turn != (request, True):
            break
        turns.charge(request, 3000, request)
        turns.leave(request)
        request += 1
    assert request > 8
    turns.arrive(100, Client("new"), 1.0, 300)
    assert turns.next() == (100, True)
    assert list(turns.others(100, is_ahead=True)) == []
    assert set(turns.others(100, is_ahead=False)) == {0, request}


def test_cancelled_small_requests_leave_no_head_start_to_their_client() -> None:
    turns = TurnOrder()
    turns.arrive(0, Client("a"), 1.0, 10**6)
    turns.arrive(1, Client("b"), 1.0, 10**6)
    for request in range(2, 100):
        turns.arrive(request, Client("b"), 1.0, 3000)
        turns.leave(request)
    led = []
    for _ in range(10):
        turn = turns.next()
        assert turn is not None and not turn[1]
        turns.charge(turn[0], 500, turn[0])
        led.append(turn[0])
    assert led.count(1) == 5
