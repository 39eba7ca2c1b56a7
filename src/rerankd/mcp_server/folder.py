"""Read the text files of a folder for a search, and nothing outside of it.

The names in a folder can change while it is read, so no path is resolved first and opened later: every
component is opened relative to its parent's descriptor, and never through a link (O_NOFOLLOW).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rerankd import text_files
from rerankd.errors import InvalidRequest

# A larger file is data or a log rather than text that somebody wrote.
MOST_FILE_BYTES = 2**20
# The first search of 16 MiB takes about 10 s on two cores.
MOST_TEXT_BYTES = 16 * 2**20
MOST_FILES = 10_000
MOST_FOLDERS = 10_000
MOST_DEPTH = 32
_DEPENDENCIES = ("node_modules", "__pycache__")
_EXAMPLES = 3
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a fifo that replaced the file meanwhile does not block.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Unusable(Exception):
    """A file is skipped; the message is the reason."""


class FoundFile(NamedTuple):
    """A file: its path below the folder, and what changes with its content."""

    path: str
    size_bytes: int
    modified_ns: int
    inode: int


@dataclass(slots=True)
class Skipped:
    """How many files and folders were skipped, by reason, with the first paths."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, path: str) -> None:
        """Count a path."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < _EXAMPLES:
            shown.append(shown_path(path))


def components(path: str) -> tuple[str, ...]:
    """Return the components of a path that a client names, relative to the folder. Raises InvalidRequest for
    a path that leads outside or is hidden."""
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if path.startswith(("/", "~")) or ".." in parts or "\\" in path or "\0" in path:
        raise InvalidRequest(
            f"The path {path[:200]!r} is not allowed. Give a path relative to the folder, with / and without "
            "'..', such as 'docs/install.md'."
        )
    hidden = next((part for part in parts if part.startswith(".")), None)
    if hidden is not None:
        raise InvalidRequest(f"{hidden!r} is hidden. Hidden files and folders are not searched.")
    return parts


def scan(root: Path, start: tuple[str, ...], skipped: Skipped) -> Iterator[FoundFile | None]:
    """Yield the files below `start`, in the order of their paths, and None after each folder. Raises
    InvalidRequest if `start` can't be read."""
    with _opened(root, start[:-1]) as parent:
        try:
            status = os.stat(start[-1], dir_fd=parent, follow_symlinks=False) if start else None
        except OSError as error:
            raise InvalidRequest(
                f"{'/'.join(start)!r} can't be read: {error.strerror}. Give a path below the folder, or none "
                "to search all of it."
            ) from None
        if status is not None and not stat.S_ISDIR(status.st_mode):
            path = "/".join(start)
            if (reason := _reason(status)) is not None:
                raise InvalidRequest(f"{path!r} is not searched: {reason}.")
            yield _found(path, status)
            return
    with _opened(root, start) as folder:
        yield from _below(folder, "".join(f"{part}/" for part in start), skipped)


def read(root: Path, path: str) -> str:
    """Return the text of a file. Raises Unusable."""
    *folders, name = path.split("/")
    try:
        with _opened(root, tuple(folders)) as folder:
            descriptor = os.open(name, _FILE, dir_fd=folder)
        with open(descriptor, "rb") as file:
            before = os.fstat(descriptor)
            if (reason := _reason(before)) is not None:
                raise Unusable(reason)
            data = file.read(MOST_FILE_BYTES + 1)
            after = os.fstat(descriptor)
    except (OSError, InvalidRequest) as error:
        raise Unusable(f"unreadable: {getattr(error, 'strerror', None) or error}") from None
    if (len(data), after.st_size, after.st_mtime_ns) != (before.st_size, before.st_size, before.st_mtime_ns):
        raise Unusable("changed while it was read")
    try:
        text = text_files.decode(data)
    except ValueError:
        raise Unusable("not a text file in UTF-8") from None
    if "\0" in text:
        raise Unusable("not a text file in UTF-8")
    return text


def shown_path(path: str) -> str:
    """Return a path as valid Unicode: names of files are bytes."""
    return os.fsencode(path).decode(errors="backslashreplace")


@contextlib.contextmanager
def _opened(root: Path, parts: tuple[str, ...]) -> Iterator[int]:
    """Open a folder below `root`, whose own path may contain links."""
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidRequest(f"The folder {root} can't be read: {error.strerror}.") from None
    try:
        for at, part in enumerate(parts, 1):
            try:
                inner = os.open(part, _FOLDER, dir_fd=folder)
            except OSError as error:
                raise InvalidRequest(
                    f"{shown_path('/'.join(parts[:at]))!r} can't be opened as a folder: {error.strerror}. "
                    "Links are not followed."
                ) from None
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def _below(start: int, prefix: str, skipped: Skipped) -> Iterator[FoundFile | None]:
    count = 0

    def unreadable(error: OSError) -> None:
        skipped.add(f"unreadable: {error.strerror}", prefix + str(error.filename or ""))

    walk = os.fwalk(".", dir_fd=start, onerror=unreadable)
    for number, (top, folders, files, descriptor) in enumerate(walk, 1):
        at = prefix + top.removeprefix(".").removeprefix("/") + "/" * (top != ".")
        if number > MOST_FOLDERS:
            skipped.add(f"this and all later folders: more than {MOST_FOLDERS:,}", at)
            return
        folders[:] = [
            name for name in sorted(folders) if not _skips_folder(name, at, descriptor, prefix, skipped)
        ]
        for name in sorted(files):
            if name.startswith("."):
                skipped.add("hidden", at + name)
                continue
            try:
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            except OSError as error:
                skipped.add(f"unreadable: {error.strerror}", at + name)
                continue
            if (reason := _reason(status)) is not None:
                skipped.add(reason, at + name)
                continue
            count += 1
            if count > MOST_FILES:
                skipped.add(f"this and all later files: more than {MOST_FILES:,}", at + name)
                return
            yield _found(at + name, status)
        yield None


def _skips_folder(name: str, at: str, parent: int, prefix: str, skipped: Skipped) -> bool:
    reason = None
    if name.startswith("."):
        reason = "hidden"
    elif name in _DEPENDENCIES:
        reason = "dependencies or caches"
    elif (at.count("/") - prefix.count("/")) >= MOST_DEPTH:
        reason = f"more than {MOST_DEPTH} folders deep"
    else:
        with contextlib.suppress(OSError):
            if stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                reason = _LINK
    if reason is not None:
        skipped.add(reason, f"{at}{name}/")
    return reason is not None


_LINK = "a link; links are not followed"


def _reason(status: os.stat_result) -> str | None:
    if stat.S_ISLNK(status.st_mode):
        return _LINK
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_size > MOST_FILE_BYTES:
        return f"larger than {MOST_FILE_BYTES // 2**20} MiB"
    return None


def _found(path: str, status: os.stat_result) -> FoundFile:
    return FoundFile(path, status.st_size, status.st_mtime_ns, status.st_ino)
