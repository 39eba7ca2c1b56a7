"""Files in any place that fsspec knows: a path, s3://, gs://, hf://, https:// …"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from rerankd.errors import BulkError, OutputFailed

# What changes with the content of a file, as file systems name it.
_VERSIONS = (
    "size", "mtime", "LastModified", "last_modified", "updated", "ETag", "etag", "md5Hash", "blob_id",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class File:
    """A file. `url` is what a user would write, `version` changes with its content."""

    url: str
    size: int
    version: str

    @property
    def suffix(self) -> str:
        path = self.url.partition("?")[0] if "://" in self.url else self.url
        return PurePosixPath(path).suffix.lower()


def inside(url: str, *names: str) -> str:
    return "/".join((url.rstrip("/"), *names))


def absolute(url: str) -> str:
    """A local path as it is on every node; a URL as it is."""
    return url if "://" in url else os.path.abspath(os.path.expanduser(url))


def opened(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path in it. Listings are not cached. Raises BulkError."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError, OSError) as error:
        raise BulkError(f"{url} can't be opened: {_reason(error)}.") from None
    return system, path


def files(url: str) -> list[File]:
    """Return the file, the files that match the pattern, or all files below the folder, by name. Files and
    folders whose names begin with "_" or "." are left out. Raises BulkError if there is none."""
    system, path = opened(url)
    with reading(url):
        if system.isdir(path):
            below = system.find(path, detail=True).items()
            found = {name: info for name, info in below if not _is_hidden(name[len(path) :])}
        elif system.exists(path):
            found = {path: system.info(path)}
        else:
            matching = system.glob(path, detail=True).items() if "*" in path else ()
            found = {name: info for name, info in matching if info.get("type") != "directory"}
    if not found:
        raise BulkError(f"{url} does not exist, or holds no file.")
    named = ((str(system.unstrip_protocol(name)), info) for name, info in sorted(found.items()))
    return [File(url.removeprefix("file://"), _size(url, info), _version(info)) for url, info in named]


def read(url: str, first: int, last: int) -> bytes:
    """Return bytes of a file. Raises BulkError."""
    system, path = opened(url)
    with reading(url):
        data = bytes(system.cat_file(path, start=first, end=last))
    if len(data) != last - first:
        raise BulkError(
            f"{url} can't be read in parts: {last - first} bytes were asked for, and {len(data)} came. "
            "Its server must support ranges; else copy the file to another place."
        )
    return data


def read_whole(url: str) -> bytes:
    """Return a file. Raises BulkError."""
    system, path = opened(url)
    with reading(url):
        return bytes(system.cat_file(path))


def is_unchanged(file: File) -> bool:
    system, path = opened(file.url)
    with reading(file.url):
        return _version(system.info(path)) == file.version


@contextlib.contextmanager
def reading(url: str) -> Iterator[None]:
    """Turn the errors of file systems into a BulkError."""
    try:
        yield
    except FileNotFoundError:
        raise BulkError(f"{url} does not exist.") from None
    except _errors() as error:
        raise BulkError(f"{url} can't be read: {_reason(error)}.") from None


def put(source: Path, url: str) -> None:
    """Copy a local file to a URL, where it appears complete or not at all. Raises OutputFailed."""
    system, path = opened(url)
    folder, _, name = path.rpartition("/")
    new = f"{folder}/_{name}.{uuid.uuid4().hex}.new"
    with writing(url):
        system.put_file(str(source), new)
        if _is_local(system):
            with open(new, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(new, path)
        else:
            system.mv(new, path)


@contextlib.contextmanager
def writing(url: str) -> Iterator[None]:
    """Turn the errors of file systems into OutputFailed."""
    try:
        yield
    except _errors() as error:
        raise OutputFailed(
            f"{url} can't be written: {_reason(error)}. The parts that are written are kept; run the command "
            "again to go on."
        ) from None


def local_path(url: str) -> str | None:
    """The path of a file of this machine, else None."""
    system, path = opened(url)
    return path if _is_local(system) else None


def _is_local(system: Any) -> bool:
    return "file" in (system.protocol if isinstance(system.protocol, tuple) else (system.protocol,))


def _is_hidden(path: str) -> bool:
    return any(part.startswith(("_", ".")) for part in path.split("/"))


def _size(url: str, info: dict[str, Any]) -> int:
    if info.get("size") is None:
        raise BulkError(f"{url} can't be read in parts: its server does not tell its size.")
    return int(info["size"])


def _version(info: dict[str, Any]) -> str:
    """What changes with the content, as far as the file system tells it."""
    return ", ".join(f"{name} {info[name]}" for name in _VERSIONS if info.get(name) is not None)


def _errors() -> tuple[type[Exception], ...]:
    """What file systems raise; for https://, aiohttp's errors, too, which are no OSErrors."""
    found: tuple[type[Exception], ...] = (OSError, NotImplementedError)
    if find_spec("aiohttp") is not None:
        from aiohttp import ClientError

        found += (ClientError,)
    return found


def _reason(error: Exception) -> str:
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(words).split()).rstrip(".")
