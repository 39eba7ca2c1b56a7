"""systemd: readiness notification (`Type=notify`), watchdog, and socket activation.

The protocols are sd_notify(3), datagrams to the socket in NOTIFY_SOCKET, and sd_listen_fds(3), LISTEN_FDS
open descriptors from 3 on. Without systemd, nothing is sent and no sockets are passed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

from rerankd.errors import AddressInUse

_FIRST_DESCRIPTOR = 3


class Notifier:
    """Sends notifications to the service manager. `watchdog_s` is the watchdog timeout, or None without
    one."""

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        # A leading @ means the zero byte of an abstract socket.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_s = watchdog_s

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> Notifier:
        """Create a notifier from `environ`, and remove its variables, which are not for child processes."""
        address = environ.pop("NOTIFY_SOCKET", "")
        every, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        is_ours = every.isdigit() and int(every) > 0 and pid in ("", str(os.getpid()))
        return cls(address, int(every) / 1e6 if address and is_ours else None)

    def __bool__(self) -> bool:
        return bool(self._address)

    def send(self, *assignments: str) -> None:
        """Send NAME=VALUE assignments. Errors are ignored: the service works without the manager."""
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(assignments).encode(), self._address)

    def reloading(self) -> None:
        """Notify that a reload has started; READY=1 ends it."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def passed_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """Return the listening sockets that the service manager passed to this process, if any.

    Removes their variables from `environ`. Raises AddressInUse if a descriptor is not a listening socket.
    """
    count, pid = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    found = []
    for descriptor in range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count)):
        try:
            sock = socket.socket(fileno=descriptor)
            listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if sock.type != socket.SOCK_STREAM or not listens:
                raise OSError("it is not a listening stream socket")
        except OSError as error:
            raise AddressInUse(
                f"rerankd can't listen on the descriptor {descriptor} from the service manager: "
                f"{error.strerror or error}. Use ListenStream= and Accept=no in the socket unit."
            ) from error
        os.set_inheritable(descriptor, False)
        sock.setblocking(False)
        found.append(sock)
    return found
