"""Bytes from a hub: the beginning of a file, to judge it by, and the whole of it, resumed and verified.

The hubs' own clients say where a file is, what it weighs and who may have it (`hubs.py`). The bytes are
fetched here, for both hubs alike, because huggingface_hub 2 throws away what it has when a download ends
early (its change 4228), and eight gigabytes should go on where they stopped, in a later pull too.

What has arrived lies in a part file whose name no one takes for a model. A connection that is cut is taken up
again where it ended; only attempts in a row that bring nothing count against it. The file's checksum, not its
length, says that it is complete; a part with the wrong one is deleted, since no byte of it can be trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx

from rerankd import network
from rerankd.errors import DataFolderError, FetchError, HubUnreachable
from rerankd.hub.inspect import size_words
from rerankd.hub.repository_files import RemoteFile

Progress = Callable[[str, int, int], None]
T = TypeVar("T")

_ATTEMPTS = 5
# One request's share of a header: most headers are 1 to 16 MiB, nearly all of it the vocabulary.
_HEADER_BYTES = 8 * 2**20
_BUSY = (408, 429, 500, 502, 503, 504)
# What a hub may ask to wait for, of one file or listing altogether.
_LONGEST_WAIT_S = 300


@dataclass(frozen=True, slots=True)
class Origin:
    """A repository on a hub, as error sentences speak of it. `mirror` says how to name another server."""

    ref: str
    hub: str
    page: str
    token_variable: str
    endpoint: str
    mirror: str

    def refused(self, status: int, retry_after: str = "") -> FetchError:
        """The error of an answer with this HTTP status; its `retry_after_s` is what the hub asks to wait."""
        wait_s = network.retry_after_s(retry_after) if status in _BUSY else None
        token = f"make a token there and set {self.token_variable} to it"
        if status == 401:
            why = "does not give it without a token (401): it is gated or private, or there is no such thing"
            next_step = f"Check the name at {self.page}, accept its terms there if it has some, and {token}."
        elif status == 403:
            why = "does not give it to this account (403): it is gated"
            next_step = f"Accept its terms at {self.page}, then {token}."
        elif status == 404:
            why = "has no such thing (404)"
            next_step = f"Check the name at {self.page}."
        elif status == 429:
            why = "has had too many requests from here (429)"
            when = "in some minutes" if wait_s is None else f"in {wait_s} s"
            next_step = f"Try again {when}; who sends a token ({self.token_variable}) may ask for more."
        else:
            why = f"answers with an error ({status})"
            next_step = f"Try again {'later' if wait_s is None else f'in {wait_s} s'}, or {self.mirror}."
        return FetchError(f"{self.ref} can't be fetched: {self.hub} {why}. {next_step}", retry_after_s=wait_s)

    def unreachable(self, error: Exception) -> HubUnreachable:
        """The error of no answer at all."""
        return HubUnreachable(
            f"{self.ref} can't be fetched: {self.hub} can't be reached at {self.endpoint} "
            f"({network.explain(error)}). Check the network, and HTTPS_PROXY where a proxy is in the way, or "
            f"{self.mirror}."
        )

    def web_page(self, host: str) -> HubUnreachable:
        """The error of a page for people where data should be."""
        return HubUnreachable(
            f"{self.ref} can't be fetched: a web page came from {host} instead of what {self.hub} has. The "
            "network may ask you to log in first (open any page in a browser), or a proxy blocks the hub; "
            f"else {self.mirror}."
        )


@dataclass(frozen=True, slots=True)
class Source:
    """Where one file is to be had, and what to send for it."""

    origin: Origin
    url: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait: for an answer or the next byte (`timeout_s`), and between attempts that bring nothing
    (`pause_s`, doubled each time, or what the hub asks for). `sleep` waits for a number of seconds."""

    timeout_s: float = 30
    pause_s: float = 1
    sleep: Callable[[float], None] = time.sleep


def _quiet(what: str, done: int, total: int) -> None:
    pass


