"""Memory shares of request and response bodies, with a fake clock."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from rerankd.api.memory_shares import SMALL_BYTES, Hold, Shares

MIB = 2**20
MOST = 256 * MIB


def shares(now: float = 0.0) -> Shares:
    return Shares(MOST, lambda: now)


def hold(client: str, until: float = 60.0) -> Hold:
    return Hold(client, until)


def test_a_second_large_body_of_a_client_waits_and_other_clients_do_not() -> None:
    it = shares()
    it.grow(hold("a"), 32 * MIB)
    assert not it.may_grow(hold("a"), 2 * MIB)
    assert it.may_grow(hold("a"), SMALL_BYTES)
    assert it.may_grow(hold("b"), 32 * MIB)


def test_large_bodies_leave_room_for_small_ones() -> None:
    it = shares()
    for client in "abcdef":
        assert it.may_grow(hold(client), 32 * MIB)
        it.grow(hold(client), 32 * MIB)
    assert not it.may_grow(hold("g"), 32 * MIB)
    for number in range(64):
        assert it.may_grow(hold(f"small {number}"), SMALL_BYTES)
        it.grow(hold(f"small {number}"), SMALL_BYTES)
    assert not it.may_grow(hold("h"), SMALL_BYTES)


def test_a_body_of_any_size_is_accepted_if_nothing_else_is_in_memory() -> None:
    assert shares().may_grow(hold("a"), 10 * MOST)


def test_a_waiting_body_is_accepted_when_memory_is_free_and_others_may_overtake() -> None:
    async def story() -> None:
        it = Shares(MOST, asyncio.get_running_loop().time)
        first = hold("a")
        it.grow(first, 32 * MIB)
        second = asyncio.ensure_future(it.take(hold("a"), 32 * MIB, 5))
        await asyncio.sleep(0)
        assert await it.take(hold("b"), 32 * MIB, 0)
        assert not second.done()
        it.release(first)
        assert await second
        assert it.size_bytes == 64 * MIB

    asyncio.run(story())


def test_a_timeout_or_disconnect_releases_the_memory() -> None:
    async def story() -> None:
        it = Shares(MOST, asyncio.get_running_loop().time)
        first = hold("a")
        it.grow(first, 32 * MIB)
        assert not await it.take(hold("a"), 32 * MIB, 0.001)
        gone = asyncio.ensure_future(it.take(hold("a"), 32 * MIB, 5))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        it.release(first)
        it.release(first)
        assert it.size_bytes == 0
        assert it.may_grow(hold("a"), 32 * MIB)

    asyncio.run(story())


def test_retry_after_is_when_enough_memory_is_released() -> None:
    it = shares(now=10.0)
    it.grow(hold("a", until=40.2), 32 * MIB)
    assert it.retry_after_s(hold("a"), 32 * MIB) == 31
    for number, client in enumerate("bcdef"):
        it.grow(hold(client, until=50.0 + number), 32 * MIB)
    assert it.retry_after_s(hold("g"), 32 * MIB) == 31
    assert it.retry_after_s(hold("g"), 64 * MIB) == 40


_events = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 40 * MIB), st.booleans()), min_size=1, max_size=60
)


@given(_events)
def test_memory_stays_within_the_limit_and_is_released(events: list[tuple[str, int, bool]]) -> None:
    it = Shares(64 * MIB, lambda: 0.0)
    holds: list[Hold] = []
    for client, size_bytes, ends in events:
        new = hold(client)
        if it.may_grow(new, size_bytes):
            it.grow(new, size_bytes)
            holds.append(new)
        assert it.size_bytes == sum(one.size_bytes for one in holds)
        assert it.size_bytes <= 64 * MIB
        if ends and holds:
            it.release(holds.pop(0))
    for one in holds:
        it.release(one)
    assert it.size_bytes == 0 and it.may_grow(hold("a"), 64 * MIB)
