"""`rerankd ps`, `stop`, `restart`, `reload` and `logs`, on real servers."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from rerankd import files, logs, server_records
from rerankd.cli.show_logs import Follower
from support import GOLDEN, Program, environment, post, rerankd, start_serving, until

XLMR = str(GOLDEN / "xlmr-head.gguf")
Serve = Callable[..., Program]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    started = start_serving(tmp_path, XLMR)
    yield started  # type: ignore[misc]
    started.process.kill()
    started.process.wait()
    assert started.process.stderr is not None
    started.process.stderr.close()


def test_stop_waits_until_the_server_has_drained(program: Program, tmp_path: Path) -> None:
    listed = json.loads(rerankd("ps", "--json", home=tmp_path).stdout)
    assert [(one["pid"], one["url"].rpartition(":")[2]) for one in listed] == [
        (program.process.pid, program.url.rpartition(":")[2])
    ]
    ended = rerankd("stop", home=tmp_path)
    assert (ended.returncode, "has stopped" in ended.stderr) == (0, True)
    assert program.process.poll() == 0  # it had ended before the command did
    again = rerankd("stop", home=tmp_path)
    assert again.returncode == 1
    assert f"No server runs with the data folder {tmp_path}. To start one: rerankd serve" in again.stderr
    assert "No server runs" in rerankd("ps", home=tmp_path).stderr


def test_stop_does_not_stop_the_server_of_another_port(program: Program, tmp_path: Path) -> None:
    ended = rerankd("stop", home=tmp_path, RERANKD_PORT="9")
    port = program.url.rpartition(":")[2]
    assert (ended.returncode, program.process.poll()) == (2, None)
    assert "No server runs at the configured port 9, but one at http://localhost:" in ended.stderr
    assert f"RERANKD_PORT={port} rerankd" in ended.stderr
    assert rerankd("stop", home=tmp_path, RERANKD_PORT=port).returncode == 0


def test_a_folder_among_the_records_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "run" / "1.json").mkdir(parents=True)
    assert server_records.running(tmp_path) == []
    with server_records.recorded(tmp_path, "http://here:1", tmp_path / "log"):
        (own,) = server_records.running(tmp_path)
        assert own.pid == os.getpid()


def test_restart_keeps_the_process_and_its_arguments(program: Program, tmp_path: Path) -> None:
    (before,) = server_records.running(tmp_path)
    ended = rerankd("restart", home=tmp_path)
    assert (ended.returncode, "has started again" in ended.stderr) == (0, True), ended.stderr
    (after,) = server_records.running(tmp_path)
    assert (after.pid, after.since > before.since) == (before.pid, True)
    assert program.process.stderr is not None
    line = next(line for line in program.process.stderr if "API endpoint URL" in line)
    url = line.split()[-1]
    assert post(f"{url}/rerank", {"query": "q", "documents": ["a"]}).status_code == 200


def test_reload_without_a_model_reads_the_settings_again(tmp_path: Path) -> None:
    settings = tmp_path / "rerankd.toml"
    settings.write_text(f'model = "{XLMR}"\n')
    program = start_serving(tmp_path, "--config", str(settings))
    try:
        settings.write_text("prot = 1\n")
        ended = rerankd("reload", home=tmp_path)
        assert (ended.returncode, "reads its settings again" in ended.stderr) == (0, True)
        assert program.process.stderr is not None
        assert "the settings were not reloaded" in next(iter(program.process.stderr))
        until(lambda: "the settings were not reloaded" in rerankd("logs", "server", home=tmp_path).stdout)
    finally:
        program.stop()
        assert program.process.stderr is not None
        program.process.stderr.close()


def test_logs_show_the_server_and_its_engines(program: Program, tmp_path: Path) -> None:
    ended = rerankd("logs", "-n", "3", home=tmp_path)
    assert ended.returncode == 0
    assert "==> xlmr-head <==" in ended.stderr
    one = rerankd("logs", "xlmr-head", "-n", "2", home=tmp_path)
    assert one.stderr.splitlines() == ["==> xlmr-head <==", "==> xlmr-head-self-test <=="]
    assert len(one.stdout.splitlines()) == 4
    unknown = rerankd("logs", "nothing", home=tmp_path)
    assert (unknown.returncode, "Logs there: " in unknown.stderr) == (3, True)


def test_logs_follow_until_ctrl_c(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "m.log"
    log.parent.mkdir()
    log.write_text("one\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "rerankd", "logs", "m", "-f"],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "one\n"
    os.replace(log, log.with_suffix(".log.1"))
    log.write_text("two\n")
    assert process.stdout.readline() == "two\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert process.stderr.read() == ""
    process.stdout.close()
    process.stderr.close()


def test_a_follower_loses_no_line_at_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    follower, other = Follower(path), Follower(tmp_path / "a.log.1")
    assert (follower.last(5), follower.new()) == ([], [])
    path.write_text("one\ntw")
    assert follower.new() == ["one"]  # the file has appeared; its last line is not complete
    with path.open("a") as stream:
        stream.write("o\nthree\n")
    os.replace(path, tmp_path / "a.log.1")
    path.write_text("four\n")
    assert follower.new() == ["two", "three", "four"]
    path.write_text("5\n")  # emptied in place
    assert follower.new() == ["5"]
    assert other.last(2) == ["two", "three"]
    follower.close()
    other.close()


def test_the_log_file_is_rotated_and_a_full_disk_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    monkeypatch.setattr(files, "_LOG_BYTES", 200)
    try:
        path = tmp_path / "logs" / "server.log"
        logs.configure("info", "text", path)
        for at in range(5):
            logging.getLogger(f"rerankd.{at}").info("x" * 100)
        assert path.exists() and path.with_suffix(".log.1").exists()
        assert path.stat().st_mode & 0o777 == 0o600
        logs.configure("info", "text", Path("/dev/full"))
        logging.getLogger("rerankd").info("not on the disk")
        logs.configure("info", "text", Path("/proc/none/server.log"))
        logging.getLogger("rerankd").info("not on the disk either")
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers[:], root.level = before, level


def test_a_record_counts_only_while_its_process_runs(tmp_path: Path) -> None:
    with server_records.recorded(tmp_path, "http://localhost:1", tmp_path / "a.log"):
        (own,) = server_records.running(tmp_path)
        assert own.runs and not replace(own, started="0").runs and not replace(own, host="another").runs
        dead = replace(own, pid=2**22 + 1)
        elsewhere = replace(own, pid=5, host="another")
        for one in (dead, elsewhere):
            (tmp_path / "run" / f"{one.pid}.json").write_text(json.dumps(asdict(one)))
        (tmp_path / "run" / "broken.json").write_text("{")
        wrong = {**json.loads((tmp_path / "run" / f"{os.getpid()}.json").read_text()), "since": "today"}
        (tmp_path / "run" / "wrong.json").write_text(json.dumps(wrong))
        assert server_records.running(tmp_path) == [own]
    with server_records.recorded(
        tmp_path, "", tmp_path
    ):  # the next server removes what a killed one has left
        left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {f"{os.getpid()}.json", "5.json", "broken.json", "wrong.json"}


@pytest.mark.parametrize("verb", ["stop", "restart"])
def test_a_server_of_systemd_is_left_to_it(tmp_path: Path, verb: str) -> None:
    with server_records.recorded(tmp_path, "http://localhost:1", tmp_path):
        (own,) = server_records.running(tmp_path)
        record = replace(own, unit="rerankd.service")
        (tmp_path / "run" / f"{own.pid}.json").write_text(json.dumps(asdict(record)))
        ended = rerankd(verb, home=tmp_path)
    assert (ended.returncode, f"Use: systemctl {verb} rerankd.service" in ended.stderr) == (2, True)


def test_a_server_that_another_data_folder_has_is_named(program: Program, tmp_path: Path) -> None:
    port = program.url.rpartition(":")[2]
    ended = rerankd("stop", home=tmp_path / "other", RERANKD_PORT=port)
    assert ended.returncode == 2
    assert "runs with another data folder" in ended.stderr
    assert program.process.poll() is None


def test_of_several_servers_the_port_selects_one(tmp_path: Path) -> None:
    host = socket.gethostname()
    with server_records.recorded(tmp_path, "http://localhost:7001", tmp_path):
        (own,) = server_records.running(tmp_path)
        other = replace(own, url="http://localhost:7002", host=host)
        (tmp_path / "run" / "other.json").write_text(json.dumps(asdict(other)))
        ended = rerankd("reload", home=tmp_path)
        assert (ended.returncode, "Several servers run" in ended.stderr) == (2, True)
        received = threading.Event()
        before = signal.signal(signal.SIGHUP, lambda *_: received.set())
        try:
            assert rerankd("reload", home=tmp_path, RERANKD_PORT="7002").returncode == 0
            assert received.wait(5)
        finally:
            signal.signal(signal.SIGHUP, before)
