"""Connections that hold memory, are too many, half closed or malformed, over real sockets."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from served import Service, raw_scores, right, service

from support import until

MIB = 2**20


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with default settings, which must survive all tests."""
    with service(tmp_path_factory.mktemp("plain")) as it:
        yield it
        assert "Traceback" not in it.output
        assert it.get("/health").json()["engine"]["starts"] == 1


def connect(it: Service, client: str = "127.0.0.1") -> socket.socket:
    address = urlsplit(it.url)
    return socket.create_connection((address.hostname, address.port), 30, source_address=(client, 0))


def post(body: bytes, *headers: str, size_bytes: int | None = None) -> bytes:
    length = len(body) if size_bytes is None else size_bytes
    lines = ("POST /v1/rerank HTTP/1.1", "Host: localhost", f"Content-Length: {length}", *headers, "", "")
    return "\r\n".join(lines).encode() + body


def question(*documents: str, **more: object) -> bytes:
    return json.dumps({"query": "q", "documents": documents, "raw_scores": True, **more}).encode()


def answer(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One answer: its status, headers and body."""
    with client.makefile("rb") as stream:
        status = int(stream.readline().split()[1])
        while status == 100:
            assert stream.readline() == b"\r\n"
            status = int(stream.readline().split()[1])
        headers: dict[str, str] = {}
        while (line := stream.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, stream.read(int(headers["content-length"]))


# --- memory ---


def test_a_client_with_large_bodies_does_not_block_others(plain: Service) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            client = stack.enter_context(connect(plain))
            client.sendall(post(b'{"query": "', size_bytes=32 * MIB))
        until(lambda: plain.metric("rerankd_held_bytes") >= 32 * MIB)
        started = time.monotonic()
        # Small requests of the same client, and large ones of others.
        assert plain.rerank(["a"]).status_code == 200
        large = question(*["x" * 900_000] * 20)
        with connect(plain, "127.0.0.2") as other:
            other.sendall(post(large))
            assert answer(other)[0] == 200
        assert time.monotonic() - started < 10
        assert plain.metric("rerankd_held_bytes") == 32 * MIB
    until(lambda: plain.metric("rerankd_held_bytes") == 0)


def test_a_second_large_body_is_read_after_the_first(plain: Service) -> None:
    with connect(plain) as first, connect(plain) as second:
        first.sendall(post(b"{", size_bytes=32 * MIB))
        until(lambda: plain.metric("rerankd_held_bytes") >= 32 * MIB)
        body = question("x" * 900_000, "y" * 900_000)
        second.sendall(post(body))
        second.settimeout(0.3)
        with pytest.raises(TimeoutError):
            second.recv(1)
        first.close()
        second.settimeout(10)
        assert answer(second)[0] == 200


def test_a_body_that_waits_too_long_gets_429_with_retry_after(plain: Service) -> None:
    with connect(plain) as first, connect(plain) as second:
        first.sendall(post(b"{", size_bytes=32 * MIB))
        until(lambda: plain.metric("rerankd_held_bytes") >= 32 * MIB)
        second.sendall(post(b"{" * 31 * MIB))  # completely: the answer must not be lost in a reset
        status, headers, body = answer(second)
        assert status == 429 and "no memory became free" in json.loads(body)["message"]
        # The first request has a minute, of which the second has waited 10 s.
        assert 30 <= int(headers["retry-after"]) <= 50


@pytest.mark.parametrize("header", ["Host: evil.example", "Origin: http://evil.example"])
def test_a_foreign_origin_or_host_gets_its_answer_while_sending(plain: Service, header: str) -> None:
    lines = ["POST /v1/rerank HTTP/1.1", "Host: localhost", header, f"Content-Length: {31 * MIB}", "", ""]
    if header.startswith("Host"):
        del lines[1]
    with connect(plain) as client:
        client.sendall("\r\n".join(lines).encode() + b"x" * 31 * MIB)
        status, headers, _ = answer(client)
        assert (status, headers["connection"]) == (403, "close")


@pytest.mark.parametrize("key", ["wrong", "right"])
def test_a_client_refused_while_sending_gets_its_answer(key: str, tmp_path: Path) -> None:
    with service(tmp_path, api_key="right") as it, connect(it) as client:
        client.sendall(post(b"x" * (60 if key == "right" else 31) * MIB, f"x-api-key: {key}"))
        status, headers, _ = answer(client)
        assert (status, headers["connection"]) == (413 if key == "right" else 401, "close")


def memory(it: Service) -> int:
    return int(Path(f"/proc/{it.process.pid}/statm").read_text().split()[1]) * 4096


def test_unread_answers_are_counted_and_dropped(tmp_path: Path) -> None:
    # With the default, each would take a minute.
    with service(tmp_path, send_timeout_s=1) as it, contextlib.ExitStack() as stack:
        documents = [f"{number}" + "x" * 900_000 for number in range(12)]
        body = question(*documents, return_documents=True)
        assert it.rerank(documents).status_code == 200  # cached, so that the answers come one after another
        clients = []
        for _ in range(9):
            client = stack.enter_context(connect(it))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            clients.append(client)
        with ThreadPoolExecutor(len(clients)) as pool:
            list(pool.map(lambda client: client.sendall(post(body)), clients))
        until(lambda: it.metric("rerankd_held_bytes") > 9 * MIB)
        for client in clients:
            assert client.recv(12) == b"HTTP/1.1 200"
        until(lambda: it.metric("rerankd_held_bytes") == 0, 20)
        assert it.rerank(["a"]).status_code == 200
        assert "did not read its response" in it.output


def test_a_slow_reader_gets_all_of_its_answer(plain: Service) -> None:
    documents = [f"{number}" + "x" * 900_000 for number in range(20)]
    with connect(plain) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.sendall(post(question(*documents, return_documents=True)))
        until(lambda: plain.metric("rerankd_held_bytes") > 3 * MIB)
        status, _, body = answer(client)
        rows = json.loads(body)["results"]
        assert status == 200 and sorted(row["document"]["text"] for row in rows) == sorted(documents)
    until(lambda: plain.metric("rerankd_held_bytes") == 0)


# --- too many ---


def test_running_out_of_descriptors_does_not_flood_the_log(tmp_path: Path) -> None:
    with (
        service(tmp_path, under=("sh", "-c", 'ulimit -n 100 && exec "$@"', "sh")) as it,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(200):
            with contextlib.suppress(OSError):
                stack.enter_context(connect(it))
        time.sleep(1)  # long enough for a flood to show
        assert len(it.output) < 20_000
        assert "Traceback" not in it.output
        stack.close()
        until(lambda: _status(it) == 200)


def _status(it: Service) -> int:
    with contextlib.suppress(httpx.HTTPError):
        return it.rerank(["a"]).status_code
    return 0


def test_idle_connections_are_closed_for_new_ones(tmp_path: Path) -> None:
    with service(tmp_path, max_connections=5) as it, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(it.client()) for _ in range(20)]
        assert [client.get("/health").status_code for client in clients] == [200] * 20
        busy = [stack.enter_context(connect(it)) for _ in range(5)]
        for client in busy:
            client.sendall(post(b"{", size_bytes=10))
        until(lambda: _status(it) in (0, 503) and "5 connections are open and none is idle" in it.output, 30)


# --- client behaviour ---


def test_a_client_that_shuts_down_its_side_gets_its_answer(plain: Service) -> None:
    with connect(plain) as client:
        client.sendall(post(question("a", "b")))
        client.shutdown(socket.SHUT_WR)
        status, _, body = answer(client)
        assert status == 200 and len(json.loads(body)["results"]) == 2
        assert client.recv(1) == b""


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that takes 20 ms per document."""
    with service(tmp_path_factory.mktemp("slow"), "--delay-ms", "20", cache_entries=0) as it:
        yield it


DOCUMENTS = [f"document {number}" for number in range(50)]


def test_a_client_that_shuts_down_its_side_gets_a_slow_answer(slow: Service) -> None:
    with connect(slow) as client:
        client.sendall(post(question(*DOCUMENTS)))
        client.shutdown(socket.SHUT_WR)
        status, _, body = answer(client)
        scores = {row["index"]: row["relevance_score"] for row in json.loads(body)["results"]}
        assert (status, scores) == (200, right(DOCUMENTS))


def test_pythons_http_client_skips_interim_responses(slow: Service) -> None:
    import http.client

    address = urlsplit(slow.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=10)
    connection.request("POST", "/v1/rerank", question(*DOCUMENTS))
    connection.sock.shutdown(socket.SHUT_WR)
    assert connection.getresponse().status == 200
    connection.close()


def test_a_client_that_shuts_down_its_side_too_early_is_disconnected(plain: Service) -> None:
    with connect(plain) as client:
        client.sendall(post(b"{", size_bytes=10))
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b""


def test_the_header_timeout_does_not_limit_keep_alive(tmp_path: Path) -> None:
    # Headers may take 10 s by default; keep-alive has its own timeout.
    with service(tmp_path, header_timeout_s=0.2) as it, connect(it) as client:
        for _ in range(2):
            client.sendall(post(question("a")))
            assert answer(client)[0] == 200
            time.sleep(0.6)  # much longer than header_timeout_s
        client.sendall(b"GET /health HTTP/1.1\r\n")
        assert client.recv(1) == b""  # the second request has begun, and its headers are late


def test_an_idle_keep_alive_connection_is_closed(tmp_path: Path) -> None:
    with service(tmp_path, keep_alive_s=0.3) as it, connect(it) as client:
        client.sendall(post(question("a")))
        assert answer(client)[0] == 200
        assert client.recv(1) == b""


@pytest.mark.parametrize(
    "upgrade",
    [
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAA",
    ],
)
def test_an_upgrade_request_is_answered_normally_and_logs_nothing(upgrade: str, plain: Service) -> None:
    said = len(plain.lines)
    with connect(plain) as client:
        client.sendall(f"GET /health HTTP/1.1\r\nHost: localhost\r\n{upgrade}\r\n\r\n".encode())
        assert answer(client)[0] == 200
    assert plain.lines[said:] == []


@pytest.mark.parametrize(
    ("sent", "status", "says"),
    [
        (post(b"{}", "Transfer-Encoding: chunked"), 400, "both Content-Length and Transfer-Encoding"),
        (b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 40_000, 431, "larger than 32 KiB"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 431, "larger than 32 KiB"),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431, "larger than 32 KiB"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "The request is not valid HTTP/1.1: "),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "Missing mandatory Host"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "Only Transfer-Encoding"),
        (
            post(b"").replace(b"Content-Length: 0", b"Content-Length: -1"),
            400,
            "The request is not valid HTTP/1.1",
        ),
        (
            b"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            400,
            "not valid HTTP",
        ),
    ],
)
def test_an_invalid_http_request_gets_the_reason(sent: bytes, status: int, says: str, plain: Service) -> None:
    with connect(plain) as client:
        client.sendall(sent)
        got, headers, body = answer(client)
        assert (got, headers["connection"]) == (status, "close")
        assert says in json.loads(body)["message"]


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/v1/models", "/v1/models/xlmr-head", "/"])
def test_head_is_get_without_a_body(path: str, plain: Service) -> None:
    with plain.client() as client:
        head, get = client.head(path), client.get(path)
        assert head.status_code == get.status_code == 200
        assert head.content == b""
        assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize(
    ("charset", "status"),
    [
        ("utf-8", 200),
        ('"UTF-8"', 200),
        ("iso-8859-1", 200),
        ("windows-1252", 200),
        ("utf-16", 200),
        ("ascii", 400),
        ("rot13", 415),
        ("iso-8859-12", 415),
        ("x", 415),
    ],
)
def test_a_body_is_decoded_with_its_declared_charset(charset: str, status: int, plain: Service) -> None:
    body = {"query": "q", "documents": ["Käse", "a"], "raw_scores": True}
    text = json.dumps(body, ensure_ascii=False)
    data = text.encode("utf-8" if status != 200 else charset.strip('"'))
    with plain.client() as client:
        headers = {"content-type": f"application/json; charset={charset}"}
        got = client.post("/v1/rerank", content=data, headers=headers)
    assert got.status_code == status, got.text
    if status == 200:
        assert raw_scores(got) == right(["Käse", "a"])


