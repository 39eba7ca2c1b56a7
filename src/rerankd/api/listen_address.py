"""The sockets to listen on; apart from the server, which takes half a second to import."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rerankd.errors import AddressInUse

# Descriptors for engines, logs, model files and the like.
_RESERVED = 64
_BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket on `host`:`port` that listens. Raises AddressInUse where somebody else has it or there is
    no such address.

    Who connects from now on waits for the server, which accepts half a second later.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"Port {port} on {host} is in use, perhaps by another rerankd. Stop that one, or choose "
                f"another port with --port {port + 1 if port < 65535 else 0}."
            ) from error
        raise AddressInUse(
            f"rerankd can't listen on {host}:{port}: {error.strerror or error}. Choose another --host or "
            "--port."
        ) from error
    return sock


def url(sockets: Sequence[socket.socket]) -> str:
    """The address of the first one, as people write it; of a UNIX socket its path."""
    return _url(sockets[0], dict.fromkeys(("127.0.0.1", "0.0.0.0", "::", "::1"), "localhost"))


def url_for_others(sockets: Sequence[socket.socket]) -> str:
    """The same for programs, which may run on other machines where all can connect."""
    return _url(sockets[0], dict.fromkeys(("0.0.0.0", "::"), "THIS-MACHINE"))


def _url(sock: socket.socket, names: Mapping[str, str]) -> str:
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    shown = names.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"


@dataclass(frozen=True, slots=True)
class Room:
    """How many connections may be open, and how many the system may keep for us before we look."""

    most: int
    backlog: int


def connections_allowed(wanted: int | None) -> Room:
    """The room for connections under the limit of open files, which is raised as far as this user may.

    The event loop accepts a whole backlog before it looks at the first of them, so all of it must fit, too.
    """
    limit = _open_files()
    free = max(limit - _RESERVED, 16)
    backlog = min(max(free // 4, 8), _BACKLOG)
    return Room(min(free - backlog, wanted or free), backlog)


def _open_files() -> int:
    """The limit of open files, often 1,024; raised to what this user may have."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        if most != resource.RLIM_INFINITY:
            return most
    return 2**20
