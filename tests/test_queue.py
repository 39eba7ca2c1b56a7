"""The queue that requests wait in: admission, batches under way, time budgets, and requests that go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from rerankd.backends.base import BatchPolicy
from rerankd.errors import EngineError, EngineUnavailable, Overloaded, QueryRefused, Stopping
from rerankd.scoring.engine_input import Input, Question
from rerankd.serving.queue import ANONYMOUS, Answer, Client, Queue, QueueLimits, Scheduler, Scores

WIDE = QueueLimits(requests=100, documents=10_000, tokens=10**6, size_bytes=10**9)
TWO_AT_A_TIME = BatchPolicy(tokens=20, most_tokens=20)


def inputs(name: str, count: int, tokens: int = 10) -> list[Input]:
    question = Question(name)
    return [Input(question, f"{name}{at}", np.zeros(0, np.int32), tokens) for at in range(count)]


class Call:
    """A batch at the engine, until the test says what comes of it."""

    def __init__(self, batch: Sequence[Input], is_wanted: Callable[[int], bool]) -> None:
        self.texts = [one.text for one in batch]
        self.is_wanted = is_wanted
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def end(self, answer: Answer | None = None) -> None:
        self.answer.set_result(answer or Answer([float(text[1:]) for text in self.texts]))


class Bench:
    """A queue whose engine does what the test says, and whose clock the test moves."""

    def __init__(
        self, bounds: QueueLimits = WIDE, policy: BatchPolicy = TWO_AT_A_TIME, engines: int = 1
    ) -> None:
        self.now = 0.0
        self.calls: list[Call] = []
        self.queue = Queue(
            Scheduler(bounds, engines=engines), lambda: policy, self._score, now=lambda: self.now
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
        """The batches at the engine, when all that can run has run."""
        for _ in range(20):
            await asyncio.sleep(0)
        return [call.texts for call in self.calls]

    async def end(self, which: int = 0, answer: Answer | None = None) -> list[list[str]]:
        """The engine ends with a batch; those that are there then."""
        self.calls[which].end(answer)
        return await self.settle()


def story(tell: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test as a coroutine."""

    def run() -> None:
        asyncio.run(tell())

    run.__name__, run.__doc__ = tell.__name__, tell.__doc__
    return run


@story
async def test_values_come_back_to_their_places() -> None:
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


@story
async def test_a_small_request_goes_along_in_the_next_batch() -> None:
    bench = Bench(policy=BatchPolicy(tokens=20, most_tokens=20, at_engine=1))
    bench.send("a", 3)
    assert await bench.settle() == [["a0", "a1"]]
    bench.send("b", 1)
    assert await bench.settle() == [["a0", "a1"]]
    assert await bench.end() == [["a2", "b0"]]


@story
async def test_how_long_a_request_waited_for_its_first_batch() -> None:
    bench = Bench(policy=BatchPolicy(tokens=10, most_tokens=10, at_engine=1))
    with bench.queue.admit(ANONYMOUS, 1, 1) as first, bench.queue.admit(ANONYMOUS, 1, 1) as second:
        tasks = [asyncio.create_task(place.score(inputs("a", 1))) for place in (first, second)]
        await bench.settle()
        bench.now = 3.0
        await bench.end()
        await bench.end()
        await asyncio.gather(*tasks)
        assert (first.waited_s, second.waited_s) == (0.0, 3.0)


@story
async def test_each_engine_has_a_batch_and_the_next_one() -> None:
    bench = Bench(engines=2)
    bench.send("a", 9)
    assert len(await bench.settle()) == 4
    bench.now = 1.0
    assert len(await bench.end()) == 4


@story
async def test_the_batch_of_a_request_that_goes_frees_the_engine() -> None:
    bench = Bench()
    gone, stays = bench.send("a", 5), bench.send("b", 1)
    assert await bench.settle() == [["a0", "a1"], ["a2", "a3"]]
    gone.cancel()
    assert await bench.settle() == [["b0"]]
    assert await bench.end() == []
    assert (await stays).values == [0.0]
    assert len(bench.queue.scheduler) == 0


