"""Why an engine has to go: one watcher for each reason, which returns when there is that reason."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from rerankd import processes
from rerankd.errors import EngineUnavailable, RerankdError
from rerankd.process import memory_limit
from rerankd.process.child import EngineT
from rerankd.process.children import EngineChild, Loss
from rerankd.process.states import Checking, Ready, State
from rerankd.process.tasks import first, forever

_log = logging.getLogger("rerankd.engine")

_MOST_MISSES = 3
_MOST_ERRORS = 3


async def loss(
    child: EngineChild[EngineT], write: Callable[[State[EngineT]], None], outgrown: int, reload: asyncio.Event
) -> Loss:
    """Why an engine that is ready has to go, once it has to. `write` is told when it is checked, and ready
    again; `outgrown` counts the engines before it that reached their bound of memory soon; `reload` is set
    where another one is asked for."""
    return await first(
        dead(child),
        silent(child),
        stuck(child),
        useless(child, write),
        grown(child, outgrown),
        requested(reload),
        unreachable(child),
    )


async def dead(child: EngineChild[EngineT]) -> Loss:
    """Its process has ended."""
    return await child.ended()


async def silent(child: EngineChild[EngineT]) -> Loss:
    """Three health polls in a row were not answered."""
    poll_s, misses = child.plan.watch.health_poll_s, 0
    while misses < _MOST_MISSES:
        await asyncio.sleep(poll_s)
        misses = 0 if await child.engine.is_ready(poll_s) else misses + 1
    text = child.describe(f"did not answer {misses} health polls in a row and was replaced; try again.")
    return Loss(EngineUnavailable(text), "hang", kill=True)


async def stuck(child: EngineChild[EngineT]) -> Loss:
    """A request passed its deadline, and in the margin after it the engine's own loop has shown no sign of
    work. (An engine may answer health polls in other threads than the one that computes.)"""
    margin_s = child.plan.watch.hang_margin_s
    while True:
        await child.suspected.wait()
        child.suspected.clear()
        if not await child.engine.shows_work(margin_s):
            text = child.describe(
                f"did no work for {margin_s:g} s after a request's deadline and was replaced; try again."
            )
            return Loss(EngineUnavailable(text), "hang", kill=True)


async def useless(child: EngineChild[EngineT], write: Callable[[State[EngineT]], None]) -> Loss:
    """Three calls in a row ended in errors. After the first one it is checked, until it has scored a known
    pair."""
    while True:
        await child.erred.wait()
        write(Checking(child.process.pid))
        fails_on_known = False
        while child.erred.is_set():
            child.erred.clear()
            while child.errors < _MOST_ERRORS and (fails_on_known := not await _scores(child)):
                pass
            if child.errors >= _MOST_ERRORS:
                text = (
                    f"The engine for {child.plan.file_name} gave {child.errors} errors in a row instead of "
                    "scores and was replaced; try again. Its own words are in rerankd's log."
                )
                return Loss(EngineUnavailable(text), "useless" if fails_on_known else "errors")
        write(Ready(child.engine, child.process.pid))


async def _scores(child: EngineChild[EngineT]) -> bool:
    """Whether the engine scores a pair that is known to work."""
    try:
        async with asyncio.timeout(child.plan.start_timeout_s):
            await child.plan.probe(child.engine)
    except TimeoutError:
        child.suspected.set()
        await forever()  # another watcher finds out
    except EngineUnavailable:
        await forever()  # it is dying
    except RerankdError as error:
        child.errors += 1
        _log.warning("the engine for %s fails on a known pair: %s", child.plan.file_name, error.message)
        return False
    return True


async def grown(child: EngineChild[EngineT], outgrown: int) -> Loss:
    """It holds more memory than it may."""
    most, by = child.plan.watch.max_engine_memory, "max_engine_memory"
    started = time.monotonic()
    if most is None:
        held = await asyncio.to_thread(processes.memory_bytes, child.process.pid)
        if held is None:
            await forever()
        assert held is not None
        most = memory_limit.bound(held, child.plan.weights_bytes, outgrown)
        by = f"the {most / 2**20:.0f} MiB expected of one that held {held / 2**20:.0f} MiB at first"
    while True:
        held = await asyncio.to_thread(processes.memory_bytes, child.process.pid)
        if held is not None and held > most:
            needs_more = time.monotonic() - started < memory_limit.LONG_LIFE_S
            text = f"The engine held {held / 2**20:.0f} MiB, more than {by}, and is replaced"
            _log.warning("%s between requests", text)
            return Loss(EngineUnavailable(f"{text}; try again."), "requested", needs_more=needs_more)
        await asyncio.sleep(child.plan.watch.health_poll_s)


async def requested(reload: asyncio.Event) -> Loss:
    """Somebody wants another one."""
    await reload.wait()
    _log.info("a reload was asked for: the engine is replaced between requests")
    return Loss(EngineUnavailable("The engine is being replaced; try again."), "requested")


async def unreachable(child: EngineChild[EngineT]) -> Loss:
    """logind removes its user's folder at logout, and others clean /tmp: then open connections, and with
    them the health polls, work on, but no new one can be made."""
    while child.socket.exists():
        child.unreachable.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.unreachable.wait(), child.plan.watch.health_poll_s)
    text = f"The engine's socket {child.socket} was removed by another program; the engine is replaced"
    _log.warning("%s between requests", text)
    return Loss(EngineUnavailable(f"{text}; try again."), "requested")
