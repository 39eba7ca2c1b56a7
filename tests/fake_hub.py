"""A fake hub on loopback that speaks the protocols of Hugging Face and ModelScope, with configurable faults.

It serves the paths that the official clients request: Hugging Face's `/api/models/…` and `/…/resolve/…`,
which redirects to the file as the real one does, and ModelScope's `/api/v1/models/…/repo/files` and
`/repo?FilePath=…`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """`repos` maps org/repo to its files; `asked` are the requests, as path and Range; the others are
    faults."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    claimed_sizes: dict[str, int] = field(default_factory=dict)
    list_status: int = 200
    file_status: int = 200
    statuses: list[int] = field(default_factory=list)  # statuses of the next file responses; then file_status
    cut_after: int | None = None  # the connection is closed after this many bytes of a body
    cuts: int = 10**9  # number of bodies that are interrupted
    garble: bool = False  # the body, beyond the header, does not match the checksum
    no_ranges: bool = False
    range_status: int = 0  # status of responses to ranges that do not begin at 0
    hang: threading.Event | None = None  # bodies wait for this before their last byte
    needs_token: str = ""
    busy_listings: int = 0  # number of listings that get 429 first
    busy_s: str = "7"  # the Retry-After header of rejected requests
    is_circle: bool = False  # files redirect to themselves
    encoding: str = ""  # a false content-encoding header of the bodies
    is_portal: bool = False  # the log-in page of a network answers instead
    commit: str = COMMIT
    asked: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    @property
    def bodies(self) -> list[str]:
        """The Range headers of the requests for files, "" for a whole file; without those for headers."""
        return [span for path, span in self.asked if _is_bytes(path) and not _is_header(span)]


def _is_bytes(path: str) -> bool:
    return path.startswith("/cdn/") or "/repo?" in path


def _is_header(span: str) -> bool:
    return span.startswith("bytes=") and not span.endswith("-")


@contextlib.contextmanager
def fake_hub(**options: object) -> Iterator[FakeHub]:
    """Run a hub in its own threads."""
    hub = FakeHub(**options)  # type: ignore[arg-type]

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        if hub.hang is not None:
            hub.hang.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, url = self.hub, urlsplit(self.path)
        hub.asked.append((self.path, self.headers.get("range", "")))
        if hub.is_portal:
            return self._answer(200, {"content-type": "text/html"}, b"<html>Welcome! Please log in.</html>")
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        parts = unquote(url.path).strip("/").split("/")
        if hub.needs_token and f"Bearer {hub.needs_token}" != self.headers.get("authorization"):
            self._json(401, {"error": "Access to this model is restricted."}, {"X-Error-Code": "GatedRepo"})
        elif parts[:2] == ["api", "models"]:
            self._listing("/".join(parts[2:4]), self._hugging_face)
        elif parts[:3] == ["api", "v1", "models"] and parts[5:] == ["repo", "files"]:
            self._listing("/".join(parts[3:5]), self._model_scope)
        elif parts[:3] == ["api", "v1", "models"]:
            self._bytes("/".join(parts[3:5]), query["FilePath"])
        elif "resolve" in parts:
            at = parts.index("resolve")
            self._answer(302, {"location": f"/cdn/{'/'.join(parts[:at])}/{'/'.join(parts[at + 2 :])}"}, b"")
        elif parts[0] == "cdn":
            self._bytes("/".join(parts[1:3]), "/".join(parts[3:]))
        else:
            self._answer(404, {}, b"")

    def _listing(self, repo: str, render: object) -> None:
        files = self.hub.repos.get(repo)
        status = 404 if files is None and self.hub.list_status == 200 else self.hub.list_status
        if self.hub.busy_listings:
            self.hub.busy_listings, status = self.hub.busy_listings - 1, 429
        if status != 200:
            extra = {"X-Error-Code": "GatedRepo"} if status == 403 else {}
            extra |= {"Retry-After": self.hub.busy_s} if status == 429 else {}
            self._json(status, {"error": "no", "Code": status, "Message": "no", "Success": False}, extra)
        else:
            self._json(200, render(repo, files or {}), {})  # type: ignore[operator]

    def _hugging_face(self, repo: str, files: dict[str, bytes]) -> object:
        def sibling(name: str, data: bytes) -> object:
            size = self.hub.claimed_sizes.get(name, len(data))
            if name.endswith(".json"):  # small files are stored in git and have no SHA-256
                return {"rfilename": name, "size": size, "blobId": "0" * 40}
            lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": size, "pointerSize": 134}
            return {"rfilename": name, "size": size, "blobId": "0" * 40, "lfs": lfs}

        siblings = [sibling(name, data) for name, data in files.items()]
        return {
            "_id": "1",
            "id": repo,
            "sha": self.hub.commit,
            "siblings": siblings,
            "tags": [],
            "private": False,
        }

    def _model_scope(self, repo: str, files: dict[str, bytes]) -> object:
        listed = [
            {
                "Path": name,
                "Name": name.rpartition("/")[2],
                "Size": self.hub.claimed_sizes.get(name, len(data)),
                "Sha256": hashlib.sha256(data).hexdigest(),
                "Type": "blob",
                "IsLFS": True,
            }
            for name, data in files.items()
        ]
        return {"Code": 200, "Success": True, "Data": {"Files": listed}}

    def _bytes(self, repo: str, path: str) -> None:
        hub, span = self.hub, self.headers.get("range", "")
        data = hub.repos[repo][path]
        data = data.ljust(min(hub.claimed_sizes.get(path, 0), 2**24), b"\0")
        if hub.garble and not _is_header(span):
            data = data[:-9] + b"something"
        status = hub.file_status if _is_header(span) or not hub.statuses else hub.statuses.pop(0)
        if status != 200:
            return self._answer(status, {"retry-after": hub.busy_s}, b"no")
        if hub.is_circle:
            return self._answer(302, {"location": self.path}, b"")
        start, end = 0, len(data) - 1
        if span and not hub.no_ranges:
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or end), end)
            if start and hub.range_status:
                return self._answer(hub.range_status, {}, b"")
            if start > end:
                return self._answer(416, {"content-range": f"bytes */{len(data)}"}, b"")
            headers = {"content-range": f"bytes {start}-{end}/{len(data)}"}
            return self._body(206, headers, data[start : end + 1], header=_is_header(span))
        return self._body(200, {}, data, header=_is_header(span))

    def _body(self, status: int, headers: dict[str, str], body: bytes, *, header: bool) -> None:
        hub = self.hub
        cut = None if header or hub.cuts <= 0 else hub.cut_after
        headers |= {"content-encoding": hub.encoding} if hub.encoding else {}
        self._head(status, {**headers, "content-length": str(len(body))})
        if cut is not None and cut < len(body):
            hub.cuts -= 1
            self.wfile.write(body[:cut])
            self.close_connection = True
        elif hub.hang is not None and not header:
            self.wfile.write(body[:-1])
            self.wfile.flush()
            hub.hang.wait(60)
            with contextlib.suppress(OSError):
                self.wfile.write(body[-1:])
        else:
            with contextlib.suppress(OSError):  # the client may disconnect after the header
                self.wfile.write(body)

    def _json(self, status: int, value: object, headers: dict[str, str]) -> None:
        self._answer(status, {"content-type": "application/json", **headers}, json.dumps(value).encode())

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._head(status, {**headers, "content-length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