@story
async def test_a_batch_that_somebody_else_needs_goes_on() -> None:
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


@story
async def test_a_failure_ends_its_request_at_once_and_no_other() -> None:
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


@story
async def test_what_waits_of_a_request_that_failed_is_not_begun() -> None:
    bench = Bench()
    fails = bench.send("a", 9)
    await bench.settle()
    bench.calls[0].answer.set_exception(EngineError("no scores"))
    assert await bench.settle() == []
    with pytest.raises(EngineError, match="no scores"):
        await fails
    assert bench.queue.scheduler.usage.requests == 0


@story
async def test_an_error_that_nobody_expected_reaches_those_who_wait() -> None:
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


@story
async def test_a_budget_that_is_over_leaves_what_has_not_begun_and_waits_for_what_has() -> None:
    bench = Bench()
    ask = bench.send("a", 9, until=0.5, latest=100.0)
    # No rate is known yet: one batch.
    assert await bench.settle() == [["a0", "a1"]]
    bench.now = 0.2
    # 100 tokens a second: 30 more until 0.5.
    assert await bench.end() == [["a2", "a3"]]
    bench.now = 0.375
    assert await bench.end() == [["a4"]]
    assert not ask.done()
    bench.now = 0.5
    assert await bench.end() == []
    assert await ask == Scores([0.0, 1.0, 2.0, 3.0, 4.0, *[None] * 4], {}, frozenset(range(5, 9)))


@story
async def test_a_busy_engine_gets_no_empty_batch_for_a_budget_that_has_to_wait() -> None:
    bench = Bench()
    first = bench.send("a", 4)
    await bench.settle()
    bench.now = 0.2  # 100 tokens a second
    assert await bench.end() == [["a2", "a3"]]
    bench.now = 0.36  # the engine is free at 0.4, and then it is too late
    ask = bench.send("b", 1, until=0.48, latest=100.0)
    assert await bench.settle() == [["a2", "a3"]]
    assert await bench.end() == [["b0"]]
    assert await bench.end() == []
    assert (await ask).values == [0.0]
    await first


@story
async def test_what_has_begun_is_waited_for_until_the_latest_moment() -> None:
    bench = Bench()
    ask = bench.send("a", 3, until=0.0, latest=0.01)
    other = bench.send("b", 1, until=0.01, latest=0.02)
    assert await ask == Scores([None] * 3, {}, frozenset(range(3)))
    assert await other == Scores([None], {}, frozenset([0]))
    assert await bench.settle() == []
    assert bench.queue.scheduler.usage.requests == 0


@story
async def test_blocks_are_batches_of_their_own() -> None:
    bench = Bench()
    ask = bench.send("a", 5, blocks=[range(0, 3), range(3, 5)])
    other = bench.send("b", 1)
    assert await bench.settle() == [["a0", "a1", "a2"], ["a3", "a4"]]
    await bench.end()
    assert await bench.end() == [["b0"]]
    await bench.end()
    await other
    assert (await ask).values == [0.0, 1.0, 2.0, 3.0, 4.0]


@story
async def test_over_the_bounds_it_says_when_to_come_again() -> None:
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


@story
async def test_a_request_with_too_many_tokens_is_refused_when_they_are_counted() -> None:
    bench = Bench(QueueLimits(requests=100, documents=100, tokens=100, size_bytes=10**6))
    first = bench.send("a", 5, Client("a"))
    await bench.settle()
    with pytest.raises(Overloaded, match="The queue is full: 50 tokens"):
        await bench.send("b", 6, Client("b"))
    first.cancel()
    await bench.settle()
    alone = bench.send("b", 60)
    await bench.settle()
    assert bench.queue.scheduler.usage.tokens == 600
    alone.cancel()
    await bench.settle()


@story
async def test_a_closed_queue_takes_nobody_and_says_when_it_is_empty() -> None:
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
