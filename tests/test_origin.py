"""Host and Origin checks: the pure rules, and real sockets with default settings."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from rerankd.api.origin import change_refusal, host_refusal, work_refusal
from rerankd.config import Settings

sys.path.append(str(Path(__file__).parent / "faults"))
from served import Service, service

MACHINE = socket.gethostname()
LOCAL = (
    "localhost",
    "LOCALHOST:11440",
    "localhost.",
    "rerankd.localhost",
    "127.0.0.1:1",
    "127.9.9.9",
    "[::1]:8",
)
CONTAINERS = ("host.docker.internal:11440", "host.containers.internal")
OWN = (
    *LOCAL,
    *CONTAINERS,
    "192.168.1.7",
    "[fe80::1%25eth0]:1",
    MACHINE,
    f"{MACHINE.partition('.')[0]}.local",
)
FOREIGN = (
    "evil.example",
    "localhost.evil.example",
    "evil.example:11440",
    "127.0.0.1.evil.example",
    "x",
    "[",
    "",
)
FOREIGN_TRICKS = (
    "user@localhost",
    "localhost@evil.example",
    "localhost evil",
    "evil.example/localhost",
    "a:b:c",
)


@pytest.mark.parametrize("host", OWN)
def test_on_loopback_names_of_this_machine_are_allowed(host: str) -> None:
    assert host_refusal(host, Settings(), "127.0.0.1", has_keys=False) is None


@pytest.mark.parametrize("host", (*FOREIGN, *FOREIGN_TRICKS))
def test_on_loopback_without_a_key_other_names_are_rejected(host: str) -> None:
    why = host_refusal(host, Settings(), "127.0.0.1", has_keys=False)
    assert why is not None and "allowed_hosts" in why and "api_key" in why and "nginx" in why


@pytest.mark.parametrize(
    ("listens", "server", "has_keys"),
    [
        ("127.0.0.1", "127.0.0.1", True),  # a page does not know the key
        ("0.0.0.0", "127.0.0.1", False),  # a proxy's own names can't be known
        ("127.0.0.1", "10.0.0.3", False),  # another server runs the app
        ("127.0.0.1", None, False),  # a UNIX socket
    ],
)
def test_on_other_addresses_any_host_name_is_allowed(
    listens: str, server: str | None, has_keys: bool
) -> None:
    assert host_refusal("rerank.example.com", Settings(host=listens), server, has_keys=has_keys) is None


@pytest.mark.parametrize(
    ("host", "is_served"),
    [
        ("rerank.example.com:443", True),
        ("a.b.internal", True),
        ("internal", False),
        ("evil.example", False),
        ("localhost", True),
        ("10.1.2.3:8080", True),  # a probe of Kubernetes
    ],
)
def test_allowed_hosts_apply_on_every_address(host: str, is_served: bool) -> None:
    settings = Settings(host="0.0.0.0", allowed_hosts="rerank.example.com, *.internal")
    assert (host_refusal(host, settings, "10.0.0.3", has_keys=True) is None) == is_served


EVIL = "https://evil.example"
HERE = {"host": "localhost:11440"}


@pytest.mark.parametrize(
    ("headers", "settings", "code"),
    [
        ({}, {}, None),  # curl -X POST
        ({"content-type": "application/json"}, {}, None),
        ({"origin": "http://localhost:11440"}, {}, None),
        ({"origin": "http://localhost:3000"}, {}, "origin_not_allowed"),
        ({"origin": EVIL}, {}, "origin_not_allowed"),
        ({"origin": "null"}, {}, "origin_not_allowed"),
        ({"origin": ""}, {}, "origin_not_allowed"),
        ({"sec-fetch-site": "cross-site"}, {}, "origin_not_allowed"),
        ({"origin": EVIL}, {"allowed_origins": "https://*.example"}, None),
        (
            {"origin": "https://evil.example.org"},
            {"allowed_origins": "https://*.example"},
            "origin_not_allowed",
        ),
        ({"origin": "chrome-extension://abc"}, {"allowed_origins": "chrome-extension://*"}, None),
        # A proxy has replaced the Host; the browser vouches for the page.
        ({"origin": "https://rerank.example", "sec-fetch-site": "same-origin"}, {}, None),
        # DNS rebinding, where the Host is not checked for all requests.
        ({"host": "evil.example", "origin": "http://evil.example"}, {}, "host_not_allowed"),
        ({"host": "nas.lan", "origin": "http://nas.lan"}, {"allowed_hosts": "nas.lan"}, None),
        ({"content-type": "text/plain;charset=UTF-8"}, {}, "unsupported_media_type"),
        ({"content-type": "multipart/form-data; boundary=x"}, {}, "unsupported_media_type"),
        (
            {"content-type": "application/x-www-form-urlencoded", "origin": "http://localhost:11440"},
            {},
            "unsupported_media_type",
        ),
    ],
)
def test_who_may_change_the_service(
    headers: dict[str, str], settings: dict[str, str], code: str | None
) -> None:
    refused = change_refusal({**HERE, **headers}, Settings(**settings), has_keys=False)
    assert (refused and refused.code) == code
    if code == "origin_not_allowed":
        assert refused is not None and "allowed_origins" in refused.message


@pytest.mark.parametrize(
    ("origin", "is_served"),
    [
        (None, True),
        ("http://localhost:11440", True),
        ("http://127.0.0.1:3000", True),
        ("http://[::1]:3000", True),
        ("app://obsidian.md", True),
        ("file://", True),
        ("chrome-extension://abc", True),
        ("tauri://localhost", True),
        (EVIL, False),
        ("http://localhost.evil.example", False),
        ("null", False),
    ],
)
def test_a_web_page_has_no_work_done_where_there_is_no_key(origin: str | None, is_served: bool) -> None:
    headers = HERE if origin is None else {**HERE, "origin": origin}
    assert (work_refusal(headers, Settings()) is None) == is_served


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("plain")) as it:
        yield it


def starts(it: Service) -> int:
    return int(it.get("/health").json()["engine"]["starts"])


RELOAD = "/v1/models/xlmr-head/reload"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": EVIL}, 403),
        ({"origin": "null"}, 403),
        ({"origin": EVIL, "host": "evil.example"}, 403),  # rebinding: of its own origin, but not of our host
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_a_web_page_can_not_restart_the_engine(headers: dict[str, str], status: int, plain: Service) -> None:
    before = starts(plain)
    with plain.client() as client:
        answer = client.post(RELOAD, headers=headers)
    assert answer.status_code == status, answer.text
    assert starts(plain) == before


def test_a_page_under_a_rebound_name_can_not_read(plain: Service) -> None:
    with plain.client(headers={"host": "evil.example"}) as client:
        for path in ("/", "/health", "/v1/status", "/v1/models", "/metrics", "/openapi.json", "/nothing"):
            answer = client.get(path)
            assert answer.status_code == 403 and "allowed_hosts" in answer.json()["message"], path


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
def test_a_web_page_costs_no_work_and_curl_does_not_notice(kind: str, plain: Service) -> None:
    body = b'{"query": "q", "documents": ["a"]}'
    with plain.client() as client:
        foreign = client.post("/v1/rerank", content=body, headers={"content-type": kind, "origin": EVIL})
        assert foreign.status_code == 403 and "allowed_origins" in foreign.json()["message"]
        assert client.post("/v1/rerank", content=body, headers={"content-type": kind}).status_code == 200


def test_a_request_without_origin_and_body_restarts_the_engine(plain: Service) -> None:
    with plain.client() as client:
        assert client.post(RELOAD).status_code == 202


def test_by_default_no_page_gets_cors(plain: Service) -> None:
    with plain.client(headers={"origin": EVIL}) as client:
        assert not any(name.startswith("access-control") for name in client.get("/health").headers)
        preflight = client.options("/v1/rerank", headers={"access-control-request-method": "POST"})
        assert preflight.status_code >= 400


def test_an_allowed_extension_gets_cors_and_may_change(tmp_path: Path) -> None:
    origin = "chrome-extension://abcdef"
    with service(tmp_path, allowed_origins=origin, api_key="k") as it:
        wanted = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        with it.client(headers={"origin": origin}) as client:
            preflight = client.options("/v1/rerank", headers=wanted)
            assert preflight.status_code == 200
            assert preflight.headers["access-control-allow-origin"] == origin
            assert "authorization" in preflight.headers["access-control-allow-headers"]
            refused = client.get("/v1/models")
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == origin
            assert client.post(RELOAD, headers={"x-api-key": "k"}).status_code == 202
        with it.client(headers={"origin": EVIL}) as client:
            assert client.options("/v1/rerank", headers=wanted).status_code == 400
            assert client.post(RELOAD, headers={"x-api-key": "k"}).status_code == 403


def test_a_service_for_a_network_accepts_any_host_name(tmp_path: Path) -> None:
    with service(tmp_path, host="0.0.0.0") as it:
        port = urlsplit(it.url).port
        answer = httpx.get(f"http://127.0.0.1:{port}/health", headers={"host": "rerankd"}, trust_env=False)
        assert answer.status_code == 200


def test_by_default_only_this_machine_is_listened_on(plain: Service) -> None:
    port = urlsplit(plain.url).port
    inode = {line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]}
    assert f"0100007F:{port:04X}" in inode and f"00000000:{port:04X}" not in inode
