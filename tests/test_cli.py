"""The program as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from support import GOLDEN, Program, children, environment, post, rerankd, wait_until_gone

XLMR = str(GOLDEN / "xlmr-head.gguf")
PANDA = {
    "model": "bge-reranker-v2-m3",
    "query": "什么是熊猫？",
    "top_n": 3,
    "documents": ["hi", "它是一种熊", "大熊猫是一种原产于中国的熊科动物。"],
}
Serve = Callable[..., Program]


def run_folders(pid: int) -> list[Path]:
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp")
    return list(base.glob(f"rerankd-{pid}-*"))


def test_serve_answers_a_rerank_request_and_leaves_nothing_behind(serve: Serve) -> None:
    program = serve()
    answer = post(f"{program.url}/v1/rerank", PANDA)
    assert answer.status_code == 200
    assert [row["index"] for row in answer.json()["results"]] == [2, 1, 0]
    said = "".join(program.said)
    assert "small model for a first try" in said
    assert "API endpoint URL" in said
    assert "threads: the fastest for an encoder on a CPU" in said
    engines = children(program.process.pid)
    assert len(engines) == 1
    assert len(run_folders(program.process.pid)) == 1
    assert program.stop() == 0
    wait_until_gone(engines)
    assert run_folders(program.process.pid) == []


def test_serve_prints_which_llama_cpp_runs_and_why(serve: Serve) -> None:
    said = "".join(serve(XLMR, RERANKD_ENGINE="llama").said)
    assert "llama.cpp bundled (b11549): it is set as engine; no other engine is installed" in said


def test_serve_computes_in_the_precision_of_the_flag(serve: Serve) -> None:
    program = serve(XLMR, "--engine", "openvino", "--precision", "f32")
    assert "f32 (set by the user)" in "".join(program.said)


def test_the_engine_exits_when_the_service_is_killed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each start removes what others have left, those of tests beside this one, too. A socket path has at most
    # 107 bytes, and pytest's folders are long.
    with tempfile.TemporaryDirectory(prefix="rd-", dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        program = serve(XLMR)
        engines = children(program.process.pid)
        program.stop(signal.SIGKILL)
        wait_until_gone(engines)
        left = run_folders(program.process.pid)
        serve(XLMR).stop()
        assert left
        assert not any(one.exists() for one in left)


def test_the_engine_runs_in_a_process_group_of_its_own(serve: Serve) -> None:
    program = serve(XLMR)
    (engine,) = children(program.process.pid)
    assert os.getpgid(engine) == engine != os.getpgid(program.process.pid)


def test_aliases_and_llama_rank_gguf_name_the_model(serve: Serve) -> None:
    program = serve("--alias", "bge-reranker-v2-m3", "--alias", "b", LLAMA_RANK_GGUF=XLMR)
    models = httpx.get(f"{program.url}/v1/models", trust_env=False).json()["data"]
    assert [model["id"] for model in models] == ["bge-reranker-v2-m3", "b"]


def test_requests_need_the_api_key(serve: Serve) -> None:
    program = serve(XLMR, RERANKD_API_KEY="secret")
    url = f"{program.url}/v1/rerank"
    assert post(url, PANDA).status_code == 401
    assert post(url, PANDA, authorization="Bearer wrong").status_code == 401
    assert post(url, PANDA, authorization="Bearer secret").status_code == 200
    assert post(url, PANDA, **{"x-api-key": "secret"}).status_code == 200
    assert httpx.get(f"{program.url}/health", trust_env=False).status_code == 200


def test_a_port_in_use_is_reported_before_anything_is_loaded(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = rerankd("serve", XLMR, "--port", str(port), home=home)
    assert ended.returncode == 6
    assert f"Port {port} on 127.0.0.1 is in use" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "env", "code", "says"),
    [
        (["/no/such/model.gguf"], {}, 3, "The file /no/such/model.gguf does not exist"),
        ([__file__], {}, 3, "GGUF"),
        ([XLMR, "--config", "/no/such.toml"], {}, 2, "can't be read"),
        ([XLMR], {"RERANKD_PRT": "1"}, 2, "Did you mean RERANKD_PORT?"),
        ([XLMR], {"LLAMA_PATH": "/no/llama-server"}, 4, "Check LLAMA_PATH"),
        ([XLMR], {"LLAMA_PATH": "/bin/false"}, 4, "exited with code 1"),
        ([XLMR, "--host", "203.0.113.1"], {}, 6, "can't listen on 203.0.113.1"),
    ],
)
def test_a_failed_start_reports_the_reason_and_exit_code(
    home: Path, arguments: list[str], env: dict[str, str], code: int, says: str
) -> None:
    ended = rerankd("serve", "--port", "0", *arguments, home=home, **env)
    assert says in ended.stderr
    assert ended.returncode == code
    assert "Traceback" not in ended.stderr


def test_an_invalid_settings_file_is_reported(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("prot = 1")
    ended = rerankd("serve", "--config", str(file), home=home)
    assert (ended.returncode, "Did you mean port?" in ended.stderr) == (2, True)


def test_rerank_reads_standard_input_and_prints_plain_lines(home: Path) -> None:
    ended = rerankd("rerank", "什么是熊猫？", home=home, stdin="hi\n\n它是一种熊\n", RERANKD_PORT="9")
    assert ended.returncode == 0, ended.stderr
    rows = [line.split("\t") for line in ended.stdout.splitlines()]
    assert [row[1:] for row in rows] == [["1", "它是一种熊"], ["0", "hi"]]
    assert float(rows[0][0]) > float(rows[1][0])
    assert "no rerankd answers at http://127.0.0.1:9" in ended.stderr
    assert "starting an engine for this call, with the model builtin:e5" in ended.stderr


def test_rerank_uses_a_running_server(serve: Serve, home: Path, tmp_path: Path) -> None:
    program = serve(XLMR, "--alias", "tiny")
    file = tmp_path / "documents.jsonl"
    file.write_text('{"page_content": "a panda", "metadata": {}}\n"bread"\n')
    port = program.url.rpartition(":")[2]
    ended = rerankd(
        "rerank", "q", str(file), "--jsonl", "--json", "--top-n", "1", home=home, RERANKD_PORT=port
    )
    answer = json.loads(ended.stdout)
    assert answer["model"] == "tiny"
    assert len(answer["results"]) == 1
    assert answer["results"][0]["text"] in ("a panda", "bread")
    assert "starting an engine" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        (["q", "/no/file"], "", "/no/file can't be read"),
        (["q"], "\n\n", "The input has no documents"),
        (["q", "--jsonl"], "{", "-, line 1: not valid JSON"),
        (["q", "--jsonl"], '{"txt": 1}', "line 1: expected a JSON string, or"),
        (["q", "-", "--model", "/no/m.gguf"], "a", "does not exist"),
    ],
)
def test_rerank_reports_invalid_input(home: Path, arguments: list[str], stdin: str, says: str) -> None:
    ended = rerankd("rerank", *arguments, home=home, stdin=stdin, RERANKD_PORT="9")
    assert says in ended.stderr
    assert ended.returncode in (2, 3)
    assert ended.stdout == ""


def test_inspect_prints_the_recipe_or_exits_with_a_refusal(home: Path) -> None:
    good = rerankd("inspect", XLMR, home=home)
    assert (good.returncode, "rank head" in good.stdout) == (0, True)
    refused = rerankd("inspect", str(GOLDEN / "qwen2-labels.gguf"), "--json", home=home)
    assert refused.returncode == 3
    assert json.loads(refused.stdout)


def test_sigterm_aborts_a_download_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        process = subprocess.Popen(
            [sys.executable, "-m", "rerankd", "serve", "--port", "0"],
            env=environment(tmp_path, PIP_INDEX_URL=index, PIP_CONFIG_FILE=os.devnull),
            stderr=subprocess.DEVNULL,
        )
        with silent.accept()[0]:  # pip is connected and waits for a response
            pips = children(process.pid)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
    wait_until_gone(pips)
    assert list((tmp_path / "models").iterdir()) == []


def test_sigterm_while_the_model_loads_aborts_the_start(home: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\necho loading\nexec sleep 60\n")
    slow.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-m", "rerankd", "serve", "--port", "0", XLMR],
        env=environment(home, LLAMA_PATH=str(slow)),
        stderr=subprocess.DEVNULL,
    )
    while not children(process.pid):
        os.sched_yield()
    engines = children(process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    wait_until_gone(engines)
