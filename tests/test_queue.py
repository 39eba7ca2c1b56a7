"""The queue's policy as data, then the queue that tasks wait in."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.errors import Overloaded, Stopping
from rerankd.scoring.plan import IN_TURN, BatchPolicy
from rerankd.serving.queue import Bounds, FairQueue, Line, Place

WIDE = Bounds(requests=100, documents=10_000, size_bytes=10**9)
# The order of turns alone: an engine that takes all there is.
ENDLESS = replace(IN_TURN, at_engine=10**6, of_one=10**6)


def turns(line: Line, count: int) -> str:
    """Whose turn comes next, so many times."""
    return "".join(str(line.next()) for _ in range(count))


def join(line: Line, request: int, batches: int) -> None:
    assert line.join(request, documents=batches * 10, size_bytes=1) is None
    for _ in range(batches):
        line.want(request)


def test_requests_take_turns() -> None:
    line = Line(WIDE, ENDLESS)
    join(line, 1, 7)
    join(line, 2, 5)
    join(line, 3, 1)
    assert turns(line, 13) == "1111" + "2222" + "3" + "1211"
    assert line.next() is None


def test_who_comes_while_one_is_served_is_next() -> None:
    line = Line(WIDE, ENDLESS)
    join(line, 1, 9)
    assert turns(line, 5) == "11111"
    join(line, 2, 1)
    join(line, 3, 2)
    assert turns(line, 5) == "23311"


def test_who_comes_is_not_before_those_who_wait() -> None:
    line = Line(WIDE, ENDLESS)
    join(line, 1, 9)
    join(line, 2, 9)
    assert turns(line, 10) == "1111" + "2222" + "12"
    join(line, 3, 9)
    assert turns(line, 8) == "1" + "3333" + "213"


def test_a_stream_of_small_requests_does_not_starve_a_large_one() -> None:
    line = Line(WIDE, ENDLESS)
    join(line, 1, 50)
    served = []
    for small in range(2, 60):
        join(line, small, 1)
        served.append(line.next())
    # They come faster than they are served, so ever more of them share the turns; but only those
    # that came before its last turn, or right at it, go before it.
    at = [turn for turn, request in enumerate(served) if request == 1]
    assert len(at) > 5
    for before, after in itertools.pairwise(at):
        assert all(request is not None and request <= before + 3 for request in served[before:after])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), max_size=60))
def test_each_micro_batch_gets_one_turn_and_nobody_is_passed_for_ever(
    events: list[tuple[int, int]],
) -> None:
    line = Line(Bounds(100, 10**6, 10**9), ENDLESS)
    wanted: dict[int, int] = {}
    passed: dict[int, dict[int, int]] = {}
    for request, (gap, batches) in enumerate(events):
        join(line, request, batches)
        wanted[request] = batches
        passed[request] = {}
        for _ in range(gap):
            served = line.next()
            if served is None:
                break
            wanted[served] -= 1
            passed[served] = {}
            for other in wanted:
                if wanted[other] and other != served:
                    passed[other][served] = passed[other].get(served, 0) + 1
                    assert passed[other][served] <= IN_TURN.first_turns + 1
    while (served := line.next()) is not None:
        wanted[served] -= 1
    assert not any(wanted.values())


@pytest.mark.parametrize(
    ("bounds", "full"),
    [
        (Bounds(2, 1000, 1000), "2 requests"),
        (Bounds(100, 25, 1000), "20 documents"),
        (Bounds(100, 1000, 25), "0.0 MiB of text"),
    ],
)
def test_over_each_bound_nothing_is_taken(bounds: Bounds, full: str) -> None:
    line = Line(bounds)
    assert line.join(1, 10, 10) is None
    assert line.join(2, 10, 10) is None
    assert line.join(3, 10, 10) == full
    line.leave(1)
    assert line.join(3, 10, 10) is None


def test_a_request_larger_than_the_bounds_is_taken_alone() -> None:
    line = Line(Bounds(10, 10, 10))
    assert line.join(1, 500, 10**6) is None
    assert line.join(2, 1, 1) is not None
    line.leave(1)
    assert (line.documents, line.size_bytes, len(line)) == (0, 0, 0)


def test_retry_after_is_what_is_too_much_over_the_rate() -> None:
    line = Line(Bounds(10, 100, 10**6))
    line.join(1, 100, 1)
    line.was_busy(2.0)
    line.scored(1, 10)  # 5 a second
    assert line.rate == pytest.approx(5)
    assert line.documents == 90
    assert line.retry_after_s(30) == 4
    assert line.retry_after_s(10**6) == 120
    # Not the documents: then as long as the smallest request takes.
    assert line.retry_after_s(5) == 18


def test_the_rate_forgets() -> None:
    line = Line(WIDE)
    line.join(1, 10**6, 1)
    for _ in range(100):
        line.was_busy(1.0)
        line.scored(1, 100)
    for _ in range(200):
        line.was_busy(1.0)
        line.scored(1, 10)
    assert line.rate == pytest.approx(10, rel=0.3)


class Bench:
    """A queue whose engine finishes when the test says so."""

    def __init__(self, bounds: Bounds = WIDE, feed: BatchPolicy = IN_TURN) -> None:
        self.queue = FairQueue(Line(bounds, feed))
        self.at_engine: list[tuple[str, asyncio.Event]] = []
        self.done: list[str] = []

    def request(self, name: str, batches: int) -> asyncio.Task[None]:
        async def one(place: Place) -> None:
            async with place.turn(1):
                gate = asyncio.Event()
                self.at_engine.append((name, gate))
                try:
                    await gate.wait()
                finally:
                    self.at_engine.remove((name, gate))
            self.done.append(name)

        async def all_of_them() -> None:
            with self.queue.admit(batches, 1) as place:
                async with asyncio.TaskGroup() as group:
                    for _ in range(batches):
                        group.create_task(one(place))

        return asyncio.create_task(all_of_them())

    async def settle(self) -> str:
        """Who is with the engine, when all that can run has run."""
        for _ in range(20):
            await asyncio.sleep(0)
        return "".join(name for name, _ in self.at_engine)

    async def finish(self) -> str:
        """The engine finishes its oldest micro-batch; who is there then."""
        self.at_engine[0][1].set()
        return await self.settle()


def test_a_small_request_waits_for_what_is_with_the_engine_and_no_more() -> None:
    async def story() -> None:
        it = Bench()
        bulk = it.request("B", 50)
        assert await it.settle() == "B" * IN_TURN.at_engine
        for _ in range(IN_TURN.first_turns):
            assert await it.finish() == "BB"
        small = it.request("s", 1)
        assert await it.settle() == "BB"
        assert await it.finish() == "Bs"
        assert await it.finish() == "sB"
        assert await it.finish() == "BB"
        await small
        bulk.cancel()
        assert await it.settle() == ""
        assert len(it.queue.line) == 0

    asyncio.run(story())


def test_an_engine_that_shares_its_time_has_a_little_of_everybody() -> None:
    async def story() -> None:
        it = Bench(feed=BatchPolicy(texts=64, characters=1000, at_engine=5, of_one=2, first_turns=1))
        bulk = it.request("B", 50)
        assert await it.settle() == "BB"
        small = it.request("s", 1)
        assert await it.settle() == "BBs"
        other = it.request("o", 3)
        assert await it.settle() == "BBsoo"
        late = it.request("l", 1)
        assert await it.settle() == "BBsoo"
        assert await it.finish() == "BsooB"
        assert await it.finish() == "sooBl"
        for request in (small, other, late, bulk):
            request.cancel()
        assert await it.settle() == ""
        assert len(it.queue.line) == 0

    asyncio.run(story())


@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_request_that_is_dropped_frees_its_place(before: int) -> None:
    async def story() -> None:
        it = Bench()
        gone, stays = it.request("g", 9), it.request("s", 5)
        for _ in range(before):
            await it.settle()
            await it.finish()
        gone.cancel()
        assert await it.settle() == "ss"
        while not stays.done():
            await it.finish()
        assert it.done.count("s") == 5
        assert (it.queue.line.documents, it.queue.line.size_bytes, len(it.queue.line)) == (0, 0, 0)
        await it.queue.wait_empty()

    asyncio.run(story())


def test_a_turn_that_comes_to_a_task_that_was_just_cancelled_goes_on() -> None:
    async def story() -> None:
        it = Bench()
        first, second, third = it.request("1", 2), it.request("2", 1), it.request("3", 1)
        assert await it.settle() == "11"
        it.at_engine[0][1].set()
        second.cancel()  # at the same moment
        assert await it.settle() == "13"
        it.at_engine[1][1].set()
        it.at_engine[0][1].set()
        await asyncio.gather(first, third)
        assert await it.settle() == ""
        assert len(it.queue.line) == 0

    asyncio.run(story())


def test_over_the_bounds_it_says_when_to_come_again() -> None:
    async def story() -> None:
        it = Bench(Bounds(requests=100, documents=20, size_bytes=10**6))
        bulk = it.request("B", 20)
        await it.settle()
        with pytest.raises(Overloaded, match="20 documents under way") as caught, it.queue.admit(5, 1):
            pass
        assert caught.value.retry_after_s == 1
        bulk.cancel()
        await it.settle()
        with it.queue.admit(5, 1):
            pass

    asyncio.run(story())


def test_a_closed_queue_takes_nobody_and_says_when_it_is_empty() -> None:
    async def story() -> None:
        it = Bench()
        last = it.request("l", 1)
        await it.settle()
        it.queue.close()
        with pytest.raises(Stopping), it.queue.admit(1, 1):
            pass
        empty = asyncio.create_task(it.queue.wait_empty())
        await it.settle()
        assert not empty.done()
        await it.finish()
        await asyncio.gather(last, empty)

    asyncio.run(story())
