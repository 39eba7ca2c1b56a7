"""`rerankd score`: the formats, rows that are wrong, and jobs that are stopped."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fake_engine
from rerankd.bulk import job as bulk_job
from rerankd.bulk.formats import format_of
from rerankd.bulk.parts import Parts
from rerankd.bulk.row_scorer import Kind
from rerankd.bulk.rows import Chunk, Columns, Pair, Scored, groups
from rerankd.config import Settings
from rerankd.errors import BulkError
from rerankd.serving.prepare_model import prepare
from support import environment, rerankd, suspend
from test_calibration import CALIBRATION

MODEL = Path(__file__).parent / "golden" / "xlmr-head.gguf"


def fake(tmp_path: Path, *flags: str) -> dict[str, str]:
    """The environment of a job on the fake engine, which scores as `fake_engine.raw` does."""
    return {
        "RERANKD_MODEL": str(MODEL),
        "RERANKD_ENGINE": "llama",
        "LLAMA_PATH": str(fake_engine.install(tmp_path, *flags)),
    }


def json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_a_real_model_scores_each_row_as_the_service_does(tmp_path: Path, home: Path) -> None:
    rows = [
        {"query": "what is a panda?", "document": "a bear of China", "id": 1, "price": 1.10},
        {"query": "how is bread made?", "document": "it is baked", "id": 2},
        {"query": "what is a panda?", "document": "bread is baked", "id": 3},
    ]
    source, target = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    done = rerankd("score", str(source), str(target), "--model", "builtin:e5", "--json", home=home)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 3
    found = json_lines(target)
    assert [{key: row[key] for key in row if key not in ("score", "error")} for row in found] == rows
    answer = rerankd(
        "rerank", "what is a panda?", "--model", "builtin:e5", "--json",
        home=home, stdin="a bear of China\nbread is baked\n",
    )  # fmt: skip
    expected = {row["text"]: row["relevance_score"] for row in json.loads(answer.stdout)["results"]}
    for row in (found[0], found[2]):
        assert row["score"] == pytest.approx(expected[row["document"]], abs=1e-6)
    assert found[0]["score"] > found[2]["score"]
    assert not Path(f"{target}.parts").exists()


WRONG_LINES = {
    '{"query": "q"': "not valid JSON",
    "[1]": "not a JSON object",
    '{"query": "q"}': "'document' is missing",
    '{"query": "q", "document": 3}': "is a number",
    '{"query": "q", "document": null}': "is empty",
    '{"query": "q", "document": " "}': "blank",
    '{"query": "", "document": "d"}': "query is empty",
    '{"query": "q", "document": "\\ud800"}': "not valid Unicode",
    '{"query": "q", "document": "d", "score": 1}': "already has a field 'score'",
    "[" * 100_000: "not valid JSON",
}


def test_wrong_lines_get_their_reason_and_are_kept(tmp_path: Path, home: Path) -> None:
    invalid = b'{"query": "q", "document": "t\xe9"}\n'
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    right = '{"query": "q", "document": "d%d", "id": 12345678901234567890, "x": 1.10, "e": {}}'
    lines = [line for at, wrong in enumerate(WRONG_LINES) for line in (wrong, "", right % at, "  ")]
    source.write_bytes("\n".join(lines).encode() + b"\n" + invalid)
    done = rerankd("score", str(source), str(target), "--raw-scores", home=home, **fake(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"{len(WRONG_LINES) + 1} rows have no score" in done.stdout
    *written, last = target.read_bytes().splitlines()
    assert last.startswith(invalid[:-2]) and b"not valid Unicode" in last
    found = [json.loads(line) for line in written]
    for at, (line, reason) in enumerate(WRONG_LINES.items()):
        wrong, scored = found[2 * at : 2 * at + 2]
        assert wrong["score"] is None and reason in wrong["error"], wrong
        kept = dict(wrong, error=None)
        assert line in (
            kept.get("line"),
            json.dumps({k: kept[k] for k in kept if k not in ("score", "error")}),
        )
        assert scored["error"] is None
        assert scored["score"] == fake_engine.raw("q", f"d{at}")
        # The text of the input, not another spelling of its numbers.
        assert written[2 * at + 1].decode().startswith((right % at)[:-1])


def test_a_row_that_is_too_long_or_crashes_the_engine_harms_no_other(tmp_path: Path, home: Path) -> None:
    documents = ["a", "x" * 1_000_001, "poison", "b"]
    source = write_lines(tmp_path / "in.jsonl", [{"query": "q", "document": one} for one in documents])
    target = tmp_path / "out.jsonl"
    crashing = fake(tmp_path, "--crash-on", "poison")
    done = rerankd("score", str(source), str(target), "--raw-scores", home=home, **crashing)
    assert done.returncode == 0, done.stderr
    first, long, poison, last = json_lines(target)
    assert [first["score"], last["score"]] == [fake_engine.raw("q", "a"), fake_engine.raw("q", "b")]
    assert "1000001 characters" in long["error"] and long["score"] is None
    assert "crashed" in poison["error"] and poison["score"] is None


def test_a_job_without_any_score_is_no_success(tmp_path: Path, home: Path) -> None:
    """As for a file in another encoding; the rows with their reasons are written."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    line = json.dumps({"query": "q", "document": "für"}, ensure_ascii=False) + "\n"
    source.write_bytes(line.encode("latin-1") * 3)
    done = rerankd("score", str(source), str(target), home=home, **fake(tmp_path))
    assert done.returncode == 1
    assert "No row has a score. The first error: The column document is not valid Unicode." in done.stdout
    assert len(target.read_bytes().splitlines()) == 3
    again = rerankd("score", str(source), f"{target}2.jsonl", "--json", home=home, **fake(tmp_path))
    assert (again.returncode, json.loads(again.stdout)["failed"]) == (1, 3)


