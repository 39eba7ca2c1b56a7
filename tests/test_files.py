"""What is written whole, moved whole, locked, and told of a disk that refuses."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rerankd import files, locks
from rerankd.errors import DataFolderError, disk_errors
from rerankd.progress import size_words, step


def test_a_file_is_written_whole_or_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    files.write_whole(path, b"old")
    with pytest.raises(TypeError):
        files.write_whole(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    files.write_whole(path, b"new", mode=0o640)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["file.json"]


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for name in ("first", "second"):
        new = tmp_path / "new"
        new.mkdir()
        (new / name).touch()
        files.move_folder(new, tmp_path / "target")
        assert os.listdir(tmp_path) == ["target"]
        assert os.listdir(tmp_path / "target") == [name]


def test_an_error_of_the_disk_says_what_could_not_be_done_and_what_to_do() -> None:
    with pytest.raises(DataFolderError) as caught, disk_errors("It can't be written", "Free some space."):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.message == "It can't be written: No space left on device. Free some space."


def test_a_lock_that_is_held_is_refused_until_it_is_free(tmp_path: Path) -> None:
    with locks.held(tmp_path / "lock"), pytest.raises(BlockingIOError), locks.held(tmp_path / "lock"):
        pass
    with locks.held(tmp_path / "lock"):
        pass
    with locks.held_soon(tmp_path, 1), pytest.raises(TimeoutError), locks.held_soon(tmp_path, 0):
        pass


def test_a_step_that_fails_is_not_reported_as_done() -> None:
    told: list[tuple[str, int, int]] = []
    with step(lambda *report: told.append(report), "one"):
        pass
    with pytest.raises(ValueError), step(lambda *report: told.append(report), "two"):
        raise ValueError
    assert told == [("one", 0, 1), ("one", 1, 1), ("two", 0, 1)]


def test_sizes_in_words() -> None:
    assert [size_words(size) for size in (0, 1023, 669 * 2**20, 1000 * 2**20, 2**31)] == [
        "0 bytes",
        "1023 bytes",
        "669 MiB",
        "1000 MiB",
        "2 GiB",
    ]
