"""Persistent state: it survives restarts, is shared between services, and can be lost without harm."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rerankd.errors import DataFolderError
from rerankd.state import MOST_ENTRIES, MOST_VALUE_BYTES, VERSION, StateStore
from support import rerankd


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.at = 1_000_000.0

    def __call__(self) -> float:
        return self.at


def python(program: str, *arguments: str) -> subprocess.Popen[str]:
    """Run a program in a separate process."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_entries_survive_a_restart(tmp_path: Path) -> None:
    StateStore(tmp_path).put("precision", "model on cpu", {"precision": "bf16", "ratio": 1.7})
    assert StateStore(tmp_path).get("precision", "model on cpu") == {"precision": "bf16", "ratio": 1.7}
    assert StateStore(tmp_path).get("precision", "another") is None
    assert StateStore(tmp_path).sections() == ["precision"]


def test_an_entry_expires(tmp_path: Path) -> None:
    clock = Clock()
    store = StateStore(tmp_path, now=clock)
    store.put("quarantine", "digest", {"deaths": 2}, ttl_s=3600)
    store.put("quarantine", "for good", 1)
    clock.at += 3599
    assert store.get("quarantine", "digest") == {"deaths": 2}
    clock.at += 1
    assert store.get("quarantine", "digest") is None
    store.put("quarantine", "other", 1)
    assert list(json.loads((tmp_path / "state/quarantine.json").read_text())["entries"]) == [
        "for good",
        "other",
    ]


def test_an_entry_from_the_future_is_ignored(tmp_path: Path) -> None:
    clock = Clock()
    store = StateStore(tmp_path, now=clock)
    store.put("quarantine", "digest", 1, ttl_s=3600)
    clock.at -= 1e8
    assert store.get("quarantine", "digest") is None


_WRITER = """
import sys
from pathlib import Path
from rerankd.state import StateStore
store = StateStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for at in range(100):
    store.put("self_test", f"{sys.argv[2]} {at}", at)
"""


def test_services_that_share_a_data_folder_keep_each_others_entries(tmp_path: Path) -> None:
    writers = [python(_WRITER, str(tmp_path), name) for name in ("one", "two")]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    reader = StateStore(tmp_path)
    reader.entries("self_test")
    for writer in writers:
        writer.communicate("go\n", timeout=60)
        assert writer.returncode == 0
    expected = {f"{name} {at}": at for name in ("one", "two") for at in range(100)}
    assert {key: entry.value for key, entry in reader.entries("self_test").items()} == expected


def test_services_share_a_data_folder_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_supported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    # A test cannot mount a file system without flock.
    monkeypatch.setattr(fcntl, "flock", not_supported)
    one, two = StateStore(tmp_path), StateStore(tmp_path)
    one.put("precision", "a", 1)
    held = tmp_path / "state" / ".lock.held"
    assert not held.exists()
    held.touch()
    two.put("precision", "b", 2)  # another writer holds the lock for longer than the timeout
    assert two.get("precision", "b") == 2 and one.get("precision", "b") is None
    os.utime(held, (0, 0))  # that writer exited long ago
    two.put("precision", "c", 3)
    assert {key: entry.value for key, entry in one.entries("precision").items()} == {"a": 1, "b": 2, "c": 3}


def test_a_held_lock_delays_others_only_briefly(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.put("precision", "a", 1)
    with (tmp_path / "state" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        store.put("precision", "b", 2)
        assert store.get("precision", "b") == 2
        assert StateStore(tmp_path).get("precision", "b") is None
    store.put("precision", "c", 3)
    assert StateStore(tmp_path).get("precision", "b") == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"version": 1}',
        b'{"version": 1, "entries": {"a": 3}}',
        b'{"version": 1, "entries": {"a": [1, "x", null]}}',
        b"[" * 100_000,
        json.dumps({"version": VERSION + 1, "entries": {"a": [1, 2, None]}}).encode(),
    ],
    ids=lambda content: repr(content[:30]),
)
def test_a_damaged_or_newer_file_is_renamed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state" / "precision.json"
    path.parent.mkdir()
    path.write_bytes(content)
    store = StateStore(tmp_path)
    assert store.get("precision", "a") is None
    assert store.sections() == []
    store.put("precision", "b", 2)
    assert StateStore(tmp_path).get("precision", "b") == 2
    assert (tmp_path / "state" / "precision.aside.json").read_bytes() == content
    assert StateStore(tmp_path).sections() == ["precision"]


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "state" / "precision.json"
    path.parent.mkdir()
    with path.open("wb") as stream:
        stream.truncate(4 * 2**30)
    store = StateStore(tmp_path)
    assert store.get("precision", "a") is None
    store.put("precision", "a", 1)
    assert StateStore(tmp_path).get("precision", "a") == 1


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB, where this user may mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a file system takes root's rights")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_keeps_entries_in_memory(disk: Path) -> None:
    store = StateStore(disk)
    store.put("precision", "a", 1)
    with pytest.raises(OSError), (disk / "rest").open("wb") as stream:
        while True:
            stream.write(b"x" * 4096)
            stream.flush()
    store.put("precision", "b", 2)
    assert store.get("precision", "b") == 2
    assert StateStore(disk).get("precision", "a") == 1, "the old entry is intact"
    (disk / "rest").unlink()
    store.put("precision", "c", 3)
    assert StateStore(disk).get("precision", "b") == 2, "written as soon as space is free"


