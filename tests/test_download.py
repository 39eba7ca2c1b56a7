"""Downloads from a server without range requests, whose first response breaks off and later ones are too
long.

tests/fake_hub.py has the other faults.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from rerankd import network_errors
from rerankd.download import Downloader, Patience, Source
from rerankd.progress import silent

CONTENT = bytes(range(256)) * 8
ORIGIN = network_errors.Origin("a file", "the server", "http://server", "ask another one")
SOURCE = Source(ORIGIN, "http://server/file", "file", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


class Cut(httpx.SyncByteStream):
    """A response body in small pieces; the connection breaks after `after` bytes."""

    def __init__(self, body: bytes, after: int) -> None:
        self.body, self.after = body, after

    def __iter__(self) -> Iterator[bytes]:
        for at in range(0, min(self.after, len(self.body)), 100):
            yield self.body[at : at + 100]
        if self.after < len(self.body):
            raise httpx.ReadError("cut")


@pytest.fixture
def downloader(monkeypatch: pytest.MonkeyPatch) -> Iterator[Downloader]:
    """A downloader connected to this server."""
    bodies = iter([Cut(CONTENT, 500), *(Cut(CONTENT + b"more", 10_000) for _ in range(3))])
    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=next(bodies)))
    real = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **more: real(transport=transport))
    with Downloader(Patience(pause_s=0)) as made:
        yield made


def test_reading_the_beginning_continues_after_an_interruption(downloader: Downloader) -> None:
    with downloader.beginning(SOURCE) as stream:
        assert stream.read(1000) == CONTENT[:1000]
        assert stream.read() == CONTENT[1000:]


def test_a_resumed_file_is_not_longer_than_expected(downloader: Downloader, tmp_path: Path) -> None:
    part = tmp_path / "file.part"
    downloader.fetch(SOURCE, part, silent)
    assert part.read_bytes() == CONTENT
