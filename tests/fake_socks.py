"""A SOCKS5 proxy on loopback (RFC 1928), as far as TCP needs it, without authentication."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def socks_proxy() -> Iterator[tuple[int, list[str]]]:
    """Its port, and the addresses that it was asked for until now."""
    asked: list[str] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            client: socket.socket = self.request
            _, count = self._take(2)
            self._take(count)
            client.sendall(b"\5\0")
            _, _, _, kind = self._take(4)
            if kind == 1:
                host = socket.inet_ntoa(self._take(4))
            else:
                (length,) = self._take(1)
                host = self._take(length).decode()
            (port,) = struct.unpack("!H", self._take(2))
            asked.append(f"{host}:{port}")
            with socket.create_connection((host, port), 10) as server:
                client.sendall(b"\5\0\0\1" + bytes(6))
                back = threading.Thread(target=_copy, args=(server, client), daemon=True)
                back.start()
                _copy(client, server)
                back.join(10)

        def _take(self, count: int) -> bytes:
            data = b""
            while len(data) < count:
                part = self.request.recv(count - len(data))
                if not part:
                    raise ConnectionError("the client has gone")
                data += part
            return data

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

        def handle_error(self, *_: object) -> None:
            pass  # a client that has gone

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_address[1], asked
        finally:
            server.shutdown()
            thread.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
