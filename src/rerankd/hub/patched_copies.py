"""Patched copies of model files: made once, reused, counted, and removed with the model.

An engine may need a copy of a model's file in which a few bytes differ (`formats/patch.py`). The copies
are in `models/.patched/` of the data folder, also for a file outside the store: a folder for each file and
patch, with a file of the same name, and links to the other parts of a split model. The folder's name holds a
digest of the file's size, modification time and header, but not of its path: moving a model keeps its copy,
and a changed file gets a new one. `source` in it names the model's path, so that copies without a model can
be found; they are deleted when another one is made.

A copy needs as much disk space as the file. On a file system that shares blocks between files (btrfs, XFS),
the space is still required to be free, but not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerankd import files, locks
from rerankd.errors import DataFolderError, ModelFileError, disk_errors
from rerankd.formats.patch import Patch, is_zero, write_copy
from rerankd.progress import Progress, size_words

_HEADER_BYTES = 64 * 2**10
# Left free for logs, state and other downloads.
_MARGIN_BYTES = 64 * 2**20
_SOURCE = "source"
# A copy that is being written; one that is left is from a process that was killed.
_MAKING = ".making-"
_NEXT_STEP = "Free disk space, or set RERANKD_HOME to a folder on a larger disk."


@dataclass(frozen=True, slots=True)
class PatchedCopies:
    """The patched copies in the folder `models/.patched` of a data folder."""

    folder: Path

    @classmethod
    def within(cls, models: Path) -> PatchedCopies:
        """The copies of a store, whose models are in the folder `models`."""
        return cls(models / ".patched")

    def ensure(self, parts: Sequence[Path], patch: Patch, progress: Progress) -> Path:
        """Return the path that an engine loads: the first part of the copy, which is made if it is missing,
        or of the model itself if the bytes are zero there already. `parts` are the files of the model.

        Raises DataFolderError, before anything is written if the disk has too little space, and
        ModelFileError if the model can't be read.
        """
        try:
            if is_zero(parts[patch.part], patch):
                return parts[0]
            target = self.folder / f"{_digest(parts)}-{patch.name}"
        except OSError as error:
            raise ModelFileError(f"{parts[0]}: it can't be read: {error.strerror}.") from error
        if (target / parts[0].name).exists() and _source_of(target) == parts[0].absolute():
            return target / parts[0].name  # also in a data folder that is read-only
        with disk_errors(_failed(parts, target), _NEXT_STEP):
            self.folder.mkdir(parents=True, exist_ok=True)
            with locks.held(self.folder / ".lock", lambda: progress("waiting for another copy", 0, 0)):
                if not (target / parts[0].name).exists():
                    self._remove([*self._outdated(parts), *self.folder.glob(f"{_MAKING}*")])
                    self._make(parts, patch, target, progress)
                    if target.name != f"{_digest(parts)}-{patch.name}":
                        self._remove([target])
                        raise ModelFileError(
                            f"{parts[0]}: it was changed while it was copied. Load it again."
                        )
                _note_source(target, parts[0])
        return target / parts[0].name

    def of(self, parts: Sequence[Path]) -> list[Path]:
        """Return the folders of the copies of a model."""
        try:
            digest = _digest(parts)
        except OSError:
            return []
        return [folder for folder in self._all() if folder.name.startswith(f"{digest}-")]

    def of_source(self, source: Path) -> list[Path]:
        """Return the folders of the copies of the file at this path, also of earlier versions of it."""
        return [folder for folder in self._all() if _source_of(folder) == source.absolute()]

    def sources(self) -> dict[Path, Path | None]:
        """Return all copies: their folders, and the path of the model of each, None if it is unknown, as of
        an unfinished copy that a killed process has left."""
        return {folder: _source_of(folder) for folder in (*self._all(), *self._left())}

    def _left(self) -> list[Path]:
        """The unfinished copies; none while one is being made."""
        with contextlib.suppress(OSError), locks.held(self.folder / ".lock"):
            return sorted(self.folder.glob(f"{_MAKING}*"))
        return []

    def remove(self, folders: Sequence[Path]) -> int:
        """Delete copies. Returns their size in bytes."""
        size = sum(map(size_bytes, folders))
        with disk_errors(f"The patched copies in {self.folder} can't be deleted"):
            self._remove(folders)
        return size

    def _remove(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            shutil.rmtree(folder)

    def _all(self) -> Iterator[Path]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            yield from (one for one in sorted(self.folder.iterdir()) if not one.name.startswith("."))

    def _outdated(self, parts: Sequence[Path]) -> list[Path]:
        """The copies of other versions of a file, and those whose model no longer exists. Another patch of
        the same version is for a model with another prompt."""
        own = self.of(parts)
        return [
            folder
            for folder, known in self.sources().items()
            if known is None or not known.exists() or (known == parts[0].absolute() and folder not in own)
        ]

    def _make(self, parts: Sequence[Path], patch: Patch, target: Path, progress: Progress) -> None:
        source = parts[patch.part]
        needs, free = source.stat().st_size + _MARGIN_BYTES, files.free_bytes(self.folder)
        if needs > free:
            raise DataFolderError(
                f"{_failed(parts, target)}: it needs {size_words(needs)}, but the disk has only "
                f"{size_words(free)} free. {_NEXT_STEP}"
            )
        scratch = Path(tempfile.mkdtemp(prefix=_MAKING, dir=self.folder))
        try:
            for part in parts:
                if part != source:
                    (scratch / part.name).symlink_to(part.absolute())
            write_copy(
                source,
                scratch / source.name,
                patch,
                lambda done, total: progress(f"writing a patched copy of {source.name}", done, total),
            )
            files.move_folder(scratch, target)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


def describe(copies: PatchedCopies, parts: Sequence[Path], patch: Patch) -> dict[str, Any] | None:
    """Return what `rerankd inspect` shows of a copy; None if the file needs none. Raises OSError."""
    if is_zero(parts[patch.part], patch):
        return None
    found = next((one for one in copies.of(parts) if one.name.endswith(f"-{patch.name}")), None)
    return {
        "in_which": patch.words,
        "size_bytes": parts[patch.part].stat().st_size,
        "path": str(found / parts[0].name) if found is not None else None,
    }


def line(row: Mapping[str, Any]) -> str:
    """Render a row of `describe` as a line of text."""
    place = f"it is {row['path']}" if row["path"] else "it is made when the model is loaded first"
    return (
        f"patched copy: the engine loads a copy of the file in which {row['in_which']}; {place} and takes "
        f"{size_words(row['size_bytes'])} of disk space"
    )


def size_bytes(folder: Path) -> int:
    """The size of a copy, without the parts that are only linked."""
    with contextlib.suppress(OSError):
        return sum(one.lstat().st_size for one in folder.iterdir())
    return 0


def _failed(parts: Sequence[Path], target: Path) -> str:
    return (
        f"{parts[0].name} can't be served: the copy of it that its engine needs can't be written to {target}"
    )


def _note_source(target: Path, source: Path) -> None:
    if _source_of(target) != source.absolute():
        files.write_whole(target / _SOURCE, os.fsencode(source.absolute()))


def _source_of(folder: Path) -> Path | None:
    with contextlib.suppress(OSError):
        return Path(os.fsdecode((folder / _SOURCE).read_bytes()))
    return None


def _digest(parts: Sequence[Path]) -> str:
    """A digest of a model's files that does not depend on their folder. Raises OSError."""
    found = hashlib.blake2b(digest_size=8)
    for path in parts:
        status = path.stat()
        with path.open("rb") as stream:
            found.update(
                f"{path.name} {status.st_size} {status.st_mtime_ns} ".encode("utf-8", "surrogateescape")
            )
            found.update(stream.read(_HEADER_BYTES))
    return found.hexdigest()
