"""Keeps one engine running: starts its child, waits until it is ready, and replaces it when it must.

    stopped -> starting -> ready -> stopping -> waiting -> starting ...
                  \\-> failed -(reload)-> starting      any -> stopping -> stopped

One task is the only writer of the state; everybody else awaits `ensure_ready`, or holds a `lease` while it
asks the engine something. An engine is replaced for one of four reasons, each found by a watcher of its own:

- it died;
- it is silent: three health polls in a row were not answered;
- it is stuck: a request passed its deadline, and in the margin after it the engine's own loop has shown no
  sign of work. (`/health` is answered by other threads of a llama-server than the one that computes.);
- it holds more memory than it may, or a reload was asked for: then it is replaced when nobody holds a lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from rerankd.engine import llama, process, rundir
from rerankd.engine.base import Engine, EngineSpec
from rerankd.engine.child import Child
from rerankd.engine.restart import STABLE_AFTER_S, End, GiveUp, decide, recent
from rerankd.errors import EngineError, EngineStartFailed, EngineUnavailable, RerankdError

_log = logging.getLogger("rerankd.engine")

Phase = Literal["stopped", "starting", "ready", "waiting", "failed", "stopping"]
_FIRST_POLL_S = 0.02
_LONGEST_POLL_S = 0.25
_MOST_MISSES = 3
# A caller whose engine closed the connection learns within this time whether the engine has died.
_DEATH_NOTICE_S = 1.0
# Calls under way get so long to end before an engine is replaced all the same.
_LONGEST_LEASE_S = 60.0


@dataclass(frozen=True, slots=True)
class State:
    """What an engine is doing. `engine` is set when ready, `error` when failed or waiting, `until` (of the
    monotonic clock) when waiting. `starts` counts the children, `lost` those that went without being asked
    to."""

    phase: Phase
    engine: Engine | None = None
    error: RerankdError | None = None
    starts: int = 0
    lost: int = 0
    pid: int | None = None
    until: float = 0.0


@dataclass(frozen=True, slots=True)
class Watch:
    """When an engine is replaced: see the settings of these names."""

    health_poll_s: float = 2.0
    hang_margin_s: float = 30.0
    stable_after_s: float = STABLE_AFTER_S
    max_engine_memory: int | None = None


@dataclass(frozen=True, slots=True)
class _Loss:
    """Why an engine has to go; `kill` says that it won't listen to SIGTERM, `asked` that it did no wrong."""

    error: RerankdError
    kill: bool = False
    asked: bool = False


