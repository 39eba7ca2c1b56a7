"""Atomic writes and moves, file locks, disk errors, progress steps and sizes as text."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rerankd import files, locks
from rerankd.errors import DataFolderError, disk_errors
from rerankd.progress import size_words, step


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    files.write_whole(path, b"old")
    with pytest.raises(TypeError):
        files.write_whole(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    files.write_whole(path, b"new", mode=0o640)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["file.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_that_root_replaces_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "rerankd.toml"
    path.touch()
    os.chown(path, 1234, 2345)
    files.write_whole(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)


def test_a_folder_replaces_another(tmp_path: Path) -> None:
    for name in ("first", "second"):
        new = tmp_path / "new"
        new.mkdir()
        (new / name).touch()
        files.move_folder(new, tmp_path / "target")
        assert os.listdir(tmp_path) == ["target"]
        assert os.listdir(tmp_path / "target") == [name]


def test_a_disk_error_names_the_action_and_the_next_step() -> None:
    with pytest.raises(DataFolderError) as caught, disk_errors("It can't be written", "Free some space."):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.message == "It can't be written: No space left on device. Free some space."


def test_a_lock_can_not_be_taken_twice_until_it_is_released(tmp_path: Path) -> None:
    with locks.held(tmp_path / "lock"), pytest.raises(BlockingIOError), locks.held(tmp_path / "lock"):
        pass
    with locks.held(tmp_path / "lock"):
        pass
    with locks.held_soon(tmp_path, 1), pytest.raises(TimeoutError), locks.held_soon(tmp_path, 0):
        pass


def test_a_step_that_fails_is_not_reported_as_done() -> None:
    reports: list[tuple[str, int, int]] = []
    with step(lambda *report: reports.append(report), "one"):
        pass
    with pytest.raises(ValueError), step(lambda *report: reports.append(report), "two"):
        raise ValueError
    assert reports == [("one", 0, 1), ("one", 1, 1), ("two", 0, 1)]


def test_sizes_as_text() -> None:
    assert [size_words(size) for size in (0, 1023, 669 * 2**20, 1000 * 2**20, 2**31)] == [
        "0 bytes",
        "1023 bytes",
        "669 MiB",
        "1000 MiB",
        "2 GiB",
    ]
