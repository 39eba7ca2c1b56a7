"""Check that engines are used only in the process and on the event loop that started them.

A forked process has copies of the objects, but not the threads and the event loop that serve them, so a call
there would wait forever. Therefore each call is checked.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Self

from rerankd.errors import Misuse


@dataclass(frozen=True, slots=True)
class Owner:
    """A process and an event loop in it."""

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
                f"This Reranker was started on another event loop{ended}. Call it on that loop "
                "(asyncio.run_coroutine_threadsafe), start another Reranker on this loop, or use a "
                "SyncReranker, which threads can share."
            )


def check_process(pid: int) -> None:
    """Raise Misuse if another process started the engines."""
    if pid != os.getpid():
        raise Misuse(
            f"This Reranker was started in process {pid}, but this is process {os.getpid()}. A forked "
            "process can't use the engines of its parent. Start a Reranker in each process after the fork "
            "(gunicorn: in post_fork; multiprocessing: in the pool's initializer), or one server for all: "
            "rerankd serve."
        )
