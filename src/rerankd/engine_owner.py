"""Whose engines they are: the process and the event loop that started them.

A forked process has a copy of the objects, but neither the threads nor the event loop that would ever answer:
a call there waits for ever. So each call looks where it is made.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Self

from rerankd.errors import Misuse


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, and an event loop in it."""

    pid: int
    loop: asyncio.AbstractEventLoop

    @classmethod
    def here(cls) -> Self:
        return cls(os.getpid(), asyncio.get_running_loop())

    @property
    def is_this_process(self) -> bool:
        return self.pid == os.getpid()

    def check(self) -> None:
        """Raise Misuse in another process, or on another event loop."""
        check_process(self.pid)
        if asyncio.get_running_loop() is not self.loop:
            ended = ", which has ended" if self.loop.is_closed() else ""
            raise Misuse(
                f"This Reranker was started on another event loop{ended}. Ask it there "
                "(asyncio.run_coroutine_threadsafe), start one on this loop, or use a SyncReranker, which "
                "threads may share."
            )


def check_process(pid: int) -> None:
    """Raise Misuse unless this process is the one that started the engines."""
    if pid != os.getpid():
        raise Misuse(
            f"This Reranker was started in process {pid}, and this is process {os.getpid()}: a forked "
            "process can't ask the engines of another. Start one in each process after the fork (gunicorn: "
            "in post_fork; multiprocessing: in the pool's initializer), or one server for all: rerankd serve."
        )
