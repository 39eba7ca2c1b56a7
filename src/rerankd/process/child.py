"""One child process in its own process group, with its output drained and its exit guaranteed.

The output goes to a ring buffer of the last lines, which errors quote, and to a log file. A child blocks if
64 KiB in its pipe stay unread, so the output is read to its end even if the log can't be written. The child
dies with this process (see die_with_parent.py): even SIGKILL of the service leaves no engine running.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from rerankd.errors import EngineStartFailed
from rerankd.files import append_log
from rerankd.process import failure_reasons

_RING_LINES = 200
_LAST_OUTPUT_S = 1.0
_DIE_WITH_PARENT = Path(__file__).with_name("die_with_parent.py")


def die_with_parent(argv: Sequence[str]) -> list[str]:
    """Return the command line that runs `argv` so that it dies with this process (see die_with_parent.py)."""
    return [sys.executable, "-I", "-S", str(_DIE_WITH_PARENT), str(os.getpid()), *argv]


class Running(Protocol):
    """The methods of an engine's client that its supervisor calls, whatever the engine computes."""

    async def is_ready(self, timeout_s: float = 2.0) -> bool:
        """Whether the engine answers health polls and has loaded its model."""

    async def shows_work(self, within_s: float) -> bool:
        """Whether the engine's compute loop makes progress within `within_s` seconds."""

    async def prepare(self) -> None:
        """Run one-time initialisation after the engine is ready, before the first score."""

    async def close(self) -> None:
        """Close the connection; later calls raise EngineUnavailable."""


EngineT = TypeVar("EngineT", bound=Running)


@dataclass(frozen=True, slots=True)
class Launch(Generic[EngineT]):
    """How to start a child, and how to connect to its socket. The variables of `environment` are added to
    those of this process, which take precedence. `advice` is the next step for errors about the engine."""

    argv: Sequence[str]
    connect: Callable[[Path], EngineT]
    environment: Mapping[str, str] = field(default_factory=dict)
    advice: failure_reasons.Advice = field(default_factory=dict)

    def within(self, environment: Mapping[str, str]) -> Launch[EngineT]:
        """The same with more variables."""
        return replace(self, environment={**self.environment, **environment})


class Child:
    """A running child process. Call `start` on the thread of the event loop: the child dies with that
    thread."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log
        self._ring: deque[str] = deque(maxlen=_RING_LINES)
        self._drain = asyncio.create_task(self._read_output(), name=f"drain {process.pid}")

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        log: Path,
        environ: Mapping[str, str] | None = None,
        advice: failure_reasons.Advice | None = None,
    ) -> Child:
        """Run `argv`; with `environ` None, in the environment of this process. Raises EngineStartFailed if
        the program does not exist or the system can't start it."""
        if not os.access(argv[0], os.X_OK):
            step = (advice or {}).get(failure_reasons.NO_PROGRAM, "")
            text = f"The engine {argv[0]} does not exist or is not executable. {step}"
            raise EngineStartFailed(text.rstrip())
        loop = asyncio.get_running_loop()
        streams = _Streams(limit=2**20, loop=loop)
        try:
            transport, _ = await loop.subprocess_exec(
                lambda: streams,
                *die_with_parent(argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=environ,
                start_new_session=True,
            )
        except (OSError, RuntimeError) as error:
            streams.is_given_up = True
            raise EngineStartFailed(failure_reasons.not_started(argv[0], error)) from error
        return cls(asyncio.subprocess.Process(transport, streams, loop), log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code, None while the child runs, and negative if a signal ended it."""
        return self._process.returncode

    def lines(self) -> list[str]:
        """Return the last lines of output, up to 200."""
        return list(self._ring)

    async def wait(self) -> int:
        """Wait until the child has exited and its output is read. Returns the exit code."""
        code = await self._process.wait()
        # A grandchild may keep the pipe open. Then the last lines are those that arrived so far.
        await asyncio.wait([self._drain], timeout=_LAST_OUTPUT_S)
        return code

    def kill(self) -> None:
        """Send SIGKILL to the process group, without waiting."""
        self._signal(signal.SIGKILL)

    async def stop(self, grace_s: float) -> None:
        """Send SIGTERM to the process group, and SIGKILL after `grace_s` seconds. Safe to call again."""
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), grace_s)
        except TimeoutError:
            self._signal(signal.SIGKILL)
        await self.wait()
        self._drain.cancel()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def _read_output(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        append_log(self._log, b"")
        while chunk := await self._process.stdout.read(65536):
            append_log(self._log, chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-4096:]
            self._ring.extend(line[:1000].decode(errors="replace") for line in lines[-_RING_LINES:])
        if rest:
            self._ring.append(rest.decode(errors="replace"))


class _Streams(asyncio.subprocess.SubprocessStreamProtocol):
    """The output streams of a child, which kill the child if asyncio fails to watch it. asyncio starts the
    child first, then a thread or a descriptor that watches it. If the system has none left, the child would
    run on unsupervised."""

    is_given_up = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.is_given_up:
            transport.close()  # kills the child
            with contextlib.suppress(subprocess.TimeoutExpired):
                transport.get_extra_info("subprocess").wait(_LAST_OUTPUT_S)