def test_utf_16_without_a_byte_order_mark_is_read(tmp_path: Path, home: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    line = json.dumps({"query": "q", "document": "für"}, ensure_ascii=False) + "\n"
    source.write_bytes(line.encode("utf-16-le"))
    done = rerankd("score", str(source), str(target), "--raw-scores", home=home, **fake(tmp_path))
    assert done.returncode == 0, done.stderr
    (row,) = json_lines(target)
    assert (row["document"], row["score"]) == ("für", fake_engine.raw("q", "für"))


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t"), (".csv", ";")])
def test_csv_keeps_its_columns_and_values(tmp_path: Path, home: Path, suffix: str, delimiter: str) -> None:
    source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    rows = [
        ["id", "Frage", "text"],
        ["007", "q", f'a "quoted" value{delimiter} and\ntwo lines'],
        ["1e5", "q", "d\x0c\u2028d"],
        ["3", "q"],
        ["4", "q", "d", "more"],
    ]
    with source.open("w", newline="", encoding="utf-8-sig") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)
    flags = ["--query-column", "Frage", "--document-column", "text", "--raw-scores"]
    flags += ["--delimiter", ";"] if delimiter == ";" else []
    done = rerankd("score", str(source), str(target), *flags, home=home, **fake(tmp_path))
    assert done.returncode == 0, done.stderr
    with target.open(newline="", encoding="utf-8") as stream:
        names, first, second, short, long = csv.reader(stream, delimiter=delimiter)
    assert names == [*rows[0], "score", "error"]
    assert first == [*rows[1], repr(fake_engine.raw("q", rows[1][2])), ""]
    assert second[:3] == rows[2] and float(second[3]) == fake_engine.raw("q", rows[2][2])
    assert short[:4] == ["3", "q", "", ""] and "2 values" in short[4]
    assert long[:4] == ["4", "q", "d", ""] and "more" in long[4]


def test_parquet_keeps_its_columns_and_types(tmp_path: Path, home: Path) -> None:
    count = 700
    table = pa.table(
        {
            "id": pa.array(range(count), pa.int16()),
            "query": pa.array([f"q{at // 5}" for at in range(count)]).dictionary_encode(),
            "document": pa.array([f"d{at}" if at % 100 else None for at in range(count)], pa.large_string()),
            "tags": pa.array([["a"] * (at % 3) for at in range(count)]),
        }
    )
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(table, source, row_group_size=130)
    done = rerankd("score", str(source), str(target), "--raw-scores", home=home, **fake(tmp_path))
    assert done.returncode == 0, done.stderr
    found = pq.read_table(target)
    assert found.select(table.column_names).equals(table)
    for row in found.to_pylist():
        if row["document"] is None:
            assert row["score"] is None and "empty" in row["error"]
        else:
            assert row["score"] == fake_engine.raw(row["query"], row["document"]) and row["error"] is None


def test_an_instruction_of_a_row_replaces_that_of_the_command(tmp_path: Path) -> None:
    rows = [{"query": "q", "document": "a", "how": how} for how in ("x", "", None, "x")]
    source = write_lines(tmp_path / "in.jsonl", [*rows, {"query": "q", "document": "a"}])
    found = format_of(source, tmp_path / "out.jsonl", None)
    (chunk,) = found.chunks(source, Columns(instruction="how"), 0)
    by_instruction = [(group.instruction, group.rows) for group in groups(chunk.pairs)]
    assert by_instruction == [("x", (0, 3)), (None, (1, 2, 4))]


