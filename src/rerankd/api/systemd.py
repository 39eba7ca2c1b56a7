"""What the service manager is told (systemd's `Type=notify`), and the sockets that it hands over.

The protocols are those of sd_notify(3) and sd_listen_fds(3): datagrams to the socket that NOTIFY_SOCKET
names, and open descriptors from 3 on, as many as LISTEN_FDS says. Without systemd nothing is sent, and there
are no such descriptors.
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
    """Tells the service manager. `watchdog_s` is how often it wants to hear, None for never."""

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        # A leading @ stands for the zero byte of an abstract socket.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_s = watchdog_s

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> Notifier:
        """The one that the environment names. Takes its names out of `environ`: they are not for children."""
        address = environ.pop("NOTIFY_SOCKET", "")
        every, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        is_ours = every.isdigit() and int(every) > 0 and pid in ("", str(os.getpid()))
        return cls(address, int(every) / 1e6 if address and is_ours else None)

    def __bool__(self) -> bool:
        return bool(self._address)

    def send(self, *assignments: str) -> None:
        """Send NAME=VALUE assignments. A manager that does not listen is no fault of the service."""
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(assignments).encode(), self._address)

    def reloading(self) -> None:
        """A reload has begun; READY=1 ends it."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def passed_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """The listening sockets that the service manager opened for this process; none where it did not. Takes
    their names out of `environ`. Raises AddressInUse where a descriptor is something else."""
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
                raise OSError("it is not a stream socket that listens")
        except OSError as error:
            raise AddressInUse(
                f"The service manager passed the descriptor {descriptor}, which rerankd can't serve on: "
                f"{error.strerror or error}. Use ListenStream= and Accept=no in the socket unit."
            ) from error
        os.set_inheritable(descriptor, False)
        sock.setblocking(False)
        found.append(sock)
    return found
