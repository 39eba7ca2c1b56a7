"""Scores on disk: they survive a restart and a kill, and a fault of the disk costs no request."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served import MODEL, Service, raw_scores, right, service

import fake_engine
from rerankd.disk_cache import WRITE_S
from support import until

TEXTS = [f"document {number}" for number in range(50)]


def scores(it: Service) -> dict[str, Any]:
    found: dict[str, Any] = it.get("/v1/status").json()["disk_cache"]["scores"]
    return found


def disk_hits(it: Service) -> int:
    return int(it.metric("rerankd_cache_disk_hits"))


def written(it: Service, rows: int) -> None:
    """Wait until the file has so many scores."""
    path = scores(it)["path"]

    def count() -> int:
        with sqlite3.connect(path) as database:
            return int(database.execute("SELECT count(*) FROM entries").fetchone()[0])

    until(lambda: count() >= rows)


def fill(folder: Path, **settings: Any) -> Path:
    """Run a service that scores TEXTS. Returns the file of scores."""
    cache = folder / "cache"
    with service(folder, cache_path=cache, **settings) as it:
        assert raw_scores(it.rerank(TEXTS)) == right(TEXTS)
        assert it.metric("rerankd_tokens_total") > 0
    return cache / "scores.sqlite"


def test_scores_survive_a_restart(tmp_path: Path) -> None:
    path = fill(tmp_path)
    with service(tmp_path, cache_path=path.parent) as it:
        answer = it.rerank(TEXTS)
        assert raw_scores(answer) == right(TEXTS)
        assert disk_hits(it) == len(TEXTS) and it.metric("rerankd_tokens_total") == 0
        assert raw_scores(it.rerank(TEXTS)) == right(TEXTS)
        assert it.metric("rerankd_cache_memory_hits") == disk_hits(it) == len(TEXTS)
        assert scores(it)["hits"] == len(TEXTS) and scores(it)["size_bytes"] > 0
        assert it.metric("rerankd_disk_cache_scores_usable") == 1
    assert oct(path.stat().st_mode)[-3:] == "600"
    assert b"document" not in path.read_bytes()


def test_other_settings_of_requests_have_other_scores(tmp_path: Path) -> None:
    path = fill(tmp_path)
    with service(tmp_path, cache_path=path.parent) as it:
        assert raw_scores(it.rerank(TEXTS, query="other")) == right(TEXTS, query="other")
        assert disk_hits(it) == 0


def test_a_file_replaced_with_the_same_name_size_time_and_header_has_no_scores(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    shutil.copy(MODEL, model)
    path = fill(tmp_path, model=model)
    known = model.stat()
    with model.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last ^ 1]))
    os.utime(model, ns=(known.st_atime_ns, known.st_mtime_ns))
    with service(tmp_path, cache_path=path.parent, model=model) as it:
        assert raw_scores(it.rerank(TEXTS)) == right(TEXTS)
        assert disk_hits(it) == 0
    moved = tmp_path / "moved.gguf"
    shutil.copy(MODEL, moved)
    with service(tmp_path, cache_path=path.parent, model=moved) as it:
        assert raw_scores(it.rerank(TEXTS)) == right(TEXTS)
        assert disk_hits(it) == len(TEXTS), "the same content under another name has the same scores"


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(100_000))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def header_only(path: Path) -> None:
    os.truncate(path, 60)


def another_version(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")


def another_program(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE mine (text)")


def folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def pages(path: Path) -> None:
    """Damage in the middle, which SQLite finds only when it reads there."""
    with path.open("r+b") as stream:
        stream.seek(8192)
        stream.write(os.urandom(path.stat().st_size - 8192))


@pytest.mark.parametrize(
    "damage", [garbage, truncated, header_only, another_version, another_program, folder, fifo, pages]
)
def test_a_file_that_cannot_be_read_is_set_aside(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = fill(tmp_path)
    damage(path)
    with service(tmp_path, cache_path=path.parent) as it:
        assert raw_scores(it.rerank(TEXTS)) == right(TEXTS)
        until(lambda: "was renamed" in it.output)
        assert raw_scores(it.rerank(TEXTS)) == right(TEXTS)
        more = [f"{text} again" for text in TEXTS]
        assert raw_scores(it.rerank(more)) == right(more)
    assert path.with_name("scores.sqlite.damaged").exists()
    with service(tmp_path, cache_path=path.parent) as it:
        assert raw_scores(it.rerank(more)) == right(more)
        assert disk_hits(it) == len(more), "a new file was begun"


def test_an_empty_file_is_a_new_one(tmp_path: Path) -> None:
    path = fill(tmp_path)
    os.truncate(path, 0)
    with service(tmp_path, cache_path=path.parent) as it:
        assert raw_scores(it.rerank(TEXTS)) == right(TEXTS)
        written(it, len(TEXTS))


def test_a_row_with_a_changed_score_is_not_used(tmp_path: Path) -> None:
    path = fill(tmp_path)
    with sqlite3.connect(path) as database:
        (value,) = database.execute("SELECT value FROM entries WHERE id = 1").fetchone()
        changed = bytes([value[0] ^ 1]) + value[1:]
        database.execute("UPDATE entries SET value = ? WHERE id = 1", (changed,))
    with service(tmp_path, cache_path=path.parent) as it:
        assert raw_scores(it.rerank(TEXTS)) == right(TEXTS)
        assert disk_hits(it) == len(TEXTS) - 1


def test_a_path_that_is_a_file_costs_no_request(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    path.write_text("not a folder")
    with service(tmp_path, cache_path=path) as it:
        assert raw_scores(it.rerank(TEXTS)) == right(TEXTS)
        until(lambda: "can't be used" in it.output)
        assert scores(it)["problem"] == "Not a directory"
        assert it.metric("rerankd_disk_cache_scores_usable") == 0


def test_a_folder_without_permission_costs_no_request(tmp_path: Path) -> None:
    if not os.geteuid():
        pytest.skip("root may write everywhere")
    path = fill(tmp_path)
    path.chmod(0o400)
    path.parent.chmod(0o500)
    try:
        with service(tmp_path, cache_path=path.parent) as it:
            assert raw_scores(it.rerank(TEXTS)) == right(TEXTS)
            until(lambda: scores(it)["problem"] != "")
    finally:
        path.parent.chmod(0o700)


def test_a_full_disk_costs_no_request(tmp_path: Path) -> None:
    """RLIMIT_FSIZE is a disk that is full: each write beyond it fails."""
    limit = shutil.which("prlimit")
    if limit is None:
        pytest.skip("needs prlimit of util-linux")
    cache = tmp_path / "cache"
    with service(tmp_path, cache_path=cache, under=[limit, "--fsize=200000"]) as it:
        for part in range(40):
            texts = [f"{part} {text}" for text in TEXTS]
            assert raw_scores(it.rerank(texts)) == right(texts)
        until(lambda: scores(it)["problem"] != "")
        assert "can't be used" in it.output and scores(it)["dropped"] > 0
        assert raw_scores(it.rerank(TEXTS)) == right(TEXTS)
    with service(tmp_path, cache_path=cache) as it:
        assert raw_scores(it.rerank(TEXTS)) == right(TEXTS)
        written(it, len(TEXTS))
        assert scores(it)["problem"] == ""


def test_a_file_that_another_program_has_locked_costs_no_request(tmp_path: Path) -> None:
    path = fill(tmp_path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with service(tmp_path, cache_path=path.parent) as it:
        # How long a request waits is in tests/test_disk_cache.py.
        assert raw_scores(it.rerank(TEXTS)) == right(TEXTS)
        assert disk_hits(it) == 0
        until(lambda: "another process has locked it" in it.output)
        other.close()


def test_two_services_share_a_folder(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    cache = tmp_path / "cache"
    engine = {"llama_path": fake_engine.install(tmp_path)}
    with (
        service(one, cache_path=cache, **engine) as first,
        service(two, cache_path=cache, **engine) as second,
    ):
        assert raw_scores(first.rerank(TEXTS)) == right(TEXTS)
        written(first, len(TEXTS))
        assert raw_scores(second.rerank(TEXTS)) == right(TEXTS)
        assert disk_hits(second) == len(TEXTS)
        more = [f"{text} again" for text in TEXTS]
        assert raw_scores(second.rerank(more)) == right(more)
        written(first, 2 * len(TEXTS))
        assert raw_scores(first.rerank(more)) == right(more)
        assert disk_hits(first) == len(more)


def test_a_folder_that_is_deleted_while_the_service_runs_is_made_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with service(tmp_path, cache_path=cache) as it:
        assert raw_scores(it.rerank(TEXTS)) == right(TEXTS)
        written(it, len(TEXTS))
        shutil.rmtree(cache)
        until(lambda: (cache / "scores.sqlite").exists())
        more = [f"{text} again" for text in TEXTS]
        assert raw_scores(it.rerank(more)) == right(more)
        written(it, len(more))


def test_a_kill_loses_at_most_the_last_second_and_leaves_no_wrong_score(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    safe: set[str] = set()
    for run in range(5):
        with service(tmp_path, cache_path=cache) as it:
            if safe:
                texts = sorted(safe)
                assert raw_scores(it.rerank(texts)) == right(texts)
                assert disk_hits(it) == len(texts), "all that was put more than a second before the kill"
            answered: list[tuple[float, list[str]]] = []
            while not answered or time.monotonic() < answered[0][0] + 1.4 + 0.11 * run:
                texts = [f"{run} {len(answered)} {number}" for number in range(40)]
                assert raw_scores(it.rerank(texts)) == right(texts)
                answered.append((time.monotonic(), texts))
            killed = time.monotonic()
            it.signal(signal.SIGKILL)
            it.ended()
        assert WRITE_S < 1
        safe = {text for at, texts in answered if at < killed - 1 for text in texts}
        assert safe