def test_requests_are_bounded_in_characters() -> None:
    pairs = [Pair("q", "x" * 400_000)] * 5 + [Pair("q", "x" * 3_000_000), Pair("q", "x")]
    assert [group.rows for group in groups(pairs)] == [(0, 1), (2, 3), (4,), (5,), (6,)]


class Job:
    """`rerankd score` as a process that can be killed."""

    def __init__(self, source: Path, target: Path, home: Path, env: dict[str, str]) -> None:
        self.parts = Path(f"{target}.parts")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rerankd", "score", str(source), str(target), "--raw-scores"],
            env=environment(home, **env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def rows(self) -> int:
        """How many rows are kept."""
        with contextlib.suppress(FileNotFoundError):
            return max((int(path.name[13:]) for path in self.parts.glob("0*-*[0-9]")), default=0)
        return 0

    def peak_mib(self) -> float:
        """The most memory that its program has taken so far; 0 after its end. The kernel's figure at the end
        (wait4) would include that of the tests, from which the process was forked."""
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            if "VmHWM:" in status:
                return int(status.split("VmHWM:")[1].split()[0]) / 1024
        return 0.0

    def wait_for_rows(self, least: int) -> None:
        pause = threading.Event()
        while self.rows() < least and self.process.poll() is None:
            pause.wait(0.01)
        assert self.rows() >= least, self.process.communicate()

    def end(self, how: signal.Signals) -> str:
        self.process.send_signal(how)
        _, errors = self.process.communicate(timeout=60)
        return errors


def test_a_job_that_is_stopped_three_times_has_every_row_once(tmp_path: Path, home: Path) -> None:
    count = 120_000
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = ({"id": at, "query": f"q{at // 20}", "document": f"d{at}"} for at in range(count))
    write_lines(source, list(rows))
    env = fake(tmp_path)
    kept = 0
    for how in (signal.SIGKILL, signal.SIGKILL, signal.SIGINT):
        job = Job(source, target, home, env)
        job.wait_for_rows(kept + 1)
        said = job.end(how)
        assert job.rows() > kept
        kept = job.rows()
        assert not target.exists()
    assert f"{kept:,} rows are kept in {job.parts}" in said
    done = rerankd("score", str(source), str(target), "--raw-scores", "--json", home=home, **env)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["rows"], report["earlier"], report["failed"]) == (count, kept, 0)
    assert not job.parts.exists()
    with target.open() as stream:
        for at, line in enumerate(stream):
            row = json.loads(line)
            assert (row["id"], row["score"]) == (at, fake_engine.raw(row["query"], row["document"]))
    assert at == count - 1


def test_memory_does_not_grow_with_the_file(tmp_path: Path, home: Path) -> None:
    count, more = 120_000, "x" * 1000
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    with source.open("w") as stream:
        for at in range(count):
            stream.write(f'{{"query": "q{at // 20}", "document": "d{at}", "more": "{more}"}}\n')
    job = Job(source, target, home, fake(tmp_path))
    peaks = []
    for least in (1, 100_000):
        job.wait_for_rows(least)
        peaks.append(job.peak_mib())
    assert job.process.wait(60) == 0, job.process.communicate()
    job.process.communicate()
    # 80,000 rows are 80 MiB. The score cache has grown by 24 MiB meanwhile (300 bytes an entry), and it is
    # bounded.
    assert peaks[1] - peaks[0] < 48, peaks


