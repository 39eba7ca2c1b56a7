"""The scheduler over random histories: no input is lost or scored twice, batches keep their limits, and
removed inputs are not scored."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rerankd.backends.base import BatchPolicy
from rerankd.client import Client
from rerankd.serving.admission import QueueLimits, Usage
from rerankd.serving.scheduler import WEIGHTS, NextBatch, Scheduler
from rerankd.serving.waiting_inputs import NEARLY

POLICIES = (
    BatchPolicy(tokens=512, most_tokens=512),
    BatchPolicy(tokens=512, most_tokens=4096, inputs=5),
    BatchPolicy(tokens=512, most_tokens=2048, pads=True),
    BatchPolicy(tokens=300, most_tokens=300, pads=True, one_question=True),
    BatchPolicy(tokens=256, most_tokens=256, one_question=True, run_tokens=700),
)
CLIENTS = [Client("a"), Client("b", 4.0), Client("c", 0.25)]


@dataclass
class Expected:
    """A request as the test expects it to be."""

    tokens: list[int]
    question: bytes
    until: float | None
    blocks: list[list[int]]
    waiting: set[int] = field(default_factory=set)
    at_engine: int = 0


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(QueueLimits(requests=12, documents=200, tokens=20_000, size_bytes=10_000))
        self.now = 0.0
        self.requests: dict[int, Expected | None] = {}
        self.under_way: list[NextBatch] = []
        self.count = 0

    @initialize(policy=st.sampled_from(POLICIES))
    def start(self, policy: BatchPolicy) -> None:
        self.policy = policy

    @rule(client=st.sampled_from(CLIENTS), weight=st.sampled_from(sorted(WEIGHTS.values())))
    def admit(self, client: Client, weight: float) -> None:
        self.count += 1
        before = self.scheduler.usage
        if self.scheduler.admit(self.count, client, 100, 3, weight) is None:
            self.requests[self.count] = None
        else:
            assert self.scheduler.usage == before

    @precondition(lambda self: None in self.requests.values())
    @rule(
        tokens=st.lists(st.integers(1, 600), max_size=40),
        question=st.sampled_from([b"q", b"r"]),
        budget=st.none() | st.floats(0, 3),
        in_blocks=st.booleans(),
    )
    def enqueue(self, tokens: list[int], question: bytes, budget: float | None, in_blocks: bool) -> None:
        request = next(one for one, expected in self.requests.items() if expected is None)
        until = None if budget is None else self.now + budget
        blocks = [list(range(at, min(at + 4, len(tokens)))) for at in range(0, len(tokens), 4)]
        blocks = blocks if in_blocks else []
        full = self.scheduler.enqueue(request, tokens, question=question, until=until, blocks=blocks)
        expected = self.requests[request] = Expected(tokens, question, until, blocks)
        if full is None:
            expected.waiting = set(range(len(tokens)))
        else:
            self.remove_one(request)

    @rule()
    def next_batch(self) -> None:
        self.drop_late()
        given = self.scheduler.next_batch(self.policy, self.now)
        if given.inputs:
            self.check(given)
            self.under_way.append(given)
        else:
            # All waiting inputs then have a time budget, and the engine's work may leave too little time for
            # them.
            for expected in self.requests.values():
                assert not expected or not expected.waiting or (expected.until is not None and self.under_way)

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 99), took=st.floats(0, 1), is_scored=st.booleans())
    def batch_done(self, which: int, took: float, is_scored: bool) -> None:
        self.now += took
        given = self.under_way.pop(which % len(self.under_way))
        self.scheduler.batch_done(given, self.now, is_scored=is_scored)
        for request, _ in given.inputs:
            if (expected := self.requests.get(request)) is not None:
                expected.at_engine -= 1

    @precondition(lambda self: self.requests)
    @rule(which=st.integers(0, 99))
    def remove(self, which: int) -> None:
        self.remove_one(sorted(self.requests)[which % len(self.requests)])

    @rule(seconds=st.floats(0, 2))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(is_lowered=st.booleans())
    def runs_out_of_memory(self, is_lowered: bool) -> None:
        if is_lowered:
            self.scheduler.batch_size.halve()
        else:
            self.scheduler.batch_size.reset()

    @invariant()
    def usage_is_exact(self) -> None:
        there = [expected for expected in self.requests.values() if expected is not None]
        unknown = len(self.requests) - len(there)
        assert self.scheduler.usage.requests == len(self.requests)
        assert self.scheduler.usage.documents == 3 * unknown + sum(
            len(expected.waiting) + expected.at_engine for expected in there
        )

    def teardown(self) -> None:
        """In the end every waiting input is scored, or dropped because of its budget."""
        for _ in range(10_000):
            if self.under_way:
                self.batch_done(0, 0.01, True)
            self.next_batch()
            if not self.under_way:
                break
        assert not any(expected.waiting for expected in self.requests.values() if expected is not None)
        for request in tuple(self.requests):
            self.remove_one(request)
        assert self.scheduler.usage == Usage()
        assert len(self.scheduler) == 0

    def remove_one(self, request: int) -> None:
        self.scheduler.remove(request)
        del self.requests[request]

    def drop_late(self) -> None:
        for request in self.scheduler.drop_late(self.now):
            expected = self.requests[request]
            assert expected is not None and expected.until is not None and expected.waiting
            expected.waiting.clear()

    def check(self, given: NextBatch) -> None:
        lead = self.requests[given.inputs[0][0]]
        assert lead is not None
        lengths = []
        for request, at in given.inputs:
            expected = self.requests[request]
            assert expected is not None and at in expected.waiting
            expected.waiting.remove(at)
            expected.at_engine += 1
            lengths.append(expected.tokens[at])
            assert not self.policy.one_question or expected.question == lead.question
            assert bool(expected.blocks) == bool(lead.blocks)
            # With a budget, inputs are in the request's order.
            assert expected.until is None or at < min(expected.waiting, default=len(expected.tokens))
        if lead.blocks:
            assert [at for _, at in given.inputs] in lead.blocks
            assert given.tokens == sum(lengths)
            return
        limits = self.scheduler.limits(self.policy)
        assert len(lengths) <= limits.inputs
        assert given.tokens <= limits.tokens or len(lengths) == 1
        if self.policy.pads:
            is_rest = not lead.waiting and len({request for request, _ in given.inputs}) == 1
            if is_rest and given.tokens == sum(lengths):  # the rest of a request, whatever the lengths
                return
            assert given.tokens == len(lengths) * max(lengths)
            assert lead.until is not None or min(lengths) >= NEARLY * max(lengths)
        else:
            assert given.tokens == sum(lengths)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
