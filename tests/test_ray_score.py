"""`rerankd ray score` and `rerankd.ray.Scorer` on real clusters on this machine."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("ray", reason="no Ray here: make test-ray")

import fake_engine
from support import ROOT, environment, rerankd, until, wait_until_gone
from test_score import WRONG_LINES, fake, json_lines, write_lines

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def env(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a job on the fake engine. Ray's sockets need a short path."""
    folder = tempfile.mkdtemp(prefix="ray-")
    Path(folder, "ray").mkdir()  # which a cluster of several nodes expects
    yield {**fake(tmp_path), "RAY_TMPDIR": folder}
    shutil.rmtree(folder, ignore_errors=True)


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*"))


def joined(folder: Path) -> list[Any]:
    return [row for part in parts(folder) for row in json_lines(part)]


def descendants(pid: int) -> dict[int, str]:
    """The command lines of the processes below a process."""
    by_parent: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            by_parent.setdefault(parent, []).append(int(stat.parent.name))
    found: dict[int, str] = {}
    left = [pid]
    while left:
        for child in by_parent.get(left.pop(), []):
            with contextlib.suppress(OSError):
                found[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
            left.append(child)
    return found


class Job:
    """`rerankd ray score` as a process that can be killed."""

    def __init__(self, source: Path, target: Path, home: Path, env: dict[str, str], *flags: str) -> None:
        self.target = target
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "rerankd",
                "ray",
                "score",
                str(source),
                str(target),
                "--raw-scores",
                *flags,
            ],
            env=environment(home, **env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_parts(self, least: int) -> None:
        until(lambda: len(parts(self.target)) >= least or self.process.poll() is not None, 120)
        assert self.process.poll() is None, self.process.communicate()

    def engines(self) -> list[int]:
        return [pid for pid, line in descendants(self.process.pid).items() if "fake_engine" in line]

    def end(self, how: signal.Signals) -> str:
        """Send a signal, and wait until the cluster has gone, with the engine."""
        below = descendants(self.process.pid)
        agents = [pid for pid, line in below.items() if re.match(r"ray::\w+Agent", line)]
        self.process.send_signal(how)
        _, errors = self.process.communicate(timeout=60)
        wait_until_gone([pid for pid in below if pid not in agents], 60)
        for pid in agents:  # after SIGKILL, Ray leaves them for some minutes
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return errors


def pairs(count: int) -> list[dict[str, Any]]:
    return [{"id": at, "query": f"q{at // 20}", "document": f"d{at}"} for at in range(count)]


def test_a_job_scores_as_the_command_for_one_machine_does(tmp_path: Path, home: Path) -> None:
    """With the built-in model. The parts one after the other are the same bytes."""
    source = write_lines(tmp_path / "in.jsonl", pairs(300))
    flags = ("--model", "builtin:e5", "--json")
    alone = rerankd("score", str(source), str(tmp_path / "out.jsonl"), *flags, home=home)
    assert alone.returncode == 0, alone.stderr
    target = tmp_path / "out"
    done = rerankd("ray", "score", str(source), str(target), "--part-rows", "100", *flags, home=home)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["rows"], report["failed"], report["output"]) == (300, 0, str(target))
    assert set(done.stderr.splitlines()) >= {"preparing the model on a node …", "scoring on the cluster …"}
    assert len(parts(target)) >= 3 and (target / "_SUCCESS").exists()
    ours, theirs = joined(target), json_lines(tmp_path / "out.jsonl")
    assert [row["id"] for row in ours] == [row["id"] for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)


def test_wrong_rows_get_their_reason_in_each_format(tmp_path: Path, home: Path, env: dict[str, str]) -> None:
    """What the parts hold is what `rerankd score` writes. One cluster for all: it is started apart."""
    lines = [line for wrong in WRONG_LINES for line in (wrong, '{"query": "q", "document": "d"}')]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    (tmp_path / "in.csv").write_text(
        'query,document\nq,"a\n\nb"\nq\nq,d,more\n,d\nq," "\n' + "".join(f"q,d{at}\n" for at in range(50))
    )
    with cluster(env) as address:
        for suffix in (".jsonl", ".csv"):
            source, alone, target = (
                tmp_path / f"in{suffix}",
                tmp_path / f"out{suffix}",
                tmp_path / f"out{suffix}s",
            )
            done = rerankd("score", str(source), str(alone), "--raw-scores", home=home, **env)
            assert done.returncode == 0, done.stderr
            flags = ("--raw-scores", "--part-rows", "7", "--address", address)
            on_ray = rerankd("ray", "score", str(source), str(target), *flags, home=home, **env)
            assert on_ray.returncode == 0, on_ray.stderr
            assert done.stdout.splitlines()[1] == on_ray.stdout.splitlines()[1]
            assert len(parts(target)) > 1
            header = alone.read_bytes().splitlines(keepends=True)[0] if suffix == ".csv" else b""
            texts = [part.read_bytes().removeprefix(header) for part in parts(target)]
            assert header + b"".join(texts) == alone.read_bytes()