def test_a_job_goes_on_only_if_nothing_that_matters_has_changed(tmp_path: Path, home: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_lines(source, [{"query": "q", "document": f"d{at}"} for at in range(60_000)])
    env = fake(tmp_path)
    job = Job(source, target, home, env)
    job.wait_for_rows(1)
    job.end(signal.SIGKILL)

    def again(*flags: str) -> str:
        done = rerankd("score", str(source), str(target), *flags, home=home, **env)
        return done.stderr if done.returncode else ""

    assert "kind of score" in again()
    with source.open("a") as stream:
        stream.write("{}\n")
    assert "input" in again("--raw-scores")
    (job.parts / "job.json").write_text("[")
    assert "damaged" in again("--raw-scores")
    assert again("--restart") == ""
    assert all(0 <= row["score"] <= 1 for row in json_lines(target)[:-1])
    assert "exists" in again()


def test_a_calibration_changes_a_job_but_not_one_of_raw_scores(tmp_path: Path, home: Path) -> None:
    """Else the rows after a stop would have another scale than those before it."""
    source = write_lines(tmp_path / "in.jsonl", [{"query": "q", "document": "d"}])
    plain = prepare(Settings(model=(str(MODEL),), home=home))
    calibrated = replace(plain, resolution=replace(plain.resolution, calibration=CALIBRATION))
    columns = Columns("query", "document", "", "score", "error")
    for raw, differs in ((False, {"calibration"}), (True, set())):
        what = bulk_job.Job(source, format_of(source, source, None), columns, Kind(raw))
        one, other = bulk_job.identity(what, plain), bulk_job.identity(what, calibrated)
        assert {name for name in one if one[name] != other[name]} == differs


def test_a_cascade_is_refused_before_a_folder_is_made(tmp_path: Path, home: Path) -> None:
    settings = tmp_path / "rerankd.toml"
    settings.write_text('[models.both]\nstages = ["a.gguf", {model = "b.gguf", keep = 3}]\n')
    source = write_lines(tmp_path / "in.jsonl", [{"query": "q", "document": "d"}])
    refused = rerankd("score", str(source), str(tmp_path / "out.jsonl"), "--config", str(settings), home=home)
    assert refused.returncode == 2
    assert "both is a cascade" in refused.stderr and "--model b.gguf" in refused.stderr
    assert not (tmp_path / "out.jsonl.parts").exists()


def test_one_output_has_one_job_at_a_time(tmp_path: Path, home: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_lines(source, [{"query": "q", "document": f"d{at}"} for at in range(60_000)])
    env = fake(tmp_path)
    job = Job(source, target, home, env)
    job.wait_for_rows(1)
    suspend(job.process.pid)
    done = rerankd("score", str(source), str(target), "--raw-scores", home=home, **env)
    job.process.send_signal(signal.SIGCONT)
    job.end(signal.SIGTERM)
    assert done.returncode == 2 and "Another rerankd score is writing" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "flags", "says"),
    [
        ("in.txt", b"a", [], "must end in one of"),
        ("in.jsonl", None, [], "does not exist"),
        ("in.jsonl", b"", [], "has no rows"),
        ("in.csv", b"", [], "has no column 'query'"),
        ("in.csv", b"query;document\na;b\n", [], "--delimiter ';'"),
        ("in.csv", b"query,document\n", [], "has no rows"),
        ("in.csv", b"query,document,score\na,b,1\n", [], "already has a column 'score'"),
        ("in.csv", b'query,document\na,"' + b"x" * 17_000_000, [], "line 2: field larger"),
        ("in.csv", b"query,document\rq,a\r", [], "line 1: a carriage return"),
        ("in.csv", b"query,document,document\nq,a,b\n", [], "2 columns 'document'"),
        ("in.csv", b"query,document\nq,a\n", ["--delimiter", '"'], "no quotation mark"),
        ("in.csv", b"query,document\nq,a\n", ["--score-column", "error"], "both 'error'"),
        ("in.csv", b"query,document\nq,a\n", ["--score-column", ""], "column is empty"),
        ("in.jsonl", b"{}", ["--delimiter", ";"], "only for CSV"),
        ("in.parquet", b"PAR1 not really", [], "can't be read as Parquet"),
    ],
)  # fmt: skip
def test_files_that_can_not_be_scored(
    tmp_path: Path, home: Path, name: str, content: bytes | None, flags: list[str], says: str
) -> None:
    source, target = tmp_path / name, tmp_path / name.replace("in", "out")
    if content is not None:
        source.write_bytes(content)
    done = rerankd("score", str(source), str(target), *flags, home=home, **fake(tmp_path))
    assert done.returncode == 2 and says in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not target.exists()
    assert not Path(f"{target}.parts").exists()


def test_the_input_is_checked_before_a_model_is_downloaded(tmp_path: Path, home: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"query": "q", "document": "d"}])
    link = tmp_path / "link.jsonl"
    link.symlink_to("nowhere.jsonl")
    for given, target, says in (
        (tmp_path / "no.jsonl", tmp_path / "out.jsonl", "does not exist"),
        (source, link, "exists"),
    ):
        done = rerankd("score", str(given), str(target), "--model", "hf:no/where", home=home)
        assert done.returncode == 2 and says in done.stderr, done.stderr
    assert link.is_symlink()