class Supervisor:
    """Owner of one engine and its child.

    `command` makes the child's command line for a socket path. `check` is run on each engine that has become
    ready, before anyone else gets it; what it raises makes the start a failed one. `pause` waits before a
    restart and `now` tells the time by which a life is long or short.
    """

    def __init__(
        self,
        spec: EngineSpec,
        command: Callable[[Path], Sequence[str]],
        *,
        run_dir: Path,
        log: Path,
        start_timeout_s: float,
        stop_timeout_s: float,
        watch: Watch | None = None,
        check: Callable[[Engine], Awaitable[None]] | None = None,
        now: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
    ) -> None:
        self.spec = spec
        self.log = log
        self._command = command
        self._check = check
        self._run_dir = run_dir
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._watch = watch or Watch()
        self._now = now
        self._pause = pause
        self._state = State("stopped")
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._child: Child | None = None
        self._suspected = asyncio.Event()
        self._reload = asyncio.Event()
        self._leases = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @property
    def state(self) -> State:
        return self._state

    def memory_bytes(self) -> int | None:
        """Memory of the engine's process; None where there is none, or it can't be told."""
        pid = self._state.pid
        return process.memory_bytes(pid) if pid is not None else None

    def start(self) -> None:
        """Begin; returns at once. Must be called on the thread of the event loop that stays (see
        child.py)."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"supervise {self.spec.name}")

    def reload(self) -> None:
        """Try again now: start a failed or waiting engine, replace a running one between requests."""
        self._reload.set()

    def suspect(self, engine: Engine) -> None:
        """Say that a call to `engine` was not answered in time; it is replaced if it is stuck."""
        if self._state.engine is engine:
            self._suspected.set()

    async def ensure_ready(self, *, after: Engine | None = None) -> Engine:
        """Wait for a ready engine, and return it. `after` is one that has failed its caller: if it does not
        turn out to be dead, it is returned again.

        Raises what made the engine fail, or EngineUnavailable once it is stopped.
        """
        notice = time.monotonic() + _DEATH_NOTICE_S
        while True:
            state = self._state
            if state.engine is not None and (state.engine is not after or time.monotonic() >= notice):
                return state.engine
            if state.phase == "failed" and state.error is not None:
                raise copy.copy(state.error)  # one for each: a raised error collects tracebacks
            if self._task is None:
                raise EngineUnavailable("The engine is stopped.")
            timeout_s = max(notice - time.monotonic(), 0.0) if state.engine is not None else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), timeout_s)

    @contextlib.asynccontextmanager
    async def lease(self, *, after: Engine | None = None) -> AsyncIterator[Engine]:
        """A ready engine (see ensure_ready), which is not replaced without need until it is given back."""
        engine = await self.ensure_ready(after=after)
        self._leases += 1
        self._unused.clear()
        try:
            yield engine
        finally:
            self._leases -= 1
            if self._leases == 0:
                self._unused.set()

    async def stop(self, *, at_once: bool = False) -> None:
        """Stop the engine and its child; safe to call again, and with `at_once` to cut an earlier call
        short."""
        if at_once:
            self._stop_timeout_s = 0.0
            if self._child is not None:
                self._child.kill()
        if self._task is not None:
            self._ending, self._task = self._task, None
            self._ending.cancel()
        if self._ending is not None:
            await asyncio.wait([self._ending])
        self._set("stopped")

    def _set(self, phase: Phase, **what: Any) -> None:
        lost = what.pop("lost", self._state.lost)
        starts = what.pop("starts", self._state.starts)
        self._state = State(phase, starts=starts, lost=lost, **what)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _run(self) -> None:
        try:
            await self._live()
        except Exception as error:  # the crash boundary of this task
            _log.exception("the supervisor of %s failed for an unexpected reason", self.spec.name)
            self._set("failed", error=EngineUnavailable(f"rerankd failed to watch its engine: {error!r}."))

    async def _live(self) -> None:
        ends: list[End] = []
        while True:
            loss, ready_for_s = await self._one_life()
            if loss.asked:
                continue
            ends = [*recent(ends, self._watch.stable_after_s), End(ready_for_s or 0.0)]
            decision = decide(ends, self._watch.stable_after_s)
            lost = self._state.lost + 1
            # A model that never loaded won't load the second time either.
            never_ready = self._state.starts == 1 and ready_for_s is None
            if never_ready or isinstance(decision, GiveUp):
                error = loss.error if never_ready else _final(loss.error)
                _log.error("%s", error.message)
                self._set("failed", error=error, lost=lost)
                await self._reload.wait()
                ends = []
            else:
                _log.warning("%s\nIt is started again in %g s.", loss.error.message, decision.after_s)
                self._set("waiting", error=loss.error, lost=lost, until=time.monotonic() + decision.after_s)
                await _first(self._pause(decision.after_s), self._reload.wait())
            self._reload.clear()

    async def _one_life(self) -> tuple[_Loss, float | None]:
        """Start a child, and watch it until it has to go. Returns why, and for how long it was ready, if it
        ever was."""
        starts = self._state.starts + 1
        self._set("starting", starts=starts)
        socket = self._run_dir / f"{secrets.token_hex(3)}.sock"
        try:
            child = self._child = await Child.start(self._command(socket), self.log)
        except RerankdError as error:
            return _Loss(error), None
        client = llama.LlamaClient(socket)
        note = rundir.note(self._run_dir, child.pid)
        ready_at: float | None = None
        loss = _Loss(EngineUnavailable("The engine is stopped."))
        try:
            engine = await self._become_ready(child, client)
            ready_at = self._now()
            self._suspected.clear()
            self._reload.clear()
            self._set("ready", engine=engine, pid=child.pid)
            loss = await _first(
                self._until_dead(child),
                self._until_silent(child, client),
                self._until_stuck(child, client),
                self._until_grown(child),
                self._until_asked(),
            )
        except RerankdError as error:
            loss = _Loss(error)
        finally:
            self._set("stopping")
            if loss.asked:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._unused.wait(), _LONGEST_LEASE_S)
            await child.stop(0.0 if loss.kill else self._stop_timeout_s)
            await client.close()
            socket.unlink(missing_ok=True)
            note.unlink(missing_ok=True)
            self._child = None
        return loss, self._now() - ready_at if ready_at is not None else None

    async def _until_dead(self, child: Child) -> _Loss:
        return _Loss(EngineUnavailable(_death(self.spec, child, await child.wait())))

    async def _until_silent(self, child: Child, client: llama.LlamaClient) -> _Loss:
        misses = 0
        while misses < _MOST_MISSES:
            await asyncio.sleep(self._watch.health_poll_s)
            misses = 0 if await client.is_ready(self._watch.health_poll_s) else misses + 1
        return _Loss(
            EngineUnavailable(
                f"The engine for {self.spec.path.name} did not answer {misses} health polls in a row and "
                f"was replaced; try again.\n{_quote(child)}"
            ),
            kill=True,
        )

    async def _until_stuck(self, child: Child, client: llama.LlamaClient) -> _Loss:
        while True:
            await self._suspected.wait()
            self._suspected.clear()
            if not await client.shows_work(self._watch.hang_margin_s):
                return _Loss(
                    EngineUnavailable(
                        f"The engine for {self.spec.path.name} did no work for "
                        f"{self._watch.hang_margin_s:g} s after a request's deadline and was replaced; try "
                        f"again.\n{_quote(child)}"
                    ),
                    kill=True,
                )

    async def _until_grown(self, child: Child) -> _Loss:
        most = self._watch.max_engine_memory
        if most is None:
            await asyncio.Event().wait()
        assert most is not None
        while True:
            held = await asyncio.to_thread(process.memory_bytes, child.pid)
            if held is not None and held > most:
                text = f"The engine held {held / 2**20:.0f} MiB, more than max_engine_memory, and is replaced"
                _log.warning("%s between requests", text)
                return _Loss(EngineUnavailable(f"{text}; try again."), asked=True)
            await asyncio.sleep(self._watch.health_poll_s)

    async def _until_asked(self) -> _Loss:
        await self._reload.wait()
        _log.info("a reload was asked for: the engine is replaced between requests")
        return _Loss(EngineUnavailable("The engine is being replaced; try again."), asked=True)

    async def _become_ready(self, child: Child, client: llama.LlamaClient) -> Engine:
        try:
            async with asyncio.timeout(self._start_timeout_s):
                return await self._load(child, client)
        except TimeoutError:
            raise EngineStartFailed(
                f"The engine did not load {self.spec.path.name} within {self._start_timeout_s:g} s. "
                f"Raise start_timeout_s if the disk is slow.\n{_quote(child)}",
                retry_after_s=None,
            ) from None

    async def _load(self, child: Child, client: llama.LlamaClient) -> Engine:
        poll_s = _FIRST_POLL_S
        while not await client.is_ready():
            if child.exit_code is not None:
                code = await child.wait()
                raise EngineStartFailed(_death(self.spec, child, code), retry_after_s=None)
            await asyncio.sleep(poll_s)
            poll_s = min(poll_s * 1.5, _LONGEST_POLL_S)
        engine = llama.KINDS[self.spec.scoring.way](self.spec, client)
        try:
            await engine.prepare()
            if self._check is not None:
                await self._check(engine)
        except EngineError as error:
            if isinstance(error, EngineUnavailable):
                with contextlib.suppress(TimeoutError):
                    code = await asyncio.wait_for(child.wait(), _DEATH_NOTICE_S)
                    raise EngineStartFailed(_death(self.spec, child, code)) from None
            raise
        self._check_memory(child)
        return engine

    def _check_memory(self, child: Child) -> None:
        """Refuse a limit that no engine of this model can keep: it would be replaced for ever."""
        most, held = self._watch.max_engine_memory, process.memory_bytes(child.pid)
        if most is not None and held is not None and held > most:
            raise EngineStartFailed(
                f"The engine for {self.spec.path.name} holds {held / 2**20:.0f} MiB when it has just loaded, "
                f"more than max_engine_memory allows ({most / 2**20:.0f} MiB). Raise it, or: {_LESS_MEMORY}",
                retry_after_s=None,
            )


T = TypeVar("T")


async def _first(*ways: Coroutine[Any, Any, T]) -> T:
    """The result of the first of `ways` to end (the earliest in order, where several have); the others are
    cancelled."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task.done()).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _final(error: RerankdError) -> RerankdError:
    """The error of an engine that is not started again by itself: what happened, and what to do."""
    if isinstance(error, EngineUnavailable):
        return EngineStartFailed(f"{error.message}\n{_GAVE_UP}", retry_after_s=_RETRY_FAILED_S)
    return error