@contextlib.contextmanager
def cluster(env: dict[str, str]) -> Iterator[str]:
    """Run a cluster of two nodes of one CPU, in a process of its own; yields its address."""
    program = (
        "import sys, rerankd.ray\n"
        "from ray.cluster_utils import Cluster\n"
        "args = {'num_cpus': 1, 'object_store_memory': 80 * 2**20}\n"
        f"cluster = Cluster(initialize_head=True, head_node_args={{**args, 'include_dashboard': False,"
        f" 'temp_dir': {env['RAY_TMPDIR']!r}}})\n"
        "cluster.add_node(**args)\n"
        "print(cluster.address, flush=True)\n"
        "sys.stdin.read()\n"
        "cluster.shutdown()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "the cluster did not start"
        below = list(descendants(process.pid))
        yield address
        process.stdin.close()
        process.wait(60)
    wait_until_gone(below, 60)


def test_a_job_that_is_stopped_three_times_has_every_row_once(
    tmp_path: Path, home: Path, env: dict[str, str]
) -> None:
    count = 40_000
    source, target = write_lines(tmp_path / "in.jsonl", pairs(count)), tmp_path / "out"
    kept = 0
    for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        job = Job(source, target, home, env)
        job.wait_for_parts(kept + 1)
        said = job.end(how)
        assert kept < len(parts(target))
        kept = len(parts(target))
        assert not (target / "_SUCCESS").exists()
        assert how == signal.SIGKILL or ("go on" in said and "Traceback" not in said and "***" not in said)
    stamps = {path: path.stat().st_mtime_ns for path in parts(target)}
    done = rerankd("ray", "score", str(source), str(target), "--raw-scores", "--json", home=home, **env)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["rows"] == count and 0 < report["earlier"] < count
    # The parts that were there are not written again.
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert not list(target.glob("*.new"))
    for at, row in enumerate(joined(target)):
        assert (row["id"], row["score"]) == (at, fake_engine.raw(row["query"], row["document"]))
    assert at == count - 1
    again = rerankd("ray", "score", str(source), str(target), "--raw-scores", home=home, **env)
    assert again.returncode == 2 and "is complete" in again.stderr


def test_a_job_goes_on_when_an_actor_or_its_engine_is_killed(
    tmp_path: Path, home: Path, env: dict[str, str]
) -> None:
    """And the engine of the actor ends with it."""
    count = 40_000
    source, target = write_lines(tmp_path / "in.jsonl", pairs(count)), tmp_path / "out"
    job = Job(source, target, home, env)
    job.wait_for_parts(1)
    (engine,) = job.engines()
    os.kill(engine, signal.SIGKILL)
    job.wait_for_parts(3)
    (engine,) = job.engines()
    actor = next(
        pid for pid, line in descendants(job.process.pid).items() if line.startswith("ray::MapWorker")
    )
    os.kill(actor, signal.SIGKILL)
    wait_until_gone([engine])
    assert job.process.wait(120) == 0, job.process.communicate()
    job.process.communicate()
    for at, row in enumerate(joined(target)):
        assert (row["id"], row["score"]) == (at, fake_engine.raw(row["query"], row["document"]))
    assert at == count - 1


def test_a_job_goes_on_only_if_nothing_that_matters_has_changed(
    tmp_path: Path, home: Path, env: dict[str, str]
) -> None:
    source, target = write_lines(tmp_path / "in.jsonl", pairs(40_000)), tmp_path / "out"
    job = Job(source, target, home, env)
    job.wait_for_parts(1)
    job.end(signal.SIGKILL)
    with cluster(env) as address:

        def again(*flags: str) -> str:
            done = rerankd(
                "ray", "score", str(source), str(target), "--address", address, *flags, home=home, **env
            )
            return done.stderr if done.returncode else ""

        assert "differs in: kind of score" in again()
        write_lines(source, pairs(3))
        assert "input" in again("--raw-scores")
        (target / "_job.json").write_text("[")
        assert "damaged" in again("--raw-scores")
        assert again("--restart") == ""
    assert [row["id"] for row in joined(target)] == [0, 1, 2] and len(parts(target)) == 1


def test_a_saved_dataset_and_a_web_server_are_read(tmp_path: Path, home: Path, env: dict[str, str]) -> None:
    datasets = pytest.importorskip("datasets", reason="make test-ray")
    rows = pairs(3000)
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"), num_shards=2)
    (tmp_path / "web").mkdir()
    write_lines(tmp_path / "web" / "in.jsonl", rows)
    flags = ("--raw-scores", "--part-rows", "1000", "--json")
    with cluster(env) as address, files_at(tmp_path / "web", has_ranges=True) as url:
        for source in (str(tmp_path / "saved"), f"{url}/in.jsonl"):
            target = tmp_path / f"out-{'web' if '://' in source else 'saved'}"
            done = rerankd(
                "ray", "score", source, str(target), *flags, "--address", address, home=home, **env
            )
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["rows"] == 3000 and len(parts(target)) >= 3
            found = (
                joined(target)
                if "://" in source
                else [row for part in parts(target) for row in pq.read_table(part).to_pylist()]
            )
            assert [{key: row[key] for key in rows[0]} for row in found] == rows
            assert all(row["score"] == fake_engine.raw(row["query"], row["document"]) for row in found)


class Files(http.server.SimpleHTTPRequestHandler):
    """A folder over HTTP, with ranges or without."""

    has_ranges = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        whole = not (wanted and self.has_ranges)
        self.send_response(200 if whole else 206)
        if not whole:
            assert wanted is not None
            first, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            data = data[first : last + 1]
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def files_at(folder: Path, *, has_ranges: bool) -> Iterator[str]:
    handler = type("Handler", (Files,), {"has_ranges": has_ranges})
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *given: handler(*given, directory=str(folder))
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("name", "content", "flags", "says"),
    [
        ("no.jsonl", None, [], "does not exist"),
        ("in.jsonl", b"", [], "has no rows"),
        ("in.csv", b"query;document\na;b\n", [], "--delimiter ';'"),
        ("in.csv", b"query,document\n", [], "has no rows"),
        ("in.csv", b'query,document\na,"' + b"x" * 17_000_000, [], "line 2: field larger"),
        ("in.csv", b"query,document\nq,a\n", ["--score-column", "error"], "both 'error'"),
        ("in.parquet", b"PAR1 not really", [], "can't be read as Parquet"),
        ("in.jsonl", b"{}", ["--delimiter", ";"], "only for CSV"),
        ("in.jsonl", b"{}", ["--address", "127.0.0.1:1"], "could not be reached at 127.0.0.1:1"),
        ("in.jsonl", b"{}", ["--part-rows", "0"], "--part-rows"),
    ],
)  # fmt: skip
def test_jobs_that_are_refused_before_ray_starts(
    tmp_path: Path,
    home: Path,
    env: dict[str, str],
    name: str,
    content: bytes | None,
    flags: list[str],
    says: str,
) -> None:
    source, target = tmp_path / name, tmp_path / "out"
    if content is not None:
        source.write_bytes(content)
    done = rerankd("ray", "score", str(source), str(target), *flags, home=home, **env)
    assert done.returncode == (4 if "--address" in flags else 2) and says in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not target.exists()


