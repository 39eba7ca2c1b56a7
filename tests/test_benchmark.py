"""`rerankd bench`: its pure functions, and the command against a real llama.cpp server and a second
rerankd."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from rerankd.benchmark import engines, figures, flops, hardware, load, report
from rerankd.benchmark.drive import Driven
from rerankd.errors import ConfigError
from rerankd.formats import gguf_metadata
from rerankd.serving import backend_offers
from rerankd.serving.prepare_model import prepare
from support import GOLDEN, Program, environment, golden_settings, rerankd

XLMR = GOLDEN / "xlmr-head.gguf"
QUICK = ("--documents", "2,4", "--concurrency", "1,2", "--words", "5-9", "--rounds", "2")


def test_cases_vary_one_parameter_at_a_time() -> None:
    made = load.cases([1, 20, 100], [1, 4, 8], (20, 400))
    assert [(case.documents, case.concurrency) for case in made] == [
        (1, 1),
        (20, 1),
        (100, 1),
        (20, 4),
        (20, 8),
    ]
    assert {case.words for case in made} == {"20-400"}
    assert made[3].pairs == 80


def test_requests_are_reproducible_and_no_text_is_repeated() -> None:
    case = load.Case(10, 3, 5, 9)
    assert load.round_of(case, 1, 0) == load.round_of(case, 1, 0)
    rounds = [request for at in range(-2, 4) for request in load.round_of(case, 1, at)]
    rounds += load.round_of(case, 2, 0)
    texts = [text for request in rounds for text in (*request.documents, request.query)]
    assert len(set(texts)) == len(texts)
    assert {len(text.split()) for request in rounds for text in request.documents} == {5, 6, 7, 8, 9}


@pytest.mark.parametrize("value", ["", "x", "0", "1,,2", "1,-2"])
def test_invalid_numbers_are_rejected(value: str) -> None:
    with pytest.raises(ConfigError, match="--documents must be"):
        load.numbers(value, "documents")


@pytest.mark.parametrize("value", ["", "0", "9-5", "a-b", "5-"])
def test_word_ranges_are_parsed_or_rejected(value: str) -> None:
    assert load.word_range("20-400") == (20, 400)
    if value == "5-":
        assert load.word_range(value) == (5, 5)
        return
    with pytest.raises(ConfigError, match="--words must be"):
        load.word_range(value)


def test_flops_of_known_shapes() -> None:
    # 12 layers of 384 with a feed-forward of 1536: 4 * 384^2 + 2 * 384 * 1536 weights each.
    metadata = gguf_metadata.ModelMetadata(
        Path("x"), "bert", block_count=12, block_weights=12 * 1_769_472, attention_width=384
    )
    assert flops.per_token(metadata, 100, causal=False) == 2 * 12 * 1_769_472 + 4 * 12 * 384 * 100
    assert flops.per_token(metadata, 100, causal=True) == 2 * 12 * 1_769_472 + 2 * 12 * 384 * 100
    took = flops.share(metadata, causal=False, pairs_per_s=10, tokens_per_pair=100, peak_flops=1e11)
    assert took == pytest.approx(flops.per_token(metadata, 100, causal=False) * 1000 / 1e11)
    nothing = gguf_metadata.ModelMetadata(Path("x"), "moe")
    assert flops.share(nothing, causal=True, pairs_per_s=1, tokens_per_pair=9, peak_flops=1e9) is None


def test_the_weights_of_the_blocks_are_read_from_a_file() -> None:
    metadata = gguf_metadata.read(XLMR)
    width, feed_forward = metadata.embedding_length, 128
    assert metadata.attention_width == width
    assert metadata.block_weights == metadata.block_count * (4 * width**2 + 2 * width * feed_forward)


@pytest.mark.parametrize(("share", "value"), [(0.5, 5), (0.95, 10), (0.05, 1), (1, 10)])
def test_percentiles_of_ten_values(share: float, value: float) -> None:
    assert figures.percentile([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], share) == value


def series(name: str, *walls: float, tokens: int | None = None) -> figures.Series:
    case = load.Case(10, 1, 5, 5)
    return figures.Series(name, case, [figures.Round((wall,), wall, tokens) for wall in walls])


def test_ratios_are_computed_per_round() -> None:
    ours, theirs = series("a", 1, 2, 4), series("b", 2, 6, 4, 100)
    assert figures.ratio(ours, theirs) == figures.Ratio(2, 1, 3)
    assert figures.ratio(ours, series("b")) is None
    assert ours.pairs_per_s == 5
    assert (ours.tokens_per_pair, series("a", 1, 1, tokens=50).tokens_per_pair) == (None, 5)


def test_the_report_of_an_incomplete_benchmark() -> None:
    here = hardware.Hardware("a chip", ("avx2",), 2, 2**34, "an OS", 5.0, {"rerankd": "1"}, 1e11)
    metadata = gguf_metadata.ModelMetadata(
        Path("x"), "bert", block_count=1, block_weights=10**6, attention_width=10
    )
    ours, theirs = series("ours", 0.5, 0.5, tokens=100), series("theirs", 1, 1.5, tokens=100)
    empty = [figures.Series(name, load.Case(99, 1, 5, 5)) for name in ("ours", "theirs")]
    driven = Driven([ours, theirs, *empty], {"ours": 0.25}, {"ours": 0.001}, complete=False)
    found = report.Benchmark(here, "m", metadata, False, frozenset({"ours"}), {"ours": 2.0}, driven, 1)
    head, rows = report.table(found)
    assert rows == [
        ["ours", "10", "5", "1", "20", "500.0 ms", "500.0 ms", "0%", "2", ""],
        ["theirs", "10", "5", "1", "8.33", "1.00 s", "1.50 s", "", "2", "2.50 (2.00 to 3.00)"],
    ]
    assert head[-3:] == ["of peak", "rounds", "times as fast"]
    alone = replace(found, known=frozenset(), driven=replace(driven, series=[ours]))
    assert report.table(alone)[0][-2:] == ["p95", "rounds"]
    before, after = "\n".join(report.before(found)), "\n".join(report.after(found))
    assert "busy (load 5.0)" in before
    assert "ours: ready after 2.0 s; first request 250.0 ms, same request again 1.0 ms" in before
    assert "ended before all rounds were done" in after
    assert "fewer than 5 rounds" in after
    document = report.as_json(found)
    assert document["ratios"] == [
        {
            "of": "ours",
            "to": "theirs",
            "documents": 10,
            "concurrency": 1,
            "median": 2.5,
            "least": 2,
            "most": 3,
        }
    ]
    assert document["cases"][0]["share_of_peak"] == pytest.approx(20 * 10 * (2e6 + 4 * 10 * 10) / 1e11)
    assert [case["server"] for case in document["cases"]] == ["ours", "theirs"]


def test_the_measured_peak_is_plausible() -> None:
    assert 1e8 < hardware.gemm_peak() < 1e14


def test_the_engines_on_this_machine(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    own = prepare(golden_settings("xlmr-head", tmp_path, llama_path=program))
    assert engines.as_set(own.engine).name == f"llama.cpp {program}"
    openvino, bundled, mine = engines.all_of(
        backend_offers.all_offers(own.spec, own.wanted, tmp_path), own.wanted, tmp_path
    )
    environ = {"LLAMA_PATH": "/y", "RERANKD_LLAMA_PATH": "/x/llama-server", "HOME": "/h"}
    assert openvino.name == "OpenVINO" and bundled.name == "llama.cpp (bundled)"
    assert openvino.environment(environ) == {"HOME": "/h", "RERANKD_ENGINE": "openvino"}
    assert bundled.environment(environ) == {"HOME": "/h", "RERANKD_ENGINE": "llama"}
    assert mine.environment(environ)["LLAMA_PATH"] == mine.name == str(program)
    assert "RERANKD_LLAMA_PATH" not in mine.environment(environ)
    causal = prepare(golden_settings("qwen3-headed", tmp_path))
    rows = engines.all_of(
        backend_offers.all_offers(causal.spec, causal.wanted, tmp_path), causal.wanted, tmp_path
    )
    assert [row.name for row in rows] == ["OpenVINO", "llama.cpp (bundled)"]


# The program that rerankd starts listens only on a UNIX socket.
_LLAMA_OVER_TCP = """
import signal, sys, xllamacpp
from rerankd.backends.llama import bundled
params = bundled.params(bundled.parser().parse_args(sys.argv[2:]))
params.port = int(sys.argv[1])
server = xllamacpp.Server(params)
signal.pause()
"""


@contextlib.contextmanager
def llama_server(folder: Path) -> Iterator[str]:
    """Run llama.cpp's own rerank server with the golden model, over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    flags = f"--host 127.0.0.1 --model {XLMR} --embedding --pooling rank --threads 1 --no-webui".split()
    flags += ["--ctx-size", "256", "--batch-size", "256", "--ubatch-size", "256", "--parallel", "1"]
    with (folder / "llama.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _LLAMA_OVER_TCP, str(port), *flags], stdout=log, stderr=log
        )
        try:
            url = f"http://127.0.0.1:{port}"
            ends = time.monotonic() + 60
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                        break
                assert process.poll() is None and time.monotonic() < ends, (folder / "llama.log").read_text()
                os.sched_yield()
            yield url
        finally:
            process.kill()
            process.wait()


