"""Images by URL: which addresses are allowed, and the limits of size, time and redirects."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from rerankd.backends.base import Capabilities
from rerankd.config import Settings
from rerankd.content import Document, ImageLink
from rerankd.domain import RerankRequest
from rerankd.errors import InvalidRequest
from rerankd.serving import image_fetch
from rerankd.serving.image_fetch import fetch, is_public
from rerankd.serving.request_images import linked, links, readable


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind, _, rest = self.path.lstrip("/").partition("/")
        if kind == "to":
            self.send_response(302)
            self.send_header("location", rest if ":" in rest else f"/{rest}")
            self.end_headers()
            return
        self.send_response(200 if kind != "missing" else 404)
        if kind == "gzip":
            self.send_header("content-encoding", "gzip")
        self.end_headers()
        if kind == "slow":
            stopped.wait(30)
        self.wfile.write(bytes(int(rest or 5)))

    def log_message(self, *_: object) -> None:
        pass


stopped = threading.Event()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        stopped.set()
        listening.shutdown()


def anywhere(address: str) -> bool:
    return True


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("64:ff9b::5db8:d822", True),  # NAT64 of 93.184.216.34
        *((address, False) for address in (
            "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
            "224.0.0.1", "255.255.255.255", "198.18.0.1", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1",
            "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::", "240.0.0.1",
            "fec0::1",
        )),
    ],
)  # fmt: skip
def test_only_public_addresses_are_allowed(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "127.1"])
async def test_the_machine_itself_is_refused_however_it_is_written(server: str, host: str) -> None:
    port = server.rpartition(":")[2]
    with pytest.raises(InvalidRequest, match=r"not on the public internet|can't be fetched"):
        await fetch([f"http://{host}:{port}/a"], 100)


async def test_an_image_is_fetched_once_and_through_redirects(server: str) -> None:
    urls = [f"{server}/a/7", f"{server}/to/to/a/3", f"{server}/a/7"]
    found = await fetch(urls, 100, anywhere)
    assert {url: len(image.data) for url, image in found.items()} == {urls[0]: 7, urls[1]: 3}
    request = RerankRequest("q", (Document((ImageLink(urls[0]), "text")), "b"))
    assert links(request) == urls[:1] and not links(linked(request, found.get))


async def test_each_redirect_is_checked(server: str) -> None:
    checked = iter([True, False])

    def once(address: str) -> bool:
        return next(checked)

    with pytest.raises(InvalidRequest, match="not on the public internet"):
        await fetch([f"{server}/to/a"], 100, once)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/a/101", "more bytes than max_body_bytes"),
        ("/missing", "the status 404"),
        ("/gzip", "compresses it"),
        ("/to/to/to/to/to/a", "redirected more than 3 times"),
        ("/to/file:///etc/passwd", "file is not http or https"),
        ("/to/ftp://here/a", "ftp is not http or https"),
        ("/to/http://127.0.0.1:65536/a", "the port 65536"),
        ("/to/http://127.0.0.1:0/a", "the port 0"),
        ("/to/https:///a", "its URL has no host"),
    ],
)
async def test_what_exceeds_a_limit_is_refused(server: str, path: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        await fetch([server + path], 100, anywhere)


async def test_a_url_with_a_user_name_is_refused(server: str) -> None:
    with pytest.raises(InvalidRequest, match="a user name"):
        await fetch([server.replace("//", "//me:secret@") + "/a"], 100, anywhere)


async def test_a_slow_server_is_given_up(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_fetch, "TIMEOUT_S", 0.3)
    with pytest.raises(InvalidRequest, match=r"within 0\.3 s|can't be fetched"):
        await fetch([f"{server}/slow"], 100, anywhere)


async def test_urls_are_fetched_only_if_the_setting_allows_it(server: str) -> None:
    running: Any = SimpleNamespace(capabilities=Capabilities(content=frozenset(("text", "image"))))
    request = RerankRequest("q", (Document((ImageLink(f"{server}/a"),)),))
    with pytest.raises(InvalidRequest, match="set image_urls = true"):
        await readable(request, running, Settings())
    with pytest.raises(InvalidRequest, match="not on the public internet"):
        await readable(request, running, Settings(image_urls=True))
