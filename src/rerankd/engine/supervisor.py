"""Keeps one engine running: starts its child, waits until it is ready, starts it again when it dies.

    stopped -> starting -> ready -> (died) -> waiting -> starting ...
                  \\-> failed            any -> stopping -> stopped

One task is the only writer of the state; everybody else awaits `ensure_ready`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rerankd.engine import llama
from rerankd.engine.base import Engine, EngineSpec
from rerankd.engine.child import Child
from rerankd.engine.restart import End, GiveUp, decide
from rerankd.errors import EngineError, EngineStartFailed, EngineUnavailable, RerankdError

Phase = Literal["stopped", "starting", "ready", "waiting", "failed", "stopping"]
_FIRST_POLL_S = 0.02
_LONGEST_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class State:
    """What an engine is doing. `engine` is set when ready, `error` when failed or waiting."""

    phase: Phase
    engine: Engine | None = None
    error: RerankdError | None = None
    starts: int = 0
    pid: int | None = None


class Supervisor:
    """Owner of one engine and its child.

    `command` makes the child's command line for a socket path. `check` is run on each engine that has become
    ready, before anyone else gets it; what it raises makes the start a failed one.
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
        check: Callable[[Engine], Awaitable[None]] | None = None,
    ) -> None:
        self.spec = spec
        self.log = log
        self._command = command
        self._check = check
        self._run_dir = run_dir
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._state = State("stopped")
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        return self._state

    def start(self) -> None:
        """Begin; returns at once. Must be called on the thread of the event loop that stays (see
        child.py)."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"supervise {self.spec.name}")

    async def ensure_ready(self, *, after: Engine | None = None) -> Engine:
        """Wait for a ready engine, another one than `after` (which has failed its caller), and return it.

        Raises what made the engine fail, or EngineUnavailable once it is stopped.
        """
        while True:
            state = self._state
            if state.engine is not None and state.engine is not after:
                return state.engine
            if state.phase == "failed" and state.error is not None:
                raise state.error
            if state.phase in ("stopped", "stopping") and self._task is None:
                raise EngineUnavailable("The engine is stopped.")
            await self._changed.wait()

    async def stop(self) -> None:
        """Stop the engine and its child; safe to call again."""
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.wait([task])
        self._set(State("stopped", starts=self._state.starts))

    def _set(self, state: State) -> None:
        self._state = state
        self._changed.set()
        self._changed = asyncio.Event()

    async def _run(self) -> None:
        ends: list[End] = []
        starts = 0
        while True:
            starts += 1
            self._set(State("starting", starts=starts))
            ready_at: float | None = None
            error: RerankdError
            socket = self._run_dir / f"{starts}.sock"
            try:
                child = await Child.start(self._command(socket), self.log)
                client = llama.LlamaClient(socket)
                try:
                    engine = await self._become_ready(child, client)
                    ready_at = time.monotonic()
                    self._set(State("ready", engine=engine, starts=starts, pid=child.pid))
                    code = await child.wait()
                    error = EngineUnavailable(_death(self.spec, child, code))
                finally:
                    if self._state.phase == "ready":
                        self._set(State("stopping", starts=starts))
                    await client.close()
                    await child.stop(self._stop_timeout_s)
                    socket.unlink(missing_ok=True)
            except RerankdError as failure:
                error = failure
            ends.append(End(time.monotonic() - ready_at if ready_at is not None else 0.0))
            decision = decide(ends)
            # A model that never loaded won't load the second time either.
            never_ready = starts == 1 and ready_at is None
            if never_ready or isinstance(decision, GiveUp):
                self._set(State("failed", error=error, starts=starts))
                return
            self._set(State("waiting", error=error, starts=starts))
            await asyncio.sleep(decision.after_s)

    async def _become_ready(self, child: Child, client: llama.LlamaClient) -> Engine:
        deadline = time.monotonic() + self._start_timeout_s
        poll_s = _FIRST_POLL_S
        while not await client.is_ready():
            if child.exit_code is not None:
                code = await child.wait()
                raise EngineStartFailed(_death(self.spec, child, code), retry_after_s=None)
            if time.monotonic() > deadline:
                raise EngineStartFailed(
                    f"The engine did not load {self.spec.path.name} within {self._start_timeout_s:g} s. "
                    f"Raise start_timeout_s if the disk is slow.\n{_quote(child)}",
                    retry_after_s=None,
                )
            await asyncio.sleep(poll_s)
            poll_s = min(poll_s * 1.5, _LONGEST_POLL_S)
        engine = llama.KINDS[self.spec.scoring.way](self.spec, client)
        try:
            await engine.prepare()
            if self._check is not None:
                await self._check(engine)
        except EngineError:
            if child.exit_code is not None:
                raise EngineStartFailed(_death(self.spec, child, child.exit_code)) from None
            raise
        return engine


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
