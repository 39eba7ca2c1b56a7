"""Notifications to systemd and the sockets that it passes, with a real notify socket and a real
descriptor."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from served import MODEL, raw_scores, right, service

import fake_engine
import support
from rerankd.api.systemd import Notifier, passed_sockets
from rerankd.errors import AddressInUse

# Most of these tests start an engine.
until = partial(support.until, timeout_s=60)


class Manager:
    """The manager's end of a notify socket. It records every assignment in order."""

    def __init__(self, address: str) -> None:
        self.said: list[tuple[float, str]] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while (data := self._sock.recv(65536)) != b"end":
            self.said += [(time.monotonic(), line) for line in data.decode().split("\n")]

    def lines(self, start: str) -> list[str]:
        return [line for _, line in list(self.said) if line.startswith(start)]

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"end", self._sock.getsockname())
        self._thread.join()
        self._sock.close()


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Manager]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@rerankd-test-{os.getpid()}"
    it = Manager(address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    yield it
    it.close()


def test_systemd_is_notified_of_each_phase(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    gate = tmp_path / "gate"
    flags = ("--load-gate", str(gate))
    with service(tmp_path, *flags, model=f"{MODEL},/no/such.gguf", wait=False) as it:
        until(lambda: manager.lines("STATUS=Starting."))
        until(lambda: any("starting: xlmr-head" in line for line in manager.lines("STATUS=")))
        assert manager.lines("EXTEND_TIMEOUT_USEC=")
        assert not manager.lines("READY=1")
        gate.touch()
        it.wait_up()
        until(lambda: manager.lines("READY=1"))
        assert manager.lines("STATUS=")[-1] == "STATUS=ready: xlmr-head; refused: such"
        beats = len(manager.lines("WATCHDOG=1"))
        until(lambda: len(manager.lines("WATCHDOG=1")) >= beats + 3)
        it.signal(signal.SIGHUP)
        until(lambda: len(manager.lines("READY=1")) == 2)
        (at,) = manager.lines("MONOTONIC_USEC=")
        assert 0 <= time.clock_gettime(time.CLOCK_MONOTONIC) - int(at.partition("=")[2]) / 1e6 < 60
        assert manager.lines("RELOADING=1")
        it.signal(signal.SIGTERM)
        assert it.ended() == 0
        until(lambda: manager.lines("STOPPING=1"))


def test_a_start_without_a_served_model_never_reports_ready(manager: Manager, tmp_path: Path) -> None:
    with service(tmp_path, model="/no/such.gguf", wait=False) as it:
        assert it.ended() == 3
        assert "rerankd: The file /no/such.gguf does not exist" in it.output
    assert any("does not exist" in line for line in manager.lines("STATUS="))
    assert not manager.lines("READY=1")


def test_the_watchdog_of_another_process_is_ignored() -> None:
    environ = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}
    notifier = Notifier.of(environ)
    assert notifier.watchdog_s is None and environ == {}
    notifier.send("READY=1")  # an absent listener is not an error


def test_descriptors_for_another_process_are_ignored() -> None:
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "x"}
    assert passed_sockets(environ) == [] and environ == {}


_SERVE = ("-m", "rerankd", "serve", str(MODEL))
_PASS = 'exec 3<&"$1"; shift; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'


@contextlib.contextmanager
def started_on(
    sock: socket.socket, folder: Path, program: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """`rerankd serve` on a passed descriptor, as from systemd; and its log."""
    log = folder / f"{time.monotonic_ns()}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["bash", "-c", _PASS, "-", str(sock.fileno()), sys.executable, *_SERVE],
            env=support.environment(folder, RERANKD_LLAMA_PATH=str(program)),
            pass_fds=[sock.fileno()],
            stderr=out,
        )
    try:
        yield process, log
    finally:
        process.kill()
        process.wait()


def ready(log: Path) -> str:
    """Wait for the startup message. Returns the address in it."""
    until(lambda: "API endpoint URL" in log.read_text())
    found = re.search(r"serves .+ at (\S+)", log.read_text())
    assert found
    return found[1]


def test_a_restart_on_a_passed_socket_refuses_no_connection(tmp_path: Path) -> None:
    program = fake_engine.install(tmp_path, "--delay-ms", "20")
    with socket.create_server(("127.0.0.1", 0), backlog=128) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/v1/rerank"
        wrong: list[object] = []
        count = 0
        over = threading.Event()

        def client(number: int) -> None:
            nonlocal count
            while not over.is_set():
                count += 1
                text = f"document {number} {count}"
                body = {"query": "q", "documents": [text], "raw_scores": True}
                try:  # a new connection each time, like curl
                    answer = httpx.post(url, json=body, timeout=60, trust_env=False)
                except httpx.HTTPError as error:
                    wrong.append(error)
                    continue
                if answer.status_code != 200 or raw_scores(answer) != right([text]):
                    wrong.append(answer.text)

        clients = [threading.Thread(target=client, args=[number]) for number in range(4)]
        with contextlib.ExitStack() as stack:
            first, log = stack.enter_context(started_on(sock, tmp_path, program))
            assert ready(log) == f"http://localhost:{sock.getsockname()[1]}"
            stack.callback(lambda: [thread.join() for thread in clients])
            stack.callback(over.set)
            for thread in clients:
                thread.start()
            until(lambda: count > 20)
            first.send_signal(signal.SIGTERM)
            assert first.wait(60) == 0
            second, log = stack.enter_context(started_on(sock, tmp_path, program))
            ready(log)
            after = count
            until(lambda: count > after + 20)
            over.set()
            for thread in clients:
                thread.join()
            second.send_signal(signal.SIGTERM)
            assert second.wait(60) == 0
    assert wrong == []


def test_a_unix_socket_may_be_passed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(path))
        sock.listen()
        with started_on(sock, tmp_path, fake_engine.install(tmp_path)) as (it, log):
            assert ready(log) == f"unix:{path}"
            with httpx.Client(
                transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost"
            ) as client:
                body = {"query": "q", "documents": ["a"], "raw_scores": True}
                assert raw_scores(client.post("/v1/rerank", json=body, timeout=60)) == right(["a"])
            it.send_signal(signal.SIGTERM)
            assert it.wait(60) == 0


def test_a_passed_descriptor_that_does_not_listen_is_named(tmp_path: Path) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock,
        started_on(sock, tmp_path, tmp_path) as (it, log),
    ):
        assert it.wait(60) == AddressInUse.exit_code
        assert "listen on the descriptor 3" in log.read_text()
