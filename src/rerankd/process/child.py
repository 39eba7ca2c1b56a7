"""One child process: its own process group, its output drained, its end certain.

The output goes to a ring of the last lines, which errors quote, and to a log file. A child whose pipe nobody
reads stops after 64 KiB, so it is read to its end whatever happens to the log. The child is tied to this
process (see die_with_parent.py): even SIGKILL of the service leaves nothing running.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from rerankd.errors import EngineStartFailed
from rerankd.process import failure_reasons

_RING_LINES = 200
_LOG_BYTES = 8 * 2**20
_LAST_OUTPUT_S = 1.0
_DIE_WITH_PARENT = Path(__file__).with_name("die_with_parent.py")


def die_with_parent(argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` tied to this process (see die_with_parent.py)."""
    return [sys.executable, "-I", "-S", str(_DIE_WITH_PARENT), str(os.getpid()), *argv]


class Running(Protocol):
    """What a supervisor asks of the engine behind a socket, whatever it computes."""

    async def is_ready(self, timeout_s: float = 2.0) -> bool:
        """Whether the child answers and has loaded its model."""

    async def shows_work(self, within_s: float) -> bool:
        """Whether the child's computing loop makes progress within `within_s`."""

    async def prepare(self) -> None:
        """One-time initialisation after the child is ready, before the first score."""

    async def close(self) -> None:
        """Close the connection; calls that come later raise EngineUnavailable."""


EngineT = TypeVar("EngineT", bound=Running)


@dataclass(frozen=True, slots=True)
class Launch(Generic[EngineT]):
    """How a child is started, and the engine behind its socket. `environment` is set beside that of this
    process, where a variable that the user has set wins. `advice` is for those whose engine went."""

    argv: Sequence[str]
    connect: Callable[[Path], EngineT]
    environment: Mapping[str, str] = field(default_factory=dict)
    advice: failure_reasons.Advice = field(default_factory=dict)


class Child:
    """A running child. Made by `start`, which must run on the thread of the event loop: the tie is to it."""

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
        """Run `argv`; `environ` None is this process's environment. Raises EngineStartFailed where there is
        no such program, or the system does not start it."""
        if not os.access(argv[0], os.X_OK):
            step = (advice or {}).get(failure_reasons.NO_PROGRAM, "")
            text = f"The engine {argv[0]} is not a program that can be run. {step}"
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
        """None while it runs; negative for the signal that ended it."""
        return self._process.returncode

    def lines(self) -> list[str]:
        """The last lines the child wrote, up to 200."""
        return list(self._ring)

    async def wait(self) -> int:
        """Wait for the end, with all output read; returns the exit code."""
        code = await self._process.wait()
        # A child of the child may hold the pipe open; then the last lines are what came so far.
        await asyncio.wait([self._drain], timeout=_LAST_OUTPUT_S)
        return code

    def kill(self) -> None:
        """SIGKILL to the group, without waiting."""
        self._signal(signal.SIGKILL)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM to the group, and SIGKILL after `grace_s` seconds. Safe to call again."""
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
        _append(self._log, b"")
        while chunk := await self._process.stdout.read(65536):
            _append(self._log, chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-4096:]
            self._ring.extend(line[:1000].decode(errors="replace") for line in lines[-_RING_LINES:])
        if rest:
            self._ring.append(rest.decode(errors="replace"))


class _Streams(asyncio.subprocess.SubprocessStreamProtocol):
    """asyncio's streams of a child. It starts the child first and then what watches it, a thread or a
    descriptor: where the system has none left, the child would run on, unknown to anybody."""

    is_given_up = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.is_given_up:
            transport.close()  # which kills it
            with contextlib.suppress(subprocess.TimeoutExpired):
                transport.get_extra_info("subprocess").wait(_LAST_OUTPUT_S)


def _append(log: Path, chunk: bytes) -> None:
    """Write to a log that keeps the current and the previous part, and that a full disk can't turn into an
    error. It is opened each time: logrotate moves it, and others remove it or its folder."""
    with contextlib.suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            os.replace(log, log.with_suffix(".log.1"))
        with open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as stream:
            stream.write(chunk)
