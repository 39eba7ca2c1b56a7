"""Engines that crash with their settings: the next start uses safer settings, which are stored."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from served import Service, raw_scores, right, service

import fake_engine
import support
from support import until

FLASH_OFF = "--flash-attn off"


def kept(folder: Path) -> list[list[str]]:
    file = folder / "home" / "state" / "safer_settings.json"
    said = json.loads(file.read_text())["entries"] if file.exists() else {}
    return [entry[0]["steps"] for entry in said.values()]


def why(it: Service) -> str:
    return str(it.get("/v1/status").json()["models"][0]["engine"]["why"])


def test_an_engine_that_crashes_while_loading_is_started_with_safer_settings(tmp_path: Path) -> None:
    with service(tmp_path, "--crash-with", FLASH_OFF) as it:
        assert raw_scores(it.rerank(["a"])) == right(["a"])
        assert it.metric("rerankd_engine_starts") == 2
        assert "llama.cpp's default for flash attention" in it.output
        assert "crashed while loading" in why(it)
    assert kept(tmp_path) == [["flash_attention"]]
    with service(tmp_path, "--crash-with", FLASH_OFF) as it:  # the safer settings are stored
        assert raw_scores(it.rerank(["a"])) == right(["a"])
        assert it.metric("rerankd_engine_starts") == 1


def test_an_engine_that_crashes_under_load_gets_safer_settings_and_no_document_is_blamed(
    tmp_path: Path,
) -> None:
    after = str(fake_engine.CALLS_AT_LOAD + 3)
    with service(tmp_path, "--crash-with", FLASH_OFF, "--crash-with-after", after, cache_entries=0) as it:
        for turn in range(12):
            documents = [f"{turn} {at}" for at in range(8)]
            assert raw_scores(it.rerank(documents)) == right(documents)
        assert "crashed under load" in why(it)
        assert it.metric("rerankd_engine_lost") <= 5
    assert kept(tmp_path) == [["flash_attention"]]
    assert not (tmp_path / "home" / "state" / "quarantine.json").exists()


def test_a_bad_document_changes_no_settings(tmp_path: Path) -> None:
    with service(tmp_path, "--crash-on", "POISON") as it:
        for turn in range(3):
            assert it.rerank([f"POISON {turn}", *(f"{turn} {at}" for at in range(30))]).status_code == 200
        assert "safer" not in why(it)
    assert kept(tmp_path) == []


def test_external_kills_change_no_settings(tmp_path: Path) -> None:
    with service(tmp_path) as it:
        for _ in range(3):
            until(lambda: it.get("/ready").status_code == 200)
            (engine,) = it.engines()
            os.kill(engine, signal.SIGKILL)
            assert it.rerank(["a"]).status_code == 200
    assert kept(tmp_path) == []


def denies_code_writing() -> bool:
    """Whether this system has PR_SET_MDWE (Linux 6.3), which a unit's MemoryDenyWriteExecute sets."""
    libc = ctypes.CDLL(None)
    return sys.platform == "linux" and libc.prctl(66, 0, 0, 0, 0) >= 0  # PR_GET_MDWE


@pytest.mark.skipif(not denies_code_writing(), reason="this kernel has no PR_SET_MDWE")
def test_llama_cpp_takes_over_if_openvino_cannot_write_code(tmp_path: Path) -> None:
    code = (
        "import ctypes, os, sys\n"
        "ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)  # PR_SET_MDWE\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    with service(tmp_path, real=True, under=[sys.executable, "-c", code]) as it:
        assert it.rerank(["a", "b"]).status_code == 200
        assert it.get("/v1/status").json()["models"][0]["engine"]["program"].startswith("llama.cpp")
        assert why(it).startswith("OpenVINO can't run it here; ")
        assert "exited while loading" in why(it)
    ((*_, last),) = kept(tmp_path)
    assert last == "other_backend"
    # Stored until a reload: without PR_SET_MDWE the default engine works.
    with service(tmp_path, real=True) as it:
        assert it.get("/v1/status").json()["models"][0]["engine"]["program"].startswith("llama.cpp")
        port = it.url.rpartition(":")[2]
        support.rerankd("reload", "xlmr-head", home=tmp_path / "home", RERANKD_PORT=port)
        until(lambda: "OpenVINO" in it.get("/v1/status").json()["models"][0]["engine"]["program"], 30)
    assert kept(tmp_path) == []
