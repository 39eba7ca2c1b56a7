"""Files over HTTP: the beginning of one, to judge it by, and the whole of it, resumed and verified.

What has arrived lies in a part file whose name no one takes for a model. A connection that is cut is taken up
again where it ended; only attempts in a row that bring nothing count against it. The file's checksum, not its
length, says that it is complete; a part with the wrong one is deleted, since no byte of it can be trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import ssl
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx

from rerankd import network_errors
from rerankd.errors import DataFolderError, FetchError, disk_errors
from rerankd.progress import Progress, silent, size_words, step

T = TypeVar("T")

_ATTEMPTS = 5
# One request's share of a header: most headers are 1 to 16 MiB, nearly all of it the vocabulary.
_HEADER_BYTES = 8 * 2**20
# What a server may ask to wait for, of one file or listing altogether.
_LONGEST_WAIT_S = 300


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its address, and its expected size and sha256 ("" where that is not known).
    `headers` are sent along."""

    origin: network_errors.Origin
    url: str
    name: str
    size_bytes: int
    sha256: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait: for an answer or the next byte (`timeout_s`), and between attempts that bring nothing
    (`pause_s`, doubled each time, or what the server asks for). `sleep` waits for a number of seconds."""

    timeout_s: float = 30
    pause_s: float = 1
    sleep: Callable[[float], None] = time.sleep


class Downloader(contextlib.AbstractContextManager["Downloader"]):
    """Fetches files; a context manager that holds `client` with its connections. `progress` is told of waits
    that a server asked for. Raises FetchError where the environment's proxy or certificates can't be used."""

    def __init__(
        self,
        patience: Patience = Patience(),
        progress: Progress = silent,
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        self._patience = patience
        self._progress = progress
        try:
            self.client = network_errors.client(
                follow_redirects=True,
                timeout=patience.timeout_s,
                headers={"accept-encoding": "identity"},
                verify=verify,
            )
        except ValueError as error:
            raise FetchError(f"Nothing can be fetched: {error}.") from error

    def __exit__(self, *_: object) -> None:
        self.client.close()

    @contextlib.contextmanager
    def beginning(self, source: Source) -> Iterator[Beginning]:
        """A stream of the file's first bytes, fetched as they are read; its reads raise FetchError."""
        with contextlib.closing(self._pieces(source, 0, _HEADER_BYTES)) as pieces:
            yield Beginning(pieces)

    def asked(self, ask: Callable[[], T]) -> T:
        """What `ask` gets from a server; asked again after the time that it names where it is busy. Raises
        what `ask` raises."""
        waits, fruitless = _Waits(self._patience, self._progress), 0
        while True:
            try:
                return ask()
            except FetchError as error:
                if error.retry_after_s is None:
                    raise
                fruitless += 1
                waits.pause(fruitless, error)

    def fetch(self, source: Source, part: Path, progress: Progress) -> None:
        """Bring `part` to the whole of the file, from where it is, and verify it.

        Raises FetchError, after which the part holds what can be resumed, or nothing; and DataFolderError.
        """
        what = f"downloading {source.name}"
        if (done := _size(part)) > source.size_bytes:
            part.unlink()
            done = 0
        _check_space(part, source.size_bytes - done)
        progress(what, done, source.size_bytes)
        with (
            disk_errors(
                f"{source.name} can't be written to {part.parent}",
                "Free some space, or name another folder with RERANKD_HOME; the next attempt goes on from "
                "here.",
            ),
            part.open("ab") as stream,
            contextlib.closing(self._pieces(source, done)) as pieces,
        ):
            for piece in pieces:
                stream.write(piece)
                done += len(piece)
                progress(what, done, source.size_bytes)
        verify(part, source, progress)

    def _pieces(self, source: Source, at: int, share: int | None = None) -> Pieces:
        """The file's bytes from `at` on, asked for in shares of so many, and again where they are cut off.
        Raises FetchError."""
        waits, fruitless, has_ranges = _Waits(self._patience, self._progress), 0, True
        while at < source.size_bytes:
            before, said = at, "the connection was closed"
            cause: FetchError | None = None
            end = "" if share is None else min(at + share, source.size_bytes) - 1
            byte_range = f"bytes={at}-{end}" if has_ranges and (at or share) else ""
            try:
                with self._get(source, byte_range) as answer:
                    if answer.status_code == 416:
                        has_ranges = False
                        continue
                    skip = at if answer.status_code == 200 else 0  # it sends all, whatever was asked for
                    for data in answer.iter_bytes():
                        piece = data[skip : skip + source.size_bytes - at]
                        skip -= min(skip, len(data))
                        at += len(piece)
                        if piece:
                            yield piece
                        if at == source.size_bytes:
                            break
            except httpx.TransportError as error:
                said = network_errors.explain(error)
                cause = source.origin.unreachable(error) if isinstance(error, httpx.ConnectError) else None
            except network_errors.Busy as error:
                cause = error
            fruitless = fruitless + 1 if at == before else 0
            if fruitless:
                waits.pause(fruitless, cause or _cut(source, at, said))

    @contextlib.contextmanager
    def _get(self, source: Source, byte_range: str) -> Iterator[httpx.Response]:
        """Ask for bytes. Raises FetchError, and TransportError and Busy, after which another attempt may
        help; so does the block, while it reads the answer."""
        headers = source.headers | ({"range": byte_range} if byte_range else {})
        try:
            with self.client.stream("GET", source.url, headers=headers) as answer:
                if answer.status_code >= 400 and not (answer.status_code == 416 and byte_range):
                    raise source.origin.refused(answer.status_code, answer.headers.get("retry-after", ""))
                if answer.headers.get("content-type", "").startswith("text/html"):
                    raise source.origin.web_page(answer.url.host)
                yield answer
        except httpx.UnsupportedProtocol as error:
            raise source.origin.unreachable(error) from error
        except httpx.TransportError:
            raise
        except (httpx.HTTPError, httpx.InvalidURL, httpx.CookieConflict, httpx.StreamError) as error:
            raise source.origin.unreachable(error) from error


