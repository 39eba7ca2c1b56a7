"""Download files over HTTP with retries, resumption and checksum verification.

Data is written to a part file whose name can't be mistaken for a model. An interrupted download resumes where
it stopped; only consecutive attempts that bring no data count towards the limit of retries. A file is
complete when its checksum matches; a part file with the wrong checksum is deleted, since none of it can be
trusted.
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
# Bytes per request when a header is read: most headers are 1 to 16 MiB, nearly all of it the vocabulary.
_HEADER_BYTES = 8 * 2**20
# Maximum total of the waits that a server requests (Retry-After), per file or listing.
_LONGEST_WAIT_S = 300


@dataclass(frozen=True, slots=True)
class Source:
    """A file to download: URL, expected size and sha256 ("" if unknown), and the request headers to send."""

    origin: network_errors.Origin
    url: str
    name: str
    size_bytes: int
    sha256: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Patience:
    """Timeouts: for a response or the next byte (`timeout_s`), and before a retry (`pause_s`, doubled each
    time, unless the server sends Retry-After). `sleep` waits for a number of seconds."""

    timeout_s: float = 30
    pause_s: float = 1
    sleep: Callable[[float], None] = time.sleep


class Downloader(contextlib.AbstractContextManager["Downloader"]):
    """Downloads files with one HTTP client, which it closes as a context manager.

    `progress` receives the waits that a server requests. Raises FetchError if the proxy or certificates set
    in the environment can't be used.
    """

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
            raise FetchError(f"Nothing can be downloaded: {error}.") from error

    def __exit__(self, *_: object) -> None:
        self.client.close()

    @contextlib.contextmanager
    def beginning(self, source: Source) -> Iterator[Beginning]:
        """Yield a stream of the file from its start, downloaded as it is read; reading raises FetchError."""
        with contextlib.closing(self._pieces(source, 0, _HEADER_BYTES)) as pieces:
            yield Beginning(pieces)

    def retrying(self, request: Callable[[], T]) -> T:
        """Return the result of `request`, which is retried after the time that a busy server sends in
        Retry-After. Raises what `request` raises."""
        waits, fruitless = _Waits(self._patience, self._progress), 0
        while True:
            try:
                return request()
            except FetchError as error:
                if error.retry_after_s is None:
                    raise
                fruitless += 1
                waits.pause(fruitless, error)

    def fetch(self, source: Source, part: Path, progress: Progress) -> None:
        """Download the rest of the file into `part` and verify it.

        Raises FetchError, after which `part` can be resumed or is deleted; and DataFolderError.
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
                "Free disk space, or set RERANKD_HOME to another folder. The next attempt resumes the "
                "download.",
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
        """Yield the file's bytes from `at` on, with at most `share` bytes per request, and reconnect after
        interruptions. Raises FetchError."""
        waits, fruitless, has_ranges = _Waits(self._patience, self._progress), 0, True
        while at < source.size_bytes:
            before, reason = at, "the connection was closed"
            cause: FetchError | None = None
            end = "" if share is None else min(at + share, source.size_bytes) - 1
            byte_range = f"bytes={at}-{end}" if has_ranges and (at or share) else ""
            try:
                with self._get(source, byte_range) as answer:
                    if answer.status_code == 416:
                        has_ranges = False
                        continue
                    skip = at if answer.status_code == 200 else 0  # the server ignored the range
                    for data in answer.iter_bytes():
                        piece = data[skip : skip + source.size_bytes - at]
                        skip -= min(skip, len(data))
                        at += len(piece)
                        if piece:
                            yield piece
                        if at == source.size_bytes:
                            break
            except httpx.TransportError as error:
                reason = network_errors.explain(error)
                cause = source.origin.unreachable(error) if isinstance(error, httpx.ConnectError) else None
            except network_errors.Busy as error:
                cause = error
            fruitless = fruitless + 1 if at == before else 0
            if fruitless:
                waits.pause(fruitless, cause or _interrupted(source, at, reason))

    @contextlib.contextmanager
    def _get(self, source: Source, byte_range: str) -> Iterator[httpx.Response]:
        """Send a GET request. It, and reading the response, raise FetchError, or TransportError and Busy,
        after which a retry may succeed."""
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
    """The pauses between the attempts at one file or listing, limited in number and total time."""

    def __init__(self, patience: Patience, progress: Progress) -> None:
        self._patience, self._progress = patience, progress
        self._requested_s = 0

    def pause(self, fruitless: int, cause: FetchError) -> None:
        """Wait before the next attempt: as long as the server requests in `cause`, else with exponential
        backoff. Raises `cause` after too many attempts or too long a wait."""
        requested_s = cause.retry_after_s
        if fruitless >= _ATTEMPTS or self._requested_s + (requested_s or 0) > _LONGEST_WAIT_S:
            raise cause
        if requested_s is None:
            self._patience.sleep(self._patience.pause_s * 2 ** (fruitless - 1))
            return
        self._requested_s += requested_s
        what = f"waiting {requested_s} s, as the hub requests"
        for second in range(requested_s):
            self._progress(what, second, requested_s)
            self._patience.sleep(1)
        self._progress(what, requested_s, requested_s or 1)


Pieces = Generator[bytes, None, None]


class Beginning:
    """A readable stream over an iterator of bytes."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._buffer = pieces, b""

    def read(self, count: int = -1) -> bytes:
        """Read `count` bytes, fewer only at the end; -1: all."""
        parts = [self._buffer]
        held = len(self._buffer)
        while count < 0 or held < count:
            piece = next(self._pieces, b"")
            if not piece:
                break
            parts.append(piece)
            held += len(piece)
        data = b"".join(parts)
        end = len(data) if count < 0 else count
        self._buffer = data[end:]
        return data[:end]


def verify(path: Path, source: Source, progress: Progress) -> None:
    """Check the size and checksum of a downloaded file; delete it and raise FetchError if they are wrong."""
    found = ""
    if source.sha256:
        with step(progress, f"checking {source.name}"):
            found = sha256_of(path)
    if _size(path) == source.size_bytes and found == source.sha256.lower():
        return
    path.unlink()
    raise FetchError(
        f"{source.name} from {source.origin.server} has the wrong checksum (sha256 {found or 'unknown'}, "
        f"expected {source.sha256 or 'unknown'}) and was deleted. A proxy or a mirror may have changed it: "
        f"try again, or {source.origin.otherwise}."
    )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if free < needed:
        raise DataFolderError(
            f"The disk of {part.parent} has {size_words(free)} left, but the download needs another "
            f"{size_words(needed)}. Free disk space, or set RERANKD_HOME to another folder. The next attempt "
            "resumes the download."
        )


def _interrupted(source: Source, at: int, reason: str) -> FetchError:
    return FetchError(
        f"The download of {source.name} from {source.origin.server} was interrupted at {size_words(at)} of "
        f"{size_words(source.size_bytes)} ({reason}). Try again: the download resumes."
    )


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return os.stat(path).st_size
    return 0