def test_a_read_only_data_folder_keeps_entries_in_memory(disk: Path) -> None:
    StateStore(disk).put("precision", "a", 1)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    store = StateStore(disk)
    store.put("precision", "b", 2)
    store.remove("precision", "a")
    assert (store.get("precision", "a"), store.get("precision", "b")) == (None, 2)
    assert StateStore(disk).get("precision", "a") == 1
    with pytest.raises(DataFolderError, match="can't be cleared"):
        store.clear()


_LIMITED = """
import resource, signal, sys
from pathlib import Path
from rerankd.state import StateStore
store = StateStore(Path(sys.argv[1]))
store.put("precision", "a", 1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50, resource.RLIM_INFINITY))
for at in range(3):
    store.put("precision", f"large {at}", "x" * 1000)
print(store.get("precision", "large 2") == "x" * 1000, StateStore(Path(sys.argv[1])).get("precision", "a"))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.put("precision", "b", 2)
"""


def test_an_interrupted_write_leaves_the_old_file_intact(tmp_path: Path) -> None:
    writer = python(_LIMITED, str(tmp_path))
    assert writer.communicate(timeout=60)[0] == "True 1\n"
    assert sorted(StateStore(tmp_path).entries("precision")) == ["a", "b", "large 0", "large 1", "large 2"]
    left = sorted(path.name for path in (tmp_path / "state").iterdir())
    assert left == [".lock", "precision.json"], "no partial file remains"


def test_an_unwritable_data_folder_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home = tmp_path / "home"
    home.write_text("a file where the folder should be: not even root can write below it")
    store = StateStore(home)
    with caplog.at_level(logging.WARNING, "rerankd"):
        store.put("precision", "a", {"precision": "f32"})
        store.put("precision", "b", 2)
        store.remove("precision", "b")
    assert store.get("precision", "a") == {"precision": "f32"}
    assert store.get("precision", "b") is None
    assert store.sections() == ["precision"]
    assert caplog.text.count("can't be written") == 1
    assert store.clear() == 1 and store.sections() == []


def test_size_is_limited_on_disk_and_in_memory(tmp_path: Path) -> None:
    full = {str(at): [at, 1.0, None] for at in range(MOST_ENTRIES)}
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "quarantine.json").write_text(json.dumps({"version": VERSION, "entries": full}))
    store = StateStore(tmp_path)
    store.put("quarantine", "new", 1)
    kept = list(StateStore(tmp_path).entries("quarantine"))
    assert len(kept) == MOST_ENTRIES and kept[0] == "1" and kept[-1] == "new"
    with pytest.raises(ValueError, match="limit is 16384"):
        store.put("quarantine", "huge", "x" * MOST_VALUE_BYTES)
    with pytest.raises(ValueError):
        store.put("quarantine", "no number", float("nan"))
    with pytest.raises(ValueError, match="section"):
        store.put("../models", "a", 1)
    in_memory = StateStore(folder / "quarantine.json")
    for at in range(MOST_ENTRIES + 5):
        in_memory.put("quarantine", str(at), at)
    assert len(in_memory.entries("quarantine")) == MOST_ENTRIES


def test_the_state_command_shows_and_clears_entries(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.put("precision", "e5 on this CPU", {"precision": "bf16"})
    store.put("quarantine", "c0ffee", {"deaths": 2}, ttl_s=3600)
    shown = rerankd("state", home=tmp_path)
    assert shown.returncode == 0
    assert [line.split("\t")[:3] for line in shown.stdout.splitlines()] == [
        ["precision", "e5 on this CPU", '{"precision": "bf16"}'],
        ["quarantine", "c0ffee", '{"deaths": 2}'],
    ]
    said = json.loads(rerankd("state", "--json", home=tmp_path).stdout)
    assert said["folder"] == str(tmp_path / "state")
    assert said["sections"]["quarantine"]["c0ffee"]["until"] > said["sections"]["quarantine"]["c0ffee"]["at"]
    wrong = rerankd("state", "clear", "precisions", home=tmp_path)
    assert wrong.returncode == 2 and "Sections: precision, quarantine." in wrong.stderr
    assert "entries deleted: 1" in rerankd("state", "clear", "precision", home=tmp_path).stderr
    assert store.get("precision", "e5 on this CPU") is None, "a running service sees the change"
    assert store.get("quarantine", "c0ffee") == {"deaths": 2}
    rerankd("state", "clear", home=tmp_path)
    assert store.sections() == [] and [path.name for path in store.folder.iterdir()] == [".lock"]
