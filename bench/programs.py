"""Shared by the benchmarks: random texts, and waiting for a program to listen."""

from __future__ import annotations

import random
import socket
import subprocess
import time
from collections.abc import Sequence


def text(vocabulary: Sequence[str], words: int, seed: str) -> str:
    """Return random words, reproducible by seed."""
    pick = random.Random(seed)
    return " ".join(pick.choice(vocabulary) for _ in range(words))


def wait_for_port(program: subprocess.Popen[bytes], port: int) -> None:
    """Wait until the program listens on a local port."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert program.poll() is None, "the program ended"
            time.sleep(0.01)
