"""`rerankd pull`, `list`, `show` and `remove` against a fake hub on loopback."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from fake_hub import FakeHub, fake_hub
from rerankd.cli import app
from rerankd.errors import UnknownModel
from rerankd.hub.store import Store
from support import GOLDEN, Program, environment, post, rerankd
from test_cli import Serve
from test_store import put

QWEN3 = "ggml-org/Qwen3-Reranker-0.6B-Q8_0-GGUF"
BGE = "gpustack/bge-reranker-v2-m3-GGUF"


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    headed = (GOLDEN / "qwen3-headed.gguf").read_bytes()
    xlmr = (GOLDEN / "xlmr-head.gguf").read_bytes()
    repos = {
        QWEN3: {"qwen3-reranker-0.6b-q8_0.gguf": headed},
        BGE: {f"bge-reranker-v2-m3-{quant}.gguf": xlmr for quant in ("Q4_K_M", "Q8_0", "FP16")},
    }
    with fake_hub(repos=repos) as running:
        yield running


def test_a_pulled_model_is_checked_and_served_by_default(hub: FakeHub, serve: Serve, tmp_path: Path) -> None:
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
    pulled = rerankd("pull", "qwen3-reranker-0.6b", home=tmp_path, **env)
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout == ""
    for message in (
        "downloading qwen3",
        "checking qwen3",
        "starting the engine",
        "qwen3-reranker-0.6b is ready",
    ):
        assert message in pulled.stderr
    program: Program = serve(RERANKD_HOME=str(tmp_path))
    assert "the model that was pulled last" in "".join(program.said)
    (model,) = httpx.get(f"{program.url}/v1/models", trust_env=False).json()["data"]
    assert model["id"] == "qwen3-reranker-0.6b"
    answer = post(f"{program.url}/v1/rerank", {"query": "q", "documents": ["a", "b"]})
    assert answer.status_code == 200
    assert program.stop() == 0


def cli(home: Path, *arguments: str) -> str:
    """Run the command line in this process, and return its output."""
    ended = CliRunner().invoke(app, arguments, env={"RERANKD_HOME": str(home)}, catch_exceptions=False)
    return ended.output


def test_list_show_and_remove(hub: FakeHub, tmp_path: Path) -> None:
    assert "rerankd list --catalog" in cli(tmp_path, "list")
    store = Store(tmp_path)
    for at, name in enumerate((f"hf:{BGE}:q4_k_m", "bge-reranker-v2-m3:f16", "bge-reranker-v2-m3")):
        put(store, name, pulled_at=at, data=hub.repos[BGE]["bge-reranker-v2-m3-Q8_0.gguf"])
    rows = {row["name"]: row for row in json.loads(cli(tmp_path, "list", "--json"))}
    assert set(rows) == {"bge-reranker-v2-m3", "bge-reranker-v2-m3:f16", f"hf:{BGE}:q4_k_m"}
    assert [name for name, row in rows.items() if row["default"]] == ["bge-reranker-v2-m3"]
    assert rows["bge-reranker-v2-m3"]["method"] == "cross_encoder"
    assert rows["bge-reranker-v2-m3"]["scored_as"] == "head"  # the field and value of 0.1
    assert "bge-reranker-v2-m3:f16\t832 KiB\t" in cli(tmp_path, "list")

    shown = cli(tmp_path, "show", "BAAI/bge-reranker-v2-m3")
    assert "from: hf:org/repo" in shown
    assert "scored as a cross-encoder" in shown
    assert json.loads(cli(tmp_path, "show", "bge-reranker-v2-m3", "--json"))["scorable"]
    assert "rerankd pull bge-m3" in cli(tmp_path, "show", "bge-m3")
    assert "can't be scored correctly" in cli(tmp_path, "show", "LightOn-rerank-PW")

    assert "was deleted (832 KiB)" in cli(tmp_path, "remove", "bge-reranker-v2-m3")
    assert not (tmp_path / "models" / "bge-reranker-v2-m3").exists()
    with pytest.raises(UnknownModel, match="Pulled models: bge-reranker-v2-m3:f16"):
        cli(tmp_path, "remove", "bge-reranker-v2-m4")


def test_show_and_list_agree_about_the_built_in_model(tmp_path: Path, home: Path) -> None:
    """`show` reported "not on this machine" although `list` listed it, and named a command with blanks."""
    absent = cli(tmp_path, "show", "builtin:e5")
    assert "not on this machine; to get it: rerankd pull builtin:e5" in absent
    assert "max_length 512 tokens" in absent
    for name in ("builtin:e5", "e5"):
        assert "scored as an embedding model: " in cli(home, "show", name)


def test_the_catalog_lists_size_languages_licence_and_method(tmp_path: Path) -> None:
    listed = cli(tmp_path, "list", "--catalog").splitlines()
    assert "qwen3-reranker-0.6b\t639 MB\tmulti\tApache-2.0\t8192\tcausal_lm" in listed
    rows = json.loads(cli(tmp_path, "list", "--catalog", "--json"))
    assert all(row["max_length"] and row["licence"] and row["languages"] for row in rows)
    # A repository of safetensors holds the weights in one type, which is not known of all.
    assert all(row["quant"] for row in rows if any("gguf" in ref.lower() for ref in row["refs"]))


def test_serving_a_model_that_was_not_pulled_names_the_command(tmp_path: Path) -> None:
    ended = rerankd("serve", "bge-reranker-v2-m3", "--port", "0", home=tmp_path)
    assert (ended.returncode, "rerankd pull bge-reranker-v2-m3" in ended.stderr) == (3, True)


def test_a_terminal_shows_a_progress_bar(hub: FakeHub, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rerankd", "pull", "bge-reranker-v2-m3", "--no-check"],
        env=environment(tmp_path, HF_ENDPOINT=hub.url, TERM="xterm", COLUMNS="120"),
        stderr=slave,
        stdout=slave,
        stdin=slave,
    )
    os.close(slave)
    seen = b""
    while data := _read(master):
        seen += data
    os.close(master)
    assert process.wait(30) == 0, seen.decode()
    assert b"downloading" in seen
    assert b"bge-reranker-v2-m3 is ready" in seen


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end of the terminal is closed
        return b""


def test_an_unreachable_hub_is_reported_in_one_line(tmp_path: Path) -> None:
    ended = rerankd(
        "pull",
        "ms:org/repo",
        home=tmp_path,
        MODELSCOPE_ENDPOINT="http://127.0.0.1:9",
        MODELSCOPE_HOME=str(tmp_path / "ms"),
        MODELSCOPE_CACHE=str(tmp_path / "ms"),
        MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS="2",
    )
    progress, message = ended.stderr.splitlines()
    assert (ended.returncode, progress) == (5, "listing org/repo on ModelScope …")
    assert "Connection refused" in message
    assert len(message) < 320