# --- compressed bodies ---


def zipped(it: Service, data: bytes, encoding: str = "gzip") -> httpx.Response:
    with it.client() as client:
        return client.post("/v1/rerank", content=data, headers={"content-encoding": encoding})


@pytest.mark.parametrize("parts", [1, 3])
def test_a_gzip_body_is_read(parts: int, plain: Service) -> None:
    documents = [f"{number} " * 5000 for number in range(100)]
    data = question(*documents)
    step = len(data) // parts + 1
    packed = b"".join(gzip.compress(data[at : at + step]) for at in range(0, len(data), step))
    got = zipped(plain, packed)
    assert got.status_code == 200 and len(raw_scores(got)) == 100
    assert plain.metric("rerankd_held_bytes") == 0


def test_a_gzip_bomb_is_refused_with_limited_memory(plain: Service) -> None:
    before = memory(plain)
    bomb = gzip.compress(b'{"query": "' + b"x" * (400 * MIB))
    assert len(bomb) < MIB
    got = zipped(plain, bomb)
    assert got.status_code == 413 and "max_body_bytes" in got.json()["message"]
    assert memory(plain) - before < 100 * MIB


@pytest.mark.parametrize(
    ("data", "encoding", "status", "says"),
    [
        (b"{}", "gzip", 400, "not valid gzip"),
        (gzip.compress(question("a"), mtime=0)[:-9], "gzip", 400, "ends too early"),
        (b"", "gzip", 400, "ends too early"),
        (b"{}", "br", 415, "Content-Encoding: gzip"),
        (b"{}", "gzip, gzip", 415, "Content-Encoding: gzip"),
    ],
    ids=["no gzip", "cut short", "empty", "br", "twice"],
)
def test_an_invalid_compressed_body_gets_the_reason(
    data: bytes, encoding: str, status: int, says: str, plain: Service
) -> None:
    got = zipped(plain, data, encoding)
    assert got.status_code == status and says in got.json()["message"]


def test_many_clients_on_reused_connections_lose_none(plain: Service) -> None:
    def ask(number: int) -> list[int]:
        with plain.client() as client:
            return [client.post("/v1/rerank", content=question(f"{number}")).status_code for _ in range(10)]

    with ThreadPoolExecutor(8) as pool:
        assert [status for row in pool.map(ask, range(8)) for status in row] == [200] * 80
