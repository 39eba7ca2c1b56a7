"""Patched copies: made once, reused, made again for a changed file, removed with the model, complete."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rerankd.errors import DataFolderError, ModelFileError
from rerankd.formats.patch import Patch
from rerankd.hub import listing, patched_copies
from rerankd.hub.patched_copies import PatchedCopies
from rerankd.hub.store import Store
from rerankd.progress import silent
from test_store import put

PATCH = Patch("zero-3", 0, 3, 4, "the row of the unused token 3 is zero in the output matrix")
DATA = b"GGUFabcdefgh"
PATCHED = b"GGU\0\0\0\0defgh"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "mine" / "model.gguf"
    path.parent.mkdir()
    path.write_bytes(DATA)
    return path


@pytest.fixture
def copies(tmp_path: Path) -> PatchedCopies:
    return Store(tmp_path / "home").copies


def files_in(folder: Path) -> list[str]:
    return sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if one.name != ".lock")


def test_a_copy_is_made_once_with_progress(copies: PatchedCopies, source: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    made = copies.ensure([source], PATCH, lambda *report: reports.append(report))
    assert (made.name, made.read_bytes(), source.read_bytes()) == (source.name, PATCHED, DATA)
    assert reports == [("writing a patched copy of model.gguf", len(DATA), len(DATA))]
    inode = made.stat().st_ino
    assert copies.ensure([source], PATCH, silent).stat().st_ino == inode
    assert patched_copies.describe(copies, [source], PATCH) == {
        "in_which": PATCH.words,
        "size_bytes": len(DATA),
        "path": str(made),
    }


def test_a_file_that_is_gone_is_an_error_of_the_model(copies: PatchedCopies, source: Path) -> None:
    with pytest.raises(ModelFileError, match=r"m\.gguf: it can't be read: No such file"):
        copies.ensure([source.with_name("m.gguf")], PATCH, silent)


def test_a_file_whose_bytes_are_zero_needs_no_copy(copies: PatchedCopies, source: Path) -> None:
    source.write_bytes(PATCHED)
    assert copies.ensure([source], PATCH, silent) == source
    assert not copies.folder.exists()
    assert patched_copies.describe(copies, [source], PATCH) is None


def test_a_changed_file_gets_a_new_copy_in_place_of_the_old_one(copies: PatchedCopies, source: Path) -> None:
    old = copies.ensure([source], PATCH, silent)
    source.write_bytes(DATA + b"more")
    os.utime(source, ns=(1, 1))
    new = copies.ensure([source], PATCH, silent)
    assert new.read_bytes() == PATCHED + b"more" and not old.exists()


def test_a_moved_file_keeps_its_copy(copies: PatchedCopies, source: Path) -> None:
    made = copies.ensure([source], PATCH, silent)
    moved = source.rename(source.parent.parent / source.name)
    assert copies.ensure([moved], PATCH, silent) == made
    assert copies.of_source(moved) == [made.parent] and copies.of_source(source) == []


def test_copies_of_files_that_no_longer_exist_are_deleted_with_the_next_one(
    copies: PatchedCopies, source: Path
) -> None:
    old = copies.ensure([source], PATCH, silent)
    other = source.with_name("other.gguf")
    other.write_bytes(DATA)
    source.unlink()
    assert copies.ensure([other], PATCH, silent).exists() and not old.exists()


def test_only_one_part_of_a_split_model_is_copied(copies: PatchedCopies, tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        part.write_bytes(DATA)
    second = Patch("zero-3", 1, 3, 4, "")
    made = copies.ensure(parts, second, silent)
    assert made == made.parent / parts[0].name and made.is_symlink() and made.read_bytes() == DATA
    assert (made.parent / parts[1].name).read_bytes() == PATCHED
    assert patched_copies.size_bytes(made.parent) < 2 * len(DATA) + 400


def test_without_disk_space_nothing_is_written(copies: PatchedCopies, source: Path) -> None:
    with source.open("r+b") as file:
        file.truncate(2**42)  # 4 TiB, of which the disk stores a few bytes
    with pytest.raises(DataFolderError) as raised:
        copies.ensure([source], PATCH, silent)
    assert "it needs 4 TiB, but the disk has only" in raised.value.message
    assert "Free disk space, or set RERANKD_HOME" in raised.value.message
    assert files_in(copies.folder) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_an_interrupted_copy_leaves_nothing(
    copies: PatchedCopies, source: Path, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    expected = DataFolderError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as raised:
        copies.ensure([source], PATCH, fail)
    if isinstance(raised.value, DataFolderError):
        assert "No space left on device. Free disk space" in raised.value.message
    assert files_in(copies.folder) == []


def test_the_rest_of_a_killed_copy_is_deleted(copies: PatchedCopies, source: Path) -> None:
    left = copies.folder / ".making-x"
    left.mkdir(parents=True)
    copies.ensure([source], PATCH, silent)
    assert not left.exists()


def test_a_copy_is_counted_and_removed_with_its_model(tmp_path: Path, source: Path) -> None:
    store = Store(tmp_path / "home")
    record = put(store, "hf:org/repo", 1, DATA)
    made = store.copies.ensure([store.path(record)], PATCH, silent)
    outside = store.copies.ensure([source], PATCH, silent)
    (row,) = listing.present(store, lambda *_: pytest.fail("not a model"))
    assert row["patched_bytes"] == patched_copies.size_bytes(made.parent) > len(DATA)
    assert "12 bytes + " in listing.columns([row], catalog=False)[1][1]
    (sentence,) = listing.outside(store)
    assert sentence.startswith(f"A patched copy of {source} takes")
    assert store.remove(record) == len(DATA) + row["patched_bytes"]
    assert not made.exists() and outside.exists()


def test_two_models_with_one_file_and_two_prompts_keep_their_copies(
    copies: PatchedCopies, source: Path
) -> None:
    """Each prompt uses other tokens, so each model has its own unused token."""
    other = Patch("zero-0", 0, 8, 4, "the row of the unused token 0 is zero")
    first, second = (copies.ensure([source], patch, silent) for patch in (PATCH, other))
    assert first.read_bytes() == PATCHED and second.read_bytes() == b"GGUFabcd\0\0\0\0"


def test_a_file_that_changes_while_it_is_copied_gives_no_copy(copies: PatchedCopies, source: Path) -> None:
    def change(_: str, done: int, total: int) -> None:
        source.write_bytes(DATA[::-1])
        os.utime(source, (1, 1))

    with pytest.raises(ModelFileError, match="was changed while it was copied"):
        copies.ensure([source], PATCH, change)
    assert not [one for one in files_in(copies.folder) if one.endswith(".gguf")]