def test_parquet_that_is_odd(tmp_path: Path, home: Path) -> None:
    damaged = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a\xff", b"b"]).buffers())
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table({"query": ["q", "q"], "document": damaged}), source)
    done = rerankd("score", str(source), str(target), "--raw-scores", home=home, **fake(tmp_path))
    assert done.returncode == 0, done.stderr
    wrong, right = pq.read_table(target, columns=["score", "error"]).to_pylist()
    assert "not valid Unicode" in wrong["error"] and right["score"] == fake_engine.raw("q", "b")
    pq.write_table(pa.table([["q"], ["a"], ["b"]], ["query", "document", "document"]), source)
    done = rerankd("score", str(source), str(tmp_path / "2.parquet"), home=home, **fake(tmp_path))
    assert done.returncode == 2 and "2 columns 'document'" in done.stderr, done.stderr


def test_a_folder_of_parts_without_rows_asks_for_nothing(tmp_path: Path, home: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"query": "q", "document": "d"}])
    target, parts = tmp_path / "out.jsonl", tmp_path / "out.jsonl.parts"
    (parts / "0000-notes").mkdir(parents=True)
    (parts / "job.json").write_text('{"model": "another"}')
    done = rerankd("score", str(source), str(target), home=home, **fake(tmp_path))
    assert done.returncode == 0 and target.exists(), done.stderr


def test_an_input_that_changes_meanwhile_is_refused(tmp_path: Path, home: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_lines(source, [{"query": "q", "document": f"d{at}"} for at in range(60_000)])
    job = Job(source, target, home, fake(tmp_path))
    job.wait_for_rows(1)
    with source.open("a") as stream:
        stream.write('{"query": "q", "document": "late"}\n')
    _, said = job.process.communicate(timeout=60)
    assert job.process.returncode == 2 and "has changed since it was opened" in said, said
    assert not target.exists()


def test_long_rows_are_held_a_few_at_a_time(tmp_path: Path, home: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    with source.open("w") as stream:
        for at in range(400):
            stream.write(f'{{"query": "q", "document": "d{at}", "more": "{"x" * 1_000_000}"}}\n')
    job = Job(source, target, home, fake(tmp_path))
    peak, pause = 0.0, threading.Event()
    while job.process.poll() is None:
        peak = max(peak, job.peak_mib())
        pause.wait(0.01)
    assert job.process.returncode == 0, job.process.communicate()
    job.process.communicate()
    # The file has 400 MB; a chunk holds 4, and what is read ahead 32.
    assert 0 < peak < 330


def test_ctrl_c_while_the_output_is_written(tmp_path: Path) -> None:
    """The output is complete before the command ends, and the folder is held until then."""
    finishing, may_end = threading.Event(), threading.Event()

    class Slow(Parts):
        def finish(self) -> None:
            finishing.set()
            assert may_end.wait(30)
            super().finish()

    async def stopped() -> bool:
        loop = asyncio.get_running_loop()
        chunk = Chunk([Pair("q", "d")], ['{"query": "q"}'], 10, 1.0)
        with parts.held({}, restart=False):
            parts.add([(chunk, [Scored(0.5)])])
            task = asyncio.create_task(bulk_job.finish(parts))
            await loop.run_in_executor(None, finishing.wait)
            task.cancel()
            await asyncio.sleep(0)
            may_end.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            return parts.is_finished

    target = tmp_path / "out.jsonl"
    parts = Slow(target, format_of(target, target, None), Columns())
    assert asyncio.run(stopped())
    assert target.exists() and not parts.folder.exists()


def test_a_full_disk_keeps_the_rows(tmp_path: Path, home: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_lines(source, [{"query": "q", "document": f"d{at}"} for at in range(60_000)])
    limited = f"ulimit -f 2000; exec '{sys.executable}' -m rerankd score '{source}' '{target}' --raw-scores"
    env = fake(tmp_path)
    done = subprocess.run(
        ["bash", "-c", limited], env=environment(home, **env), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "File too large" in done.stderr, done.stderr
    assert "run the command again" in done.stderr
    again = rerankd("score", str(source), str(target), "--raw-scores", "--json", home=home, **env)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["earlier"] > 0
    assert len(json_lines(target)) == 60_000 and all(
        math.isfinite(row["score"]) for row in json_lines(target)
    )


def test_reading_stops_at_an_error_of_the_file(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("query,document\na,b\n")
    found = format_of(source, tmp_path / "out.csv", None)
    with pytest.raises(BulkError, match="no column 'question'"):
        next(found.chunks(source, Columns(query="question"), 0))
