"""Bind the listening socket, and compute how many connections may be open.

Separate from the server module, which takes 0.5 s to import.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rerankd.errors import AddressInUse

# File descriptors reserved for engines, logs and model files.
_RESERVED = 64
_BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """Return a TCP socket that listens on `host`:`port`.

    Clients can connect from now on; the server accepts their connections 0.5 s later. Raises AddressInUse if
    another process uses the port or the address does not exist.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except UnicodeError as error:  # of the codec for names, which have labels of 1 to 63 letters between dots
        raise AddressInUse(f"{host!r} is not a host name or an address. Choose another --host.") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"Port {port} on {host} is in use, perhaps by another rerankd. Stop the other process, or "
                f"choose another port with --port {port + 1 if port < 65535 else 0}."
            ) from error
        raise AddressInUse(
            f"rerankd can't listen on {host}:{port}: {error.strerror or error}. Choose another --host or "
            "--port."
        ) from error
    return sock


def url(sockets: Sequence[socket.socket]) -> str:
    """Return the URL of the first socket for people on this machine; for a UNIX socket its path."""
    return _url(sockets[0], dict.fromkeys(("127.0.0.1", "0.0.0.0", "::", "::1"), "localhost"))


def url_for_others(sockets: Sequence[socket.socket]) -> str:
    """Return the URL for programs, which may run on other machines if the socket accepts all addresses."""
    return _url(sockets[0], dict.fromkeys(("0.0.0.0", "::"), "THIS-MACHINE"))


def _url(sock: socket.socket, names: Mapping[str, str]) -> str:
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    shown = names.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The most open connections, and the most that the kernel queues before they are accepted."""

    most: int
    backlog: int


def connections_allowed(wanted: int | None) -> ConnectionLimits:
    """Compute the limits from the limit of open files, which is raised to the hard limit.

    The event loop accepts the whole backlog before it handles the first connection, so the backlog must fit
    too.
    """
    limit = _open_files()
    free = max(limit - _RESERVED, 16)
    backlog = min(max(free // 4, 8), _BACKLOG)
    return ConnectionLimits(min(free - backlog, wanted or free), backlog)


def _open_files() -> int:
    """Raise the limit of open files, often 1,024, to the hard limit, and return it."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        if most != resource.RLIM_INFINITY:
            return most
    return 2**20