def test_the_command_against_a_real_llama_server(tmp_path: Path, home: Path) -> None:
    with llama_server(tmp_path) as url:
        ended = rerankd(
            "bench", str(XLMR), "--against", url, *QUICK, "--json", home=home, RERANKD_THREADS="1"
        )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["complete"]
    assert told["model"] == "xlmr-head"
    cases = {(case["server"], case["documents"], case["concurrency"]): case for case in told["cases"]}
    ours = "OpenVINO"
    assert set(cases) == {(name, *size) for name in (ours, url) for size in ((2, 1), (4, 1), (4, 2))}
    assert all(len(case["rounds"]) == 2 and case["pairs_per_s"] > 0 for case in cases.values())
    assert [len(each["seconds"]) for each in cases[ours, 4, 2]["rounds"]] == [2, 2]
    # Both servers tokenize the same texts with the same vocabulary.
    assert cases[ours, 4, 1]["tokens_per_pair"] == cases[url, 4, 1]["tokens_per_pair"] > 5
    assert 0 < cases[ours, 4, 1]["share_of_peak"] < 1
    assert cases[url, 4, 1]["share_of_peak"] is None
    assert {(found["of"], found["to"]) for found in told["ratios"]} == {(ours, url)}
    assert told["servers"][ours]["start_s"] > 0
    assert told["machine"]["peak_flops"] > 1e8


