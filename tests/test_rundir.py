"""The run directory: ownership, location, cleanup after dead services, and recreation."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rerankd import processes
from rerankd.errors import DataFolderError
from rerankd.process import rundir


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="rd-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def orphan(base: Path) -> Any:
    """A process in its own process group, like an engine of a killed service."""
    code = "import time; print('up', flush=True); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(base / "x.sock")], stdout=subprocess.PIPE, start_new_session=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child
        child.kill()


def dead_service(base: Path, engine: processes.Identity) -> Path:
    """Create the run directory of a killed service."""
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    folder = base / f"rerankd-{gone.pid}-abc01234"
    folder.mkdir(mode=0o700)
    (folder / "owner.json").write_text(json.dumps({"pid": gone.pid, "started": "1", "command": "x"}))
    noted = {"pid": engine.pid, "started": engine.started, "command": engine.command}
    (folder / f"{engine.pid}.json").write_text(json.dumps(noted))
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / "1.sock"))
    return folder


def test_an_engine_of_an_earlier_run_is_killed_at_start(base: Path, orphan: subprocess.Popen[bytes]) -> None:
    engine = processes.identify(orphan.pid)
    assert engine is not None
    folder = dead_service(base, engine)
    made = rundir.make(base)
    assert orphan.wait(5) == -signal.SIGKILL
    assert not folder.exists()
    assert made.make().stat().st_mode & 0o777 == 0o700


def test_a_process_that_reuses_a_pid_is_left_alone(base: Path, orphan: subprocess.Popen[bytes]) -> None:
    engine = processes.identify(orphan.pid)
    assert engine is not None
    folder = dead_service(base, replace(engine, started="long ago"))
    rundir.make(base)
    assert orphan.poll() is None
    assert not folder.exists()


def test_the_folder_of_a_running_service_is_left_alone(base: Path) -> None:
    first, second = rundir.make(base), rundir.make(base)
    assert first.make() != second.make() and len(list(base.iterdir())) == 2
    first.remove()
    second.remove()
    assert list(base.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"pid": "x", "started": 1}', "\x00"])
def test_a_damaged_note_is_ignored(base: Path, text: str, orphan: subprocess.Popen[bytes]) -> None:
    engine = processes.identify(orphan.pid)
    assert engine is not None
    folder = dead_service(base, engine)
    for path in folder.glob("*.json"):
        path.write_text(text)
    rundir.make(base)
    assert orphan.poll() is None


def test_a_process_is_identified_by_its_start_time(orphan: subprocess.Popen[bytes]) -> None:
    engine = processes.identify(orphan.pid)
    assert engine is not None
    assert "time.sleep(600)" in engine.command
    assert processes.identify(orphan.pid) == engine
    assert (processes.memory_bytes(orphan.pid) or 0) > 2**20
    processes.end_group(orphan.pid)
    orphan.wait(5)
    assert processes.identify(orphan.pid) is None
    assert processes.memory_bytes(orphan.pid) is None
    processes.end_group(orphan.pid)


def test_a_service_in_another_pid_namespace_is_recognized_as_running(base: Path) -> None:
    """As with two containers that share /tmp."""
    mine = rundir.make(base)
    code = "import pathlib, sys, rerankd.process.rundir as it; it.make(pathlib.Path(sys.argv[1])).remove()"
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code, str(base)],
        capture_output=True,
        text=True,
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("this container may not make a pid namespace")
    assert done.returncode == 0, done.stderr
    assert list(base.iterdir()) == [mine.make()]
    mine.remove()


def test_the_folder_of_a_running_service_0_1_is_left_alone(base: Path) -> None:
    """rerankd 0.1 took no lock but wrote its pid."""
    with subprocess.Popen(["sleep", "60"]) as old:
        identity = processes.identify(old.pid)
        assert identity is not None
        folder = base / f"rerankd-{old.pid}-abc01234"
        folder.mkdir(mode=0o700)
        noted = {"pid": old.pid, "started": identity.started, "command": identity.command}
        (folder / "owner.json").write_text(json.dumps(noted))
        rundir.make(base).remove()
        assert folder.exists()
        old.kill()
    rundir.make(base).remove()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("rerankd-my-backup", "1.sock"),
        ("rerankd-release-ki8hp79k", "1.json"),
        ("rerankd-4194303-abc01234", "notes.txt"),
        ("rerankd-4194303-abc01234", "environment/pyvenv.cfg"),
    ],
)
def test_a_users_folder_with_a_similar_name_is_left_alone(base: Path, name: str, file: str) -> None:
    kept = base / name / file
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    rundir.make(base).remove()
    assert kept.read_text() == "mine"


def test_a_removed_folder_is_recreated(base: Path) -> None:
    one = rundir.make(base)
    first = one.make()
    assert one.make() == first
    first.rmdir()
    assert one.socket().parent.is_dir()
    second = one.make()
    second.rename(base / "elsewhere")
    second.mkdir()  # another folder of the same name
    assert one.make() not in (first, second)
    one.remove()


@pytest.mark.parametrize("spare", [0, -1])
def test_a_path_too_long_for_a_socket_is_rejected(base: Path, spare: int) -> None:
    own = len("/rerankd-4194304-01234567/012345.sock")
    length = rundir.SOCKET_PATH_BYTES - own - spare
    folder = base / ("x" * (length - len(os.fsencode(base)) - 1))
    folder.mkdir()
    if spare < 0:
        with pytest.raises(DataFolderError, match="too long for a socket path"):
            rundir.make(folder)
        return
    made = rundir.make(folder)
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(made.socket()))
    made.remove()


def test_without_a_usable_folder_the_error_explains_what_to_do(base: Path) -> None:
    with pytest.raises(DataFolderError, match=r"gone \(does not exist\).*XDG_RUNTIME_DIR"):
        rundir.make(base / "gone")


@pytest.mark.parametrize(
    ("environ", "first"),
    [
        ({"XDG_RUNTIME_DIR": "/run/user/1000"}, tempfile.gettempdir()),
        ({"XDG_RUNTIME_DIR": "/run/user/1000", "INVOCATION_ID": "a0"}, "/run/user/1000"),
        ({"XDG_RUNTIME_DIR": "/run/mine"}, "/run/mine"),
        ({"XDG_RUNTIME_DIR": "/run/user/1000", "RUNTIME_DIRECTORY": "/run/rerankd:/run/x"}, "/run/rerankd"),
        ({}, tempfile.gettempdir()),
    ],
)
def test_a_logins_runtime_folder_is_used_only_in_a_unit(environ: dict[str, str], first: str) -> None:
    found = list(rundir.places(environ))
    assert (found[0], found[-1]) == (Path(first), Path("/tmp"))
