"""What a job on a cluster decides before Ray runs: slices of the input, and the number of actors."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.bulk.rows import Columns
from rerankd.errors import BulkError, EngineUnavailable
from rerankd.ray import slices, storage
from rerankd.ray.pool import Pool, Wanted, pool
from rerankd.ray.slices import Slice, source_of
from support import ROOT


def copies(folder: Path, source: Path, rows: int) -> list[Path]:
    """Cut a file into slices of about so many rows, and copy each."""
    form, (file,) = source_of(str(source), None)
    found = []
    for at, one in enumerate(form.cut(file, Columns(), rows)):
        found.append(folder / f"{at:06}{source.suffix}")
        form.copy(one, found[-1])
    return found


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 40), st.booleans())
def test_each_line_is_in_one_slice_wherever_the_file_is_cut(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], step: int, ends: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    text = b"\n".join(b"x" * length for length in lengths) + (b"\n" if ends else b"")
    path.write_bytes(text)
    form, (file,) = source_of(str(path), None)
    found, to = [], path.with_suffix(".copy")
    for first in range(0, file.size, step):
        form.copy(Slice(file, first, min(first + step, file.size)), to)
        found.append(to.read_bytes())
    assert b"".join(found) == text
    # Each ends where a line ends.
    assert all(not one or one.endswith(b"\n") for one in found[:-1]) or not text.endswith(b"\n")


def test_a_line_that_is_longer_than_blocks_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    lines = ["a", "b" * 300_000, "c"]
    path.write_text("\n".join(lines))
    form, (file,) = source_of(str(path), None)
    form.copy(Slice(file, 0, 5), tmp_path / "copy")
    assert (tmp_path / "copy").read_text().splitlines() == lines[:2]


def test_csv_is_cut_between_rows_also_where_values_hold_line_ends(tmp_path: Path) -> None:
    rows = [[f"q{at}", f'd"{at}"\n\n{"x" * (at % 7)},'] for at in range(1000)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows([["query", "document"], *rows])
    source = tmp_path / "in.csv"
    source.write_bytes(b"\xef\xbb\xbf" + text.getvalue().encode())
    (tmp_path / "copies").mkdir()
    parts = copies(tmp_path / "copies", source, 30)
    assert len(parts) == 34
    found = []
    for part in parts:
        with part.open(newline="", encoding="utf-8-sig") as stream:
            names, *values = csv.reader(stream)
        assert names == ["query", "document"]
        found += values
    assert found == rows


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_wide_encodings_are_one_slice(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / f"in{suffix}"
    line = {".jsonl": '{"query": "q", "document": "d"}\n', ".csv": "q,d\n"}[suffix]
    source.write_text(("" if suffix == ".jsonl" else "query,document\n") + line * 1000, encoding="utf-16")
    (tmp_path / "copies").mkdir()
    (part,) = copies(tmp_path / "copies", source, 10)
    assert part.read_bytes() == source.read_bytes()


def test_parquet_is_cut_across_row_groups_and_keeps_its_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "query": pa.array([f"q{at}" for at in range(1000)]).dictionary_encode(),
            "document": pa.array([f"d{at}" for at in range(1000)], pa.large_string()),
            "tags": pa.array([["a"] * (at % 3) for at in range(1000)]),
        }
    )
    source = tmp_path / "in.parquet"
    pq.write_table(table, source, row_group_size=130)
    (tmp_path / "copies").mkdir()
    parts = [pq.read_table(path) for path in copies(tmp_path / "copies", source, 60)]
    assert [part.num_rows for part in parts] == [60] * 16 + [40]
    assert pa.concat_tables(parts).equals(table)


def test_long_rows_make_smaller_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "_SLICE_BYTES", 1000)
    line = json.dumps({"query": "q", "document": "d" * 170})
    for name, text in (
        ("in.jsonl", f"{line}\n" * 100),
        ("in.csv", "query,document\n" + f"q,{'d' * 197}\n" * 100),
    ):
        (tmp_path / name).write_text(text)
        form, (file,) = source_of(str(tmp_path / name), None)
        cut = form.cut(file, Columns(), 2000)
        assert all(one.last - one.first <= 1000 for one in cut) and len(cut) in (20, 21)


@pytest.mark.parametrize(
    ("names", "given", "says"),
    [
        ([], "no.jsonl", "does not exist"),
        (["in.txt"], "in.txt", "must end in one of"),
        (["a.jsonl", "b.csv"], "", "several formats: .csv, .jsonl"),
        (["README.md", "b.txt"], "", "no files of pairs"),
        (["dataset_dict.json", "test/state.json", "train/state.json"], "", "Name one of them: test, train"),
        (["dataset_info.json", "state.json"], "", "not a complete saved dataset"),
        ([], "zzz://a/b.jsonl", "Protocol not known"),
        ([], "smb://a/b.jsonl", "can't be opened"),
    ],
)  # fmt: skip
def test_inputs_that_are_refused(tmp_path: Path, names: list[str], given: str, says: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(BulkError) as refused:
        source_of(given if "://" in given else str(tmp_path / given), None)
    assert says in refused.value.message


def test_a_folder_is_all_its_files_but_hidden_ones_by_name(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "_job.json", "_old/d.jsonl", ".e.jsonl", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    for url in (str(tmp_path), f"file://{tmp_path}"):
        _, files = source_of(url, None)
        assert [file.url.removeprefix(f"{tmp_path}/") for file in files] == [
            "a.jsonl",
            "b.jsonl",
            "sub/c.jsonl",
        ]
    _, files = source_of(f"{tmp_path}/*.jsonl", None)
    assert [Path(file.url).name for file in files] == [".e.jsonl", "a.jsonl", "b.jsonl"]


def test_a_part_replaces_the_one_before_in_any_file_system(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in ("memory://out", str(tmp_path / "out")):
        system, path = storage.opened(folder)
        system.makedirs(path, exist_ok=True)
        for text in ("before", "after"):
            source.write_text(text)
            storage.put(source, f"{folder}/part-1")
            assert storage.read_whole(f"{folder}/part-1") == text.encode()
        assert len(system.ls(path)) == 1


def nodes(*sizes: tuple[float, float]) -> list[dict[str, Any]]:
    return [{"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}} for cpus, gpus in sizes]


@pytest.mark.parametrize(
    ("found", "wanted", "planned"),
    [
        (nodes((2, 0)), Wanted(), Pool(1, 2, 0, None)),
        (nodes((0, 0), (8, 0), (8, 0)), Wanted(), Pool(2, 8, 0, None)),
        (nodes((16, 0), (8, 0)), Wanted(), Pool(3, 8, 0, 8)),
        (nodes((16, 0)), Wanted(cpus=4), Pool(4, 4, 0, 4)),
        (nodes((16, 4), (16, 4)), Wanted(), Pool(8, 1, 1, None)),
        (nodes((16, 4)), Wanted(gpus=0), Pool(1, 16, 0, None)),
        (nodes((16, 4)), Wanted(gpus=2, cpus=8), Pool(2, 8, 2, None)),
        (nodes((2, 0)), Wanted(actors=9), Pool(9, 2, 0, None)),
        ([{"Alive": False, "Resources": {"CPU": 99.0}}, *nodes((2, 0))], Wanted(), Pool(1, 2, 0, None)),
    ],
)  # fmt: skip
def test_actors_fill_the_cluster(found: list[dict[str, Any]], wanted: Wanted, planned: Pool) -> None:
    assert pool(found, wanted) == planned


def test_an_actor_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(EngineUnavailable, match="No node of the cluster has 4 CPUs"):
        pool(nodes((2, 0)), Wanted(cpus=4))


def test_without_ray_the_package_says_how_to_install_it(tmp_path: Path) -> None:
    """In a process where Ray can't be found, whether or not it is installed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nold = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'ray' else old(name, *more)\n"
    )
    code = "from rerankd.ray import Scorer"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}"},
    )  # fmt: skip
    assert "pip install 'rerankd[ray]'" in done.stderr