def test_a_server_without_ranges_is_refused(tmp_path: Path, home: Path, env: dict[str, str]) -> None:
    (tmp_path / "in.jsonl").write_text('{"query": "q", "document": "d"}\n' * 20_000)
    with files_at(tmp_path, has_ranges=False) as url:
        done = rerankd("ray", "score", f"{url}/in.jsonl", str(tmp_path / "out"), home=home, **env)
        assert done.returncode == 2 and "can't be read in parts" in done.stderr
        gone = rerankd("ray", "score", f"{url}/no.jsonl", str(tmp_path / "out"), home=home, **env)
        assert gone.returncode == 2 and "does not exist" in gone.stderr


def test_outputs_that_hold_something_else_are_refused(
    tmp_path: Path, home: Path, env: dict[str, str]
) -> None:
    source = write_lines(tmp_path / "in.jsonl", pairs(3))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    for target, says in ((tmp_path / "other", "exists"), (source, "is a file")):
        done = rerankd("ray", "score", str(source), str(target), "--restart", home=home, **env)
        assert done.returncode == 2 and says in done.stderr, done.stderr
    assert (tmp_path / "other" / "notes.txt").exists() and source.exists()


def test_a_model_that_is_missing_ends_the_job_with_its_own_error(
    tmp_path: Path, home: Path, env: dict[str, str]
) -> None:
    source = write_lines(tmp_path / "in.jsonl", pairs(3))
    done = rerankd("ray", "score", str(source), str(tmp_path / "out"), "--model", "no.gguf", home=home, **env)
    assert done.returncode == 3 and "no.gguf" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_the_example_of_the_scorer_runs(tmp_path: Path, home: Path, env: dict[str, str]) -> None:
    """That of docs/ray.md, with the fake engine and local files; a pair that is wrong gets its reason."""
    rows = [
        {"id": at, "question": f"q{at // 20}", "document": f"d{at}" if at % 100 else None}
        for at in range(2000)
    ]
    (tmp_path / "pairs").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs" / "0.parquet")
    (code,) = re.findall(
        r"^```py\n(.*?)^```$", (ROOT / "docs" / "ray.md").read_text(), re.DOTALL | re.MULTILINE
    )
    for here, there in (
        ("s3://bucket", str(tmp_path)),
        ('"model": "qwen3-reranker-0.6b"', '"raw_scores": True'),
        ("concurrency=4", "concurrency=1"),
        ("num_gpus=1", "num_gpus=0"),
    ):
        assert here in code
        code = code.replace(here, there)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(home, **env),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = sorted(pq.read_table(tmp_path / "scored").to_pylist(), key=lambda row: row["id"])
    assert [{key: row[key] for key in rows[0]} for row in found] == rows
    for row in found:
        if row["document"] is None:
            assert row["score"] is None and "empty" in row["error"]
        else:
            assert row["score"] == fake_engine.raw(row["question"], row["document"]) and row["error"] is None
