"""The socket to listen on; apart from the server, which takes half a second to import."""

from __future__ import annotations

import errno
import socket

from rerankd.errors import AddressInUse


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket on `host`:`port`. Raises AddressInUse where somebody else has it or there is no such
    address.

    It does not listen yet: whoever connects before the engine is ready is refused, and not kept waiting.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
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