_GAVE_UP = (
    "It is not started again by itself: mend the cause, then send rerankd SIGHUP or "
    "POST /v1/models/NAME/reload."
)
# Nothing changes until somebody does something.
_RETRY_FAILED_S = 60
_LESS_MEMORY = "Take a smaller quantisation or lower scoring.window."
_NEWER = "This llama-server does not know a flag that rerankd uses: take a newer one."
_SIGNS = (
    ("unknown model architecture", "This engine is too old for this model: use a newer llama.cpp."),
    ("failed to allocate", "It needs more memory than there is. " + _LESS_MEMORY),
    ("out of memory", "It needs more memory than there is. " + _LESS_MEMORY),
    ("error: argument", _NEWER),
    ("invalid argument", _NEWER),
)
_SIGNALS = {
    -4: "It met an instruction that this CPU does not have: build llama.cpp for this machine.",
    -9: "It was killed, most likely because memory ran out. " + _LESS_MEMORY,
    -11: "It crashed: the file may be damaged, or the engine is broken on this machine.",
}


def _death(spec: EngineSpec, child: Child, code: int) -> str:
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    output = child.tail(200).lower()
    advice = next((text for sign, text in _SIGNS if sign in output), _SIGNALS.get(code, ""))
    return f"The engine for {spec.path.name} {how}. {advice}\n{_quote(child)}"


def _quote(child: Child) -> str:
    lines = child.tail().splitlines()
    return "Its last lines:\n" + "\n".join(f"  | {line}" for line in lines) if lines else "It wrote nothing."