def test_compare_engines_measures_every_engine(tmp_path: Path, home: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m rerankd.backends.llama.bundled \"$@\"\n")
    program.chmod(0o755)
    env = {"LLAMA_PATH": str(program), "RERANKD_THREADS": "1"}
    ended = rerankd("bench", str(XLMR), "--compare-engines", *QUICK, "--json", home=home, **env)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    others = ["llama.cpp (bundled)", str(program)]
    assert list(told["servers"]) == ["OpenVINO", *others]
    compared = {(found["of"], found["to"]) for found in told["ratios"]}
    assert compared == {("OpenVINO", other) for other in others}
    assert all(case["share_of_peak"] > 0 for case in told["cases"])


def test_two_running_services_are_compared(serve: Callable[..., Program], home: Path) -> None:
    one, other = serve(str(XLMR)), serve(str(XLMR))
    ended = rerankd("bench", "--url", one.url, "--against", other.url, *QUICK, home=home)
    assert ended.returncode == 0, ended.stderr
    assert "model     xlmr-head" in ended.stdout
    assert f"times as fast: throughput of {one.url} divided by this server's" in ended.stdout
    assert ended.stdout.count(other.url) == 4  # the cold request and three cases


def test_ctrl_c_prints_the_results_so_far(serve: Callable[..., Program], home: Path) -> None:
    program = serve(str(XLMR))
    arguments = (
        "bench",
        "--url",
        program.url,
        "--documents",
        "4",
        "--concurrency",
        "1",
        "--rounds",
        "100000",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "rerankd", *arguments],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("measuring …"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "ended before all rounds were done" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--url", "http://127.0.0.1:9", "builtin:e5"), "can't be combined with MODEL"),
        (("--documents", "none"), "such as 1,20,100, not 'none'"),
        (("--url", "http://127.0.0.1:9"), "connecting failed"),
    ],
)
def test_invalid_arguments_are_rejected(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    ended = rerankd("bench", *arguments, home=tmp_path)
    assert ended.returncode != 0
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


def test_compare_engines_rejects_a_program_in_the_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "rerankd.toml"
    file.write_text('llama_path = "/bin/llama-server"')
    ended = rerankd("bench", "--compare-engines", "--config", str(file), home=tmp_path)
    assert ended.returncode != 0
    assert "(llama_path)" in ended.stderr and "set LLAMA_PATH for this command" in ended.stderr


def test_the_versions_of_the_backends_packages_are_reported() -> None:
    packages = ["rerankd", "openvino", "onnxruntime", "onnx", "xllamacpp", "numpy"]
    assert list(hardware.versions()) == packages
