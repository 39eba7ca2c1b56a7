"""The cache on disk: its bounds, what it forgets, and how long a request waits. The faults of disks are in
faults/test_cache_on_disk.py, with the real program."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rerankd import cache_database
from rerankd.cache_file import LEAST_BYTES, CacheFile
from rerankd.disk_cache import DiskCache
from rerankd.service import Reranker
from rerankd.serving import content_identity
from rerankd.state import StateStore
from support import golden_settings, until

TEXTS = ["a bear of China", "a kind of bread", "the river"]


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "cache" / "values.sqlite"
    assert not cache_database.prepare(found)
    return found


@pytest.fixture
def disk(path: Path) -> Iterator[DiskCache]:
    made = DiskCache(path, LEAST_BYTES, 0, 0.001)
    made.start()
    yield made
    made.close()


@pytest.mark.parametrize("size", [13, 50_000], ids=["scores", "vectors"])
def test_the_bound_holds_with_the_log_and_the_least_recently_used_go(path: Path, size: int) -> None:
    file = CacheFile(path, LEAST_BYTES, 0)
    batch = min(2000, 2_000_000 // size)
    most = last = 0
    while last < 3 * LEAST_BYTES // (size + 60):
        if last:
            _, old = file.read([key(0)])
            file.write({}, old)
        file.write({key(last + at): os.urandom(size) for at in range(batch)})
        last += batch
        most = max(most, file.size_bytes())
    assert LEAST_BYTES / 3 < most <= LEAST_BYTES
    found, _ = file.read([key(0), key(1), key(last - 1)])
    assert found.keys() == {key(0), key(last - 1)}, "the first one was used again and again"
    file.close()


def test_a_smaller_bound_shrinks_the_file(path: Path) -> None:
    large = CacheFile(path, 4 * LEAST_BYTES, 0)
    for start in range(0, 1500, 100):
        large.write({key(start + at): os.urandom(50_000) for at in range(100)})
    large.close()
    assert path.stat().st_size > 2 * LEAST_BYTES
    small = DiskCache(path, LEAST_BYTES, 0, 0.001)
    small.start()
    until(lambda: 0 < small.status().size_bytes <= LEAST_BYTES)
    assert small.find([key(0), key(1499)]).result(5).keys() == {key(1499)}
    small.close()


def test_a_value_is_forgotten_after_its_time(path: Path) -> None:
    file = CacheFile(path, LEAST_BYTES, ttl_s=100)
    file.write({key(1): b"old", key(2): b"new"})
    with sqlite3.connect(path) as database:
        database.execute("UPDATE entries SET at = at - 101 WHERE key = ?", (key(1),))
    assert file.read([key(1), key(2)])[0] == {key(2): b"new"}
    file.write({key(1): b"computed again"})
    assert file.read([key(1)])[0] == {key(1): b"computed again"}
    file.close()


def test_a_disk_that_does_not_answer_delays_one_request_by_a_tenth_of_a_second(path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    # A lock of the whole database, for which SQLite waits.
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    disk = DiskCache(path, LEAST_BYTES, 0, 0.001)
    disk.start()
    until(lambda: disk.status().problem == "another process has locked it")
    locked = disk.find([key(1)])
    assert disk.wait_s(1) == 0.1
    with pytest.raises(TimeoutError):
        locked.result(0.1)
    until(lambda: disk.find([key(1)]).done())
    started = time.monotonic()
    for _ in range(1000):
        assert disk.find([key(1)]).result(0) == {}
    assert time.monotonic() - started < 0.1
    other.close()
    disk.close()


def test_what_waits_to_be_written_is_bounded(disk: DiskCache) -> None:
    for number in range(200):
        disk.put(key(number), bytes(2**20))
    assert disk.status().dropped > 100


@pytest.mark.parametrize("name", ["bert-embedder"])
async def test_embeddings_are_the_same_after_a_restart(name: str, tmp_path: Path) -> None:
    settings = golden_settings(name, tmp_path / "home", cache_path=tmp_path / "cache", precision="f32")
    async with Reranker(settings) as reranker:
        first = await reranker.embed(TEXTS)
    async with Reranker(settings) as reranker:
        again = await reranker.embed(TEXTS)
        assert (again.vectors == first.vectors).all()
        assert again.cached_tokens == first.tokens == again.tokens and not first.cached_tokens
        other = await reranker.embed(TEXTS, input_type="query")
        assert not other.cached_tokens
    without = settings.model_copy(update={"vectors_disk_mb": 0})
    async with Reranker(without) as reranker:
        assert not (await reranker.embed(TEXTS)).cached_tokens


async def test_another_precision_engine_or_instruction_has_other_scores(tmp_path: Path) -> None:
    async def hits(asked: str = "bear", **more: object) -> int:
        settings = golden_settings(
            "bert-embedder", tmp_path / "home", cache_path=tmp_path / "cache", cache_entries=0, **more
        )
        async with Reranker(settings) as reranker:
            result = await reranker.rerank(asked, TEXTS)
            assert len(result.results) == len(TEXTS)
            return result.cached

    assert await hits(engine="openvino", precision="f32") == 0
    assert await hits(engine="openvino", precision="f32") == len(TEXTS)
    assert await hits(engine="openvino", precision="f32", asked="bread") == 0
    assert await hits(engine="llama") == 0
    assert await hits(engine="openvino", precision="f32", scoring={"document_prefix": "text: "}) == 0
    assert await hits(engine="openvino", precision="f32", scoring={"low": 0.2, "high": 0.9}) == len(TEXTS)


def test_the_digest_of_a_file_is_computed_once_for_each_content(tmp_path: Path) -> None:
    file, learned = tmp_path / "model.gguf", StateStore(tmp_path)
    file.write_bytes(b"one")
    known = content_identity.stamps([str(file)])
    first = content_identity.digest(known, learned)
    file.chmod(0o000)
    os.chmod(file, 0o600)
    now = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(now.st_atime_ns, now.st_mtime_ns))
    changed = content_identity.stamps([str(file)])
    assert changed != known and content_identity.digest(changed, learned) != first
    learned.put("content", str(file), {"stamp": list(changed[0][1:]), "sha256": "known"})
    assert content_identity.digest(changed, learned) == content_identity.digest(changed, learned) != first


async def test_a_file_that_changes_while_it_is_loaded_is_not_served_under_the_old_name(
    tmp_path: Path,
) -> None:
    settings = golden_settings("bert-embedder", tmp_path / "home", cache_path=tmp_path / "cache")
    async with Reranker(settings) as reranker:
        cache = reranker.registry.models[0].cache
        await cache.check_unchanged()
        cache._stamps = tuple(replace_inode(one) for one in cache._stamps)
        with pytest.raises(Exception, match="has changed while it was loaded"):
            await cache.check_unchanged()
        cache.set_engine("another")
        assert not cache.engine_environment


def replace_inode(stamp: tuple[str, int, int, int, int, int]) -> tuple[str, int, int, int, int, int]:
    name, device, inode, *rest = stamp
    return (name, device, inode + 1, *rest)  # type: ignore[return-value]


TRUNCATES = """
import os, sys
from pathlib import Path
from rerankd.cache_file import CacheFile

path = Path(sys.argv[1])
one, other = (CacheFile(path, 64 * 2**20, 0) for _ in range(2))
known = {os.urandom(16): os.urandom(1000) for _ in range(3000)}
one.write(known)
for size in (0, 100, 136, 4096, 16384, 32767):
    os.truncate(f"{path}-shm", size)
    assert other.read([*known])[0] == known
    os.truncate(f"{path}-shm", size)
    new = {os.urandom(16): os.urandom(1000) for _ in range(300)}
    one.write(new)
    known |= new
    assert one.read([*known])[0] == other.read([*known])[0] == known
for file in (one, other):
    os.truncate(f"{path}-shm", 0)
    file.close()
assert CacheFile(path, 64 * 2**20, 0).read([*known])[0] == known
print("whole")
"""


def test_a_truncated_index_file_neither_kills_the_process_nor_loses_a_value(path: Path) -> None:
    """SQLite maps it into memory, where what is missing is a SIGBUS."""
    ran = subprocess.run([sys.executable, "-c", TRUNCATES, str(path)], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "whole\n"), ran.stderr