class _Waits:
    """The pauses between attempts at one thing, which together take no longer than a person would wait."""

    def __init__(self, patience: Patience, progress: Progress) -> None:
        self._patience, self._progress = patience, progress
        self._asked_s = 0

    def pause(self, fruitless: int, cause: FetchError) -> None:
        """Wait before the next attempt: as long as the server asks in `cause`, else longer each time. Raises
        `cause` where there have been enough."""
        asked_s = cause.retry_after_s
        if fruitless >= _ATTEMPTS or self._asked_s + (asked_s or 0) > _LONGEST_WAIT_S:
            raise cause
        if asked_s is None:
            self._patience.sleep(self._patience.pause_s * 2 ** (fruitless - 1))
            return
        self._asked_s += asked_s
        for second in range(asked_s):
            self._progress(f"waiting {asked_s} s, as the hub asks", second, asked_s)
            self._patience.sleep(1)
        self._progress(f"waiting {asked_s} s, as the hub asks", asked_s, asked_s or 1)


Pieces = Generator[bytes, None, None]


class Beginning:
    """A stream over pieces of bytes, for reading from its start."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._buffer = pieces, b""

    def read(self, count: int = -1) -> bytes:
        """Up to `count` bytes; fewer only at the end."""
        parts = [self._buffer]
        held = len(self._buffer)
        while count < 0 or held < count:
            piece = next(self._pieces, b"")
            if not piece:
                break
            parts.append(piece)
            held += len(piece)
        data = b"".join(parts)
        cut = len(data) if count < 0 else count
        self._buffer = data[cut:]
        return data[:cut]


def verify(path: Path, source: Source, progress: Progress) -> None:
    """Check size and checksum of what was fetched; deletes it and raises FetchError where they are wrong."""
    found = ""
    if source.sha256:
        with step(progress, f"checking {source.name}"):
            found = sha256_of(path)
    if _size(path) == source.size_bytes and found == source.sha256.lower():
        return
    path.unlink()
    raise FetchError(
        f"What {source.origin.server} sent for {source.name} has another checksum than it should (sha256 "
        f"{found or 'unknown'}, expected {source.sha256 or 'unknown'}); it was deleted. A proxy or a mirror "
        f"may have changed it: try again, or {source.origin.otherwise}."
    )


def sha256_of(path: Path) -> str:
    """The checksum of a file, in hexadecimal. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if free < needed:
        raise DataFolderError(
            f"The disk of {part.parent} has {size_words(free)} left, and {size_words(needed)} are still "
            "to come. Free some space, or name another folder with RERANKD_HOME; the next attempt goes "
            "on from here."
        )


def _cut(source: Source, at: int, said: str) -> FetchError:
    return FetchError(
        f"The download of {source.name} from {source.origin.server} was cut at {size_words(at)} of "
        f"{size_words(source.size_bytes)} ({said}). Try again: it goes on where it stopped."
    )


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return os.stat(path).st_size
    return 0
