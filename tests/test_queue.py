"""The queue: admission, batches, time budgets, and cancelled requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from rerankd.backends.base import BatchPolicy
from rerankd.client import ANONYMOUS, Client
from rerankd.errors import EngineError, EngineUnavailable, Overloaded, QueryRefused, Stopping
from rerankd.scoring.engine_input import Input, Question
from rerankd.serving.admission import QueueLimits
from rerankd.serving.queue import Queue
from rerankd.serving.queue_scores import Answer, Scores
from rerankd.serving.scheduler import Scheduler

WIDE = QueueLimits(requests=100, documents=10_000, tokens=10**6, size_bytes=10**9)
TWO_AT_A_TIME = BatchPolicy(tokens=20, most_tokens=20)


def inputs(name: str, count: int, tokens: int = 10) -> list[Input]:
    question = Question(name)
    return [Input(question, f"{name}{at}", np.zeros(0, np.int32), tokens) for at in range(count)]


class Call:
    """A batch at the engine; the test sets its outcome."""

    def __init__(self, batch: Sequence[Input], is_wanted: Callable[[int], bool]) -> None:
        self.texts = [one.text for one in batch]
        self.is_wanted = is_wanted
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def end(self, answer: Answer | None = None) -> None:
        self.answer.set_result(answer or Answer([float(text[1:]) for text in self.texts]))


class Bench:
    """A queue with an engine and a clock that the test controls."""

    def __init__(
        self, limits: QueueLimits = WIDE, policy: BatchPolicy = TWO_AT_A_TIME, engines: int = 1
    ) -> None:
        self.now = 0.0
        self.calls: list[Call] = []
        self.queue = Queue(
            Scheduler(limits, engines=engines), lambda: policy, self._score, now=lambda: self.now
        )

    async def _score(self, batch: Sequence[Input], is_wanted: Callable[[int], bool]) -> Answer:
        call = Call(batch, is_wanted)
        self.calls.append(call)
        try:
            return await call.answer
        finally:
            self.calls.remove(call)

    def send(self, name: str, count: int, client: Client = ANONYMOUS, **how: Any) -> asyncio.Task[Scores]:
        async def ask() -> Scores:
            with self.queue.admit(client, count, 1) as place:
                return await place.score(inputs(name, count), **how)

        return asyncio.create_task(ask())

    async def settle(self) -> list[list[str]]:
        """Run all tasks that can run. Returns the batches at the engine."""
        for _ in range(20):
            await asyncio.sleep(0)
        return [call.texts for call in self.calls]

    async def end(self, which: int = 0, answer: Answer | None = None) -> list[list[str]]:
        """End a batch at the engine. Returns the batches that are there afterwards."""
        self.calls[which].end(answer)
        return await self.settle()


def async_test(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Turn a coroutine function into a test."""

    def run() -> None:
        asyncio.run(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@async_test
async def test_scores_are_returned_by_input_index() -> None:
    bench = Bench()
    one, other = bench.send("a", 3), bench.send("b", 1)
    assert await bench.settle() == [["a0", "a1"], ["a2"]]
    assert await bench.end(1, Answer([None], {0: "the engine crashed on it"})) == [["a0", "a1"], ["b0"]]
    assert await bench.end(1) == [["a0", "a1"]]
    assert not one.done()
    assert await bench.end() == []
    assert await one == Scores([0.0, 1.0, None], {2: "the engine crashed on it"}, frozenset())
    assert await other == Scores([0.0], {}, frozenset())
    assert await bench.send("nothing", 0) == Scores((), {}, frozenset())
    assert len(bench.queue.scheduler) == 0


@async_test
async def test_a_small_request_joins_the_next_batch() -> None:
    bench = Bench(policy=BatchPolicy(tokens=20, most_tokens=20, at_engine=1))
    bench.send("a", 3)
    assert await bench.settle() == [["a0", "a1"]]
    bench.send("b", 1)
    assert await bench.settle() == [["a0", "a1"]]
    assert await bench.end() == [["a2", "b0"]]


@async_test
async def test_waited_s_is_the_time_until_the_first_batch() -> None:
    bench = Bench(policy=BatchPolicy(tokens=10, most_tokens=10, at_engine=1))
    with bench.queue.admit(ANONYMOUS, 1, 1) as first, bench.queue.admit(ANONYMOUS, 1, 1) as second:
        tasks = [asyncio.create_task(place.score(inputs("a", 1))) for place in (first, second)]
        await bench.settle()
        bench.now = 3.0
        await bench.end()
        await bench.end()
        await asyncio.gather(*tasks)
        assert (first.waited_s, second.waited_s) == (0.0, 3.0)


@async_test
async def test_each_engine_gets_one_batch_ahead() -> None:
    bench = Bench(engines=2)
    bench.send("a", 9)
    assert len(await bench.settle()) == 4
    bench.now = 1.0
    assert len(await bench.end()) == 4


@async_test
async def test_cancelling_a_request_frees_the_engine() -> None:
    bench = Bench()
    gone, stays = bench.send("a", 5), bench.send("b", 1)
    assert await bench.settle() == [["a0", "a1"], ["a2", "a3"]]
    gone.cancel()
    assert await bench.settle() == [["b0"]]
    assert await bench.end() == []
    assert (await stays).values == [0.0]
    assert len(bench.queue.scheduler) == 0


@async_test
async def test_a_batch_shared_with_another_request_continues_after_a_cancellation() -> None:
    bench = Bench(policy=BatchPolicy(tokens=20, most_tokens=20, at_engine=1))
    bench.send("a", 2)
    await bench.settle()
    gone, stays = bench.send("b", 1), bench.send("c", 1)
    assert await bench.end() == [["b0", "c0"]]
    gone.cancel()
    assert await bench.settle() == [["b0", "c0"]]
    assert [bench.calls[0].is_wanted(at) for at in range(2)] == [False, True]
    await bench.end()
    assert (await stays).values == [0.0]


@async_test
async def test_a_failure_affects_only_its_request() -> None:
    bench = Bench(policy=BatchPolicy(tokens=20, most_tokens=20, at_engine=1))
    bench.send("a", 2)
    await bench.settle()
    fails, stays = bench.send("b", 1), bench.send("c", 3)
    assert await bench.end() == [["b0", "c0"]]
    refused = QueryRefused("The engine ends on this query.")
    assert await bench.end(0, Answer([None, 0.0], {}, {0: refused})) == [["c1", "c2"]]
    with pytest.raises(QueryRefused):
        await fails
    await bench.end()
    assert (await stays).values == [0.0, 1.0, 2.0]


@async_test
async def test_waiting_inputs_of_a_failed_request_are_dropped() -> None:
    bench = Bench()
    fails = bench.send("a", 9)
    await bench.settle()
    bench.calls[0].answer.set_exception(EngineError("no scores"))
    assert await bench.settle() == []
    with pytest.raises(EngineError, match="no scores"):
        await fails
    assert bench.queue.scheduler.usage.requests == 0


@async_test
async def test_an_unexpected_error_reaches_the_waiting_requests() -> None:
    bench = Bench()
    tasks = [bench.send("a", 1), bench.send("b", 1)]
    await bench.settle()
    bench.calls[0].answer.set_exception(ZeroDivisionError())
    bench.calls[1].answer.cancel()
    await bench.settle()
    with pytest.raises(ZeroDivisionError):
        await tasks[0]
    with pytest.raises(EngineUnavailable):
        await tasks[1]


@async_test
async def test_an_exhausted_budget_drops_waiting_inputs_and_waits_for_started_ones() -> None:
    bench = Bench()
    ask = bench.send("a", 9, until=0.5, latest=100.0)
    # The throughput is not known yet, so only one batch is started.
    assert await bench.settle() == [["a0", "a1"]]
    bench.now = 0.2
    # 100 tokens/s: 30 more until 0.5.
    assert await bench.end() == [["a2", "a3"]]
    bench.now = 0.375
    assert await bench.end() == [["a4"]]
    assert not ask.done()
    bench.now = 0.5
    assert await bench.end() == []
    assert await ask == Scores([0.0, 1.0, 2.0, 3.0, 4.0, *[None] * 4], {}, frozenset(range(5, 9)))


@async_test
async def test_a_request_with_a_budget_that_has_to_wait_forms_no_empty_batch() -> None:
    bench = Bench()
    first = bench.send("a", 4)
    await bench.settle()
    bench.now = 0.2  # 100 tokens/s
    assert await bench.end() == [["a2", "a3"]]
    bench.now = 0.36  # the engine is free at 0.4, which is too late
    ask = bench.send("b", 1, until=0.48, latest=100.0)
    assert await bench.settle() == [["a2", "a3"]]
    assert await bench.end() == [["b0"]]
    assert await bench.end() == []
    assert (await ask).values == [0.0]
    await first


@async_test
async def test_started_inputs_are_waited_for_until_latest() -> None:
    bench = Bench()
    ask = bench.send("a", 3, until=0.0, latest=0.01)
    other = bench.send("b", 1, until=0.01, latest=0.02)
    assert await ask == Scores([None] * 3, {}, frozenset(range(3)))
    assert await other == Scores([None], {}, frozenset([0]))
    assert await bench.settle() == []
    assert bench.queue.scheduler.usage.requests == 0


@async_test
async def test_each_block_is_a_separate_batch() -> None:
    bench = Bench()
    ask = bench.send("a", 5, blocks=[range(0, 3), range(3, 5)])
    other = bench.send("b", 1)
    assert await bench.settle() == [["a0", "a1", "a2"], ["a3", "a4"]]
    await bench.end()
    assert await bench.end() == [["b0"]]
    await bench.end()
    await other
    assert (await ask).values == [0.0, 1.0, 2.0, 3.0, 4.0]


@async_test
async def test_a_full_queue_reports_retry_after() -> None:
    bench = Bench(QueueLimits(requests=100, documents=40, tokens=10**6, size_bytes=10**6))
    bulk = bench.send("a", 28, Client("bulk"))
    await bench.settle()
    with pytest.raises(
        Overloaded, match=r"This client has used its share of the queue \(28 documents\)"
    ) as caught:
        await bench.send("b", 9, Client("bulk"))
    assert caught.value.retry_after_s == 1
    with pytest.raises(Overloaded, match=r"The queue is full \(28 documents\)"):
        await bench.send("b", 13, Client("other"))
    small = bench.send("b", 5, Client("other"))
    await bench.settle()
    bulk.cancel()
    small.cancel()
    await bench.settle()
    assert bench.queue.scheduler.usage.requests == 0


@async_test
async def test_a_request_with_too_many_tokens_is_refused_after_tokenization() -> None:
    bench = Bench(QueueLimits(requests=100, documents=100, tokens=100, size_bytes=10**6))
    first = bench.send("a", 5, Client("a"))
    await bench.settle()
    with pytest.raises(Overloaded, match=r"The queue is full \(50 tokens\)"):
        await bench.send("b", 6, Client("b"))
    first.cancel()
    await bench.settle()
    alone = bench.send("b", 60)
    await bench.settle()
    assert bench.queue.scheduler.usage.tokens == 600
    alone.cancel()
    await bench.settle()


@async_test
async def test_a_closed_queue_admits_no_request_and_reports_when_it_is_empty() -> None:
    bench = Bench()
    last = bench.send("a", 1)
    await bench.settle()
    bench.queue.close()
    with pytest.raises(Stopping), bench.queue.admit(ANONYMOUS, 1, 1):
        pass
    empty = asyncio.create_task(bench.queue.wait_empty())
    await bench.settle()
    assert not empty.done()
    await bench.end()
    await asyncio.gather(last, empty)
