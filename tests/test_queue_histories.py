"""The queue over any history of events: nothing is lost, nothing is given twice, batches are within
their limits, and what has gone is not given any more."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rerankd.backends.base import BatchPolicy
from rerankd.serving.admission import Client, QueueLimits, Usage
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
class Asked:
    """A request as the test knows it."""

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
        self.requests: dict[int, Asked | None] = {}
        self.under_way: list[NextBatch] = []
        self.count = 0

    @initialize(policy=st.sampled_from(POLICIES))
    def start(self, policy: BatchPolicy) -> None:
        self.policy = policy

    @rule(client=st.sampled_from(CLIENTS), weight=st.sampled_from(sorted(WEIGHTS.values())))
    def join(self, client: Client, weight: float) -> None:
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
    def expect(self, tokens: list[int], question: bytes, budget: float | None, in_blocks: bool) -> None:
        request = next(one for one, asked in self.requests.items() if asked is None)
        until = None if budget is None else self.now + budget
        blocks = [list(range(at, min(at + 4, len(tokens)))) for at in range(0, len(tokens), 4)]
        blocks = blocks if in_blocks else []
        full = self.scheduler.enqueue(request, tokens, question=question, until=until, blocks=blocks)
        asked = self.requests[request] = Asked(tokens, question, until, blocks)
        if full is None:
            asked.waiting = set(range(len(tokens)))
        else:
            self.leave_one(request)

    @rule()
    def next(self) -> None:
        self.drop_late()
        given = self.scheduler.next_batch(self.policy, self.now)
        if given.inputs:
            self.check(given)
            self.under_way.append(given)
        else:
            # What waits then has a budget, and what the engine has may leave it time or not.
            for asked in self.requests.values():
                assert not asked or not asked.waiting or (asked.until is not None and self.under_way)

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 99), took=st.floats(0, 1), is_scored=st.booleans())
    def done(self, which: int, took: float, is_scored: bool) -> None:
        self.now += took
        given = self.under_way.pop(which % len(self.under_way))
        self.scheduler.batch_done(given, self.now, is_scored=is_scored)
        for request, _ in given.inputs:
            if (asked := self.requests.get(request)) is not None:
                asked.at_engine -= 1

    @precondition(lambda self: self.requests)
    @rule(which=st.integers(0, 99))
    def leave(self, which: int) -> None:
        self.leave_one(sorted(self.requests)[which % len(self.requests)])

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
    def counts_what_is_there(self) -> None:
        there = [asked for asked in self.requests.values() if asked is not None]
        unknown = len(self.requests) - len(there)
        assert self.scheduler.usage.requests == len(self.requests)
        assert self.scheduler.usage.documents == 3 * unknown + sum(
            len(asked.waiting) + asked.at_engine for asked in there
        )

    def teardown(self) -> None:
        """All that waits is given in the end, or dropped because of its budget."""
        for _ in range(10_000):
            if self.under_way:
                self.done(0, 0.01, True)
            self.next()
            if not self.under_way:
                break
        assert not any(asked.waiting for asked in self.requests.values() if asked is not None)
        for request in tuple(self.requests):
            self.leave_one(request)
        assert self.scheduler.usage == Usage()
        assert len(self.scheduler) == 0

    def leave_one(self, request: int) -> None:
        self.scheduler.remove(request)
        del self.requests[request]

    def drop_late(self) -> None:
        for request in self.scheduler.drop_late(self.now):
            asked = self.requests[request]
            assert asked is not None and asked.until is not None and asked.waiting
            asked.waiting.clear()

    def check(self, given: NextBatch) -> None:
        lead = self.requests[given.inputs[0][0]]
        assert lead is not None
        lengths = []
        for request, at in given.inputs:
            asked = self.requests[request]
            assert asked is not None and at in asked.waiting
            asked.waiting.remove(at)
            asked.at_engine += 1
            lengths.append(asked.tokens[at])
            assert not self.policy.one_question or asked.question == lead.question
            assert bool(asked.blocks) == bool(lead.blocks)
            # In its own order, where that matters.
            assert asked.until is None or at < min(asked.waiting, default=len(asked.tokens))
        if lead.blocks:
            assert [at for _, at in given.inputs] in lead.blocks
            assert given.tokens == sum(lengths)
            return
        limits = self.scheduler.limits(self.policy)
        assert len(lengths) <= limits.inputs
        assert given.tokens <= limits.tokens or len(lengths) == 1
        if self.policy.pads:
            is_rest = not lead.waiting and len({request for request, _ in given.inputs}) == 1
            if is_rest and given.tokens == sum(lengths):  # all that is left of it, whatever the lengths
                return
            assert given.tokens == len(lengths) * max(lengths)
            assert lead.until is not None or min(lengths) >= NEARLY * max(lengths)
        else:
            assert given.tokens == sum(lengths)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
