"""Connect to a Ray cluster, or run one on this machine."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import ray

from rerankd.errors import EngineUnavailable

# Requests, results and the slices of a job are small; texts of pairs do not go through it.
_OBJECT_STORE_BYTES = 100 * 2**20
_CONNECT_S = 5.0


@contextlib.contextmanager
def connected(address: str | None, *, is_quiet: bool = False) -> Iterator[None]:
    """Connect to a cluster, or run one on this machine meanwhile. `is_quiet`: Ray's C++ part, which writes to
    standard error what it thinks of Ray Data's actors, logs what is fatal only. Raises EngineUnavailable."""
    address = address or os.environ.get("RAY_ADDRESS")
    own = {} if address else {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    if address:
        _check_listening(address)
    if is_quiet:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        ray.init(address or "local", log_to_driver=False, logging_level="error", **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EngineUnavailable(
            f"Ray could not be reached at {address or 'this machine'}: {error}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Raise EngineUnavailable if nothing listens at HOST:PORT: Ray would try for minutes. Other addresses are
    left to Ray."""
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise EngineUnavailable(
            f"Ray could not be reached at {address}: {getattr(error, 'strerror', None) or error}."
        ) from None
