"""Watch a running engine: one watcher per reason to replace it (crash, hang, errors, memory, reload)."""

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
    """Watch a ready engine until it must be replaced, and return why. `write` receives the state when the
    engine is checked and when it is ready again. `outgrown` counts the engines before it that needed a higher
    memory limit. `reload` is set when a reload is requested."""
    return await first(
        exited(child),
        unresponsive(child),
        hanging(child),
        failing(child, write),
        over_memory_limit(child, outgrown),
        reloaded(reload),
        unreachable(child),
    )


async def exited(child: EngineChild[EngineT]) -> Loss:
    """Return when the process has exited."""
    return await child.ended()


async def unresponsive(child: EngineChild[EngineT]) -> Loss:
    """Return after three unanswered health polls in a row."""
    poll_s, misses = child.plan.watch.health_poll_s, 0
    while misses < _MOST_MISSES:
        await asyncio.sleep(poll_s)
        misses = 0 if await child.engine.is_ready(poll_s) else misses + 1
    text = child.describe(f"did not answer {misses} health polls in a row and was replaced. Try again.")
    return Loss(EngineUnavailable(text), "hang", kill=True)


async def hanging(child: EngineChild[EngineT]) -> Loss:
    """Return when a request passed its deadline and the engine's compute loop made no progress within the
    margin after it. (Health polls can't show this: other threads may answer them.)"""
    margin_s = child.plan.watch.hang_margin_s
    while True:
        await child.suspected.wait()
        child.suspected.clear()
        if not await child.engine.shows_work(margin_s):
            text = child.describe(
                f"made no progress for {margin_s:g} s after a request's deadline and was replaced. Try again."
            )
            return Loss(EngineUnavailable(text), "hang", kill=True)


async def failing(child: EngineChild[EngineT], write: Callable[[State[EngineT]], None]) -> Loss:
    """Return when three calls in a row ended in errors. After the first error the engine is checked: no
    request uses it until it has scored a known pair."""
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
                    f"The engine for {child.plan.file_name} returned {child.errors} errors in a row and was "
                    "replaced. Try again. The errors are in rerankd's log."
                )
                return Loss(EngineUnavailable(text), "useless" if fails_on_known else "errors")
        write(Ready(child.engine, child.process.pid))


async def _scores(child: EngineChild[EngineT]) -> bool:
    """Whether the engine scores a known pair."""
    try:
        async with asyncio.timeout(child.plan.start_timeout_s):
            await child.plan.probe(child.engine)
    except TimeoutError:
        child.suspected.set()
        await forever()  # the watcher `hanging` takes over
    except EngineUnavailable:
        await forever()  # it is exiting, and the watcher `exited` takes over
    except RerankdError as error:
        child.errors += 1
        _log.warning("the engine for %s failed on a known pair: %s", child.plan.file_name, error.message)
        return False
    return True


async def over_memory_limit(child: EngineChild[EngineT], outgrown: int) -> Loss:
    """Return when the engine's RSS exceeds its memory limit."""
    most, by = child.plan.watch.max_engine_memory, "max_engine_memory"
    started = time.monotonic()
    if most is None:
        held = await asyncio.to_thread(processes.memory_bytes, child.process.pid)
        if held is None:
            await forever()
        assert held is not None
        most = memory_limit.limit_bytes(held, child.plan.weights_bytes, outgrown)
        by = f"its limit of {most / 2**20:.0f} MiB (it used {held / 2**20:.0f} MiB after loading)"
    while True:
        held = await asyncio.to_thread(processes.memory_bytes, child.process.pid)
        if held is not None and held > most:
            needs_more = time.monotonic() - started < memory_limit.LEAK_AFTER_S
            text = f"The engine used {held / 2**20:.0f} MiB, more than {by}, and is replaced"
            _log.warning("%s between requests", text)
            return Loss(EngineUnavailable(f"{text}. Try again."), "requested", needs_more=needs_more)
        await asyncio.sleep(child.plan.watch.health_poll_s)


async def reloaded(reload: asyncio.Event) -> Loss:
    """Return when a reload is requested."""
    await reload.wait()
    _log.info("a reload was requested: the engine is replaced between requests")
    return Loss(EngineUnavailable("The engine is being replaced. Try again."), "requested")


async def unreachable(child: EngineChild[EngineT]) -> Loss:
    """Return when the engine's socket was removed, by logind at logout or by a program that cleans /tmp. Open
    connections, and so the health polls, still work then, but no new connection can be opened."""
    while child.socket.exists():
        child.unreachable.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.unreachable.wait(), child.plan.watch.health_poll_s)
    text = f"The engine's socket {child.socket} was removed by another program. The engine is replaced"
    _log.warning("%s between requests", text)
    return Loss(EngineUnavailable(f"{text}. Try again."), "requested")