class Transfer:
    """Fetches files; a context manager that holds the connections. `progress` is told of waits that a hub
    asked for. Raises FetchError where the environment's proxy or certificates can't be used."""

    def __init__(self, patience: Patience = Patience(), progress: Progress = _quiet) -> None:
        self._patience = patience
        self._progress = progress
        try:
            self._client = network.client(
                follow_redirects=True, timeout=patience.timeout_s, headers={"accept-encoding": "identity"}
            )
        except ValueError as error:
            raise FetchError(f"Nothing can be fetched: {error}.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    @contextlib.contextmanager
    def beginning(self, source: Source, file: RemoteFile) -> Iterator[Beginning]:
        """A stream of the file's first bytes, fetched as they are read; its reads raise FetchError."""
        pieces = self._pieces(source, file)
        try:
            yield Beginning(pieces)
        finally:
            pieces.close()

    def _pieces(self, source: Source, file: RemoteFile) -> Pieces:
        at = fruitless = 0
        waits = _Waits(self._patience, self._progress)
        while at < file.size_bytes:
            end = min(at + _HEADER_BYTES, file.size_bytes) - 1
            before = at
            cause: FetchError | None = None
            try:
                with self._get(source, f"bytes={at}-{end}") as answer:
                    skip = at if answer.status_code == 200 else 0  # it sends all, whatever was asked for
                    for data in answer.iter_bytes():
                        piece = data[min(skip, len(data)) :]
                        skip -= len(data) - len(piece)
                        at += len(piece)
                        yield piece
            except httpx.TransportError as error:
                cause = source.origin.unreachable(error)
            except _BusyError as error:
                cause = error.refusal
            fruitless = fruitless + 1 if at == before else 0
            if fruitless:
                waits.pause(fruitless, cause or _cut(source, file, at, "the hub sends no more of it"))

    def asked(self, ask: Callable[[], T]) -> T:
        """What `ask` gets from a hub; asked again after the time that the hub names where it is busy. Raises
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

    def fetch(self, source: Source, file: RemoteFile, part: Path, progress: Progress) -> None:
        """Bring `part` to the whole of the file, from where it is, and verify it.

        Raises FetchError, after which the part holds what can be resumed, or nothing; and DataFolderError.
        """
        what = f"downloading {file.name}"
        waits = _Waits(self._patience, self._progress)
        if _size(part) > file.size_bytes:
            part.unlink()
        fruitless = 0
        while (done := _size(part)) < file.size_bytes or not part.exists():
            progress(what, done, file.size_bytes)
            self._check_space(part, file.size_bytes - done)
            cause: FetchError | None = None
            try:
                self._append(source, file, part, lambda at: progress(what, at, file.size_bytes))
                said = "the connection was closed"
            except httpx.TransportError as error:
                said = network.explain(error)
                cause = source.origin.unreachable(error) if isinstance(error, httpx.ConnectError) else None
            except _BusyError as error:
                said, cause = "", error.refusal
            fruitless = fruitless + 1 if _size(part) <= done else 0
            if fruitless:
                waits.pause(fruitless, cause or _cut(source, file, _size(part), said))
        progress(what, file.size_bytes, file.size_bytes)
        verify(part, file, source.origin, progress)

    def _append(self, source: Source, file: RemoteFile, part: Path, report: Callable[[int], None]) -> None:
        done = _size(part)
        with self._get(source, f"bytes={done}-" if done else "") as answer:
            if answer.status_code == 416 or (answer.status_code == 200 and done):
                # It does not do ranges, or what is here is no beginning of what it has: from the start, then.
                part.unlink()
                done = 0
                if answer.status_code == 416:
                    return
            try:
                with part.open("ab") as stream:
                    for data in answer.iter_bytes():
                        stream.write(data[: file.size_bytes - done])
                        done += len(data)
                        if done > file.size_bytes:
                            break
                        report(done)
            except OSError as error:
                raise DataFolderError(
                    f"{file.name} can't be written to {part.parent}: {error.strerror or error}. Free some "
                    "space, or name another folder with RERANKD_HOME; a second pull goes on from here."
                ) from error

    @contextlib.contextmanager
    def _get(self, source: Source, byte_range: str) -> Iterator[httpx.Response]:
        """Ask for bytes. Raises FetchError, _BusyError, and TransportError, after which another attempt may
        help; so does the block, while it reads the answer."""
        headers = source.headers | ({"range": byte_range} if byte_range else {})
        try:
            with self._client.stream("GET", source.url, headers=headers) as answer:
                if answer.status_code >= 400 and not (answer.status_code == 416 and byte_range):
                    refusal = source.origin.refused(answer.status_code, answer.headers.get("retry-after", ""))
                    raise _BusyError(refusal) if answer.status_code in _BUSY else refusal
                if answer.headers.get("content-type", "").startswith("text/html"):
                    raise source.origin.web_page(answer.url.host)
                yield answer
        except httpx.UnsupportedProtocol as error:
            raise source.origin.unreachable(error) from error
        except httpx.TransportError:
            raise
        except (httpx.HTTPError, httpx.InvalidURL, httpx.CookieConflict, httpx.StreamError) as error:
            raise source.origin.unreachable(error) from error

    @staticmethod
    def _check_space(part: Path, needed: int) -> None:
        free = shutil.disk_usage(part.parent).free
        if free < needed:
            raise DataFolderError(
                f"The disk of {part.parent} has {size_words(free)} left, and {size_words(needed)} are still "
                "to come. Free some space, or name another folder with RERANKD_HOME; a second pull goes on "
                "from here."
            )


class _Waits:
    """The pauses between attempts at one thing, which together take no longer than a person would wait."""

    def __init__(self, patience: Patience, progress: Progress) -> None:
        self._patience, self._progress = patience, progress
        self._asked_s = 0

    def pause(self, fruitless: int, cause: FetchError) -> None:
        """Wait before the next attempt: as long as the hub asks in `cause`, else longer each time. Raises
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


class _BusyError(Exception):
    """A status that another attempt may not meet."""

    def __init__(self, refusal: FetchError) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


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


def verify(path: Path, file: RemoteFile, origin: Origin, progress: Progress) -> None:
    """Check size and checksum of what was fetched; deletes it and raises FetchError where they are wrong."""
    found = ""
    if file.sha256:
        progress(f"checking {file.name}", 0, 1)
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        progress(f"checking {file.name}", 1, 1)
    if _size(path) == file.size_bytes and found == file.sha256.lower():
        return
    path.unlink()
    raise FetchError(
        f"What came for {file.name} is not what {origin.hub} says it has (sha256 {found or 'unknown'}, "
        f"expected {file.sha256 or 'unknown'}); it was deleted. A proxy or a mirror may have changed it: try "
        f"again, or {origin.mirror}."
    )


def _cut(source: Source, file: RemoteFile, at: int, said: str) -> FetchError:
    return FetchError(
        f"The download of {file.name} from {source.origin.hub} was cut at {size_words(at)} of "
        f"{size_words(file.size_bytes)} ({said}). Pull it again: it goes on where it stopped."
    )


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return os.stat(path).st_size
    return 0
