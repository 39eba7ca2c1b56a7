"""The start of the service: it listens at once, serves the models that can be served, and handles signals at
any time."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import GOLDEN, MODEL, Service, raw_scores, right, service

import fake_engine
import support
from rerankd import Reranker, Settings, processes
from rerankd.errors import ModelFileError, ModelRefused, ModelUnavailable

until = partial(support.until, timeout_s=60)
OTHER = GOLDEN / "modernbert-head.gguf"
# A causal LM without a template: a valid file, but it cannot be scored correctly.
UNSCORABLE = GOLDEN / "qwen2-labels.gguf"


def phases(it: Service) -> dict[str, str]:
    return {row["model"]: row["engine"]["state"] for row in it.get("/health").json()["models"]}


def ask(it: Service, model: str | None, **headers: str) -> httpx.Response:
    body = {"query": "q", "documents": ["a"], "raw_scores": True}
    return it.post("/v1/rerank", body if model is None else {**body, "model": model}, **headers)


def listening(it: Service) -> None:
    """Wait until the service reports its address, which is before it is ready."""
    pattern = re.compile(r"listens at (http://\S+)")
    until(lambda: pattern.search(it.output) or it.process.poll() is not None)
    found = pattern.search(it.output)
    assert found, it.output
    it.url = found.group(1).replace("localhost", "127.0.0.1")


def test_a_missing_model_does_not_block_others_and_is_served_once_present(tmp_path: Path) -> None:
    late = tmp_path / "late.gguf"
    with service(tmp_path, model=f"{late},{MODEL}") as it:
        assert f"{late.stem} is NOT served: The file {late} does not exist" in it.output
        assert phases(it) == {"late": "refused", "xlmr-head": "ready"}
        assert (it.get("/health").json()["status"], it.get("/ready").status_code) == ("ok", 200)
        listed = it.get("/v1/models").json()
        assert [row["id"] for row in listed["data"]] == ["xlmr-head"]
        assert [row["id"] for row in listed["unavailable"]] == ["late"]
        assert "does not exist" in listed["unavailable"][0]["reason"]
        (told,) = it.get("/v1/status").json()["unavailable"]
        assert (told["id"], told["state"], told["ref"]) == ("late", "refused", str(late))
        assert 'rerankd_model_served{model="late"} 0.0' in it.get("/metrics").text
        # A request without a model name is for the first model; no other model answers it.
        for name in ("late", None):
            answer = ask(it, name)
            assert answer.status_code == 503 and "does not exist" in answer.json()["message"]
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert raw_scores(ask(it, "xlmr-head")) == right(["a"])
        one = it.get("/v1/models/late")
        assert one.status_code == 503 and "does not exist" in one.json()["message"]
        shutil.copy(OTHER, late)
        until(lambda: phases(it) == {"late": "ready", "xlmr-head": "ready"})
        assert raw_scores(ask(it, None)) == right(["a"])


def test_a_refused_model_waits_for_a_reload_and_does_not_block_others(tmp_path: Path) -> None:
    path = tmp_path / "second.gguf"
    shutil.copy(UNSCORABLE, path)
    with service(tmp_path, model=f"{MODEL},{path}") as it:
        assert phases(it) == {"xlmr-head": "ready", "second": "refused"}
        answer = ask(it, "second")
        assert answer.status_code == 422
        assert "template" in answer.json()["message"] and "kill -HUP" in answer.json()["message"]
        assert raw_scores(ask(it, None)) == right(["a"])
        # With two models, unknown names are rejected.
        assert ask(it, "gpt-4").status_code == 404
        shutil.copy(OTHER, path)
        it.signal(signal.SIGHUP)
        until(lambda: phases(it)["second"] == "ready")
        assert raw_scores(ask(it, "second")) == right(["a"])


def test_a_duplicate_name_and_a_model_over_budget_do_not_block_others(tmp_path: Path) -> None:
    twin = tmp_path / "xlmr-head.gguf"
    shutil.copy(OTHER, twin)
    large = tmp_path / "large.gguf"
    shutil.copy(MODEL, large)
    with large.open("ab") as stream:
        stream.truncate(64 * 2**20)
    models = f"{MODEL},{twin},{large}"
    with service(tmp_path, model=models, memory_budget=60 * 2**20, preload=False) as it:
        rows = {row["id"]: row["error"] for row in it.get("/v1/status").json()["unavailable"]}
        assert set(rows) == {str(twin), "large"}
        assert "Two models have the name 'xlmr-head'" in rows[str(twin)]
        assert "the budget for all engines is 60 MiB" in rows["large"]
        assert raw_scores(ask(it, "xlmr-head")) == right(["a"])


def test_a_failed_download_does_not_block_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with service(tmp_path, model=f"builtin:e5,{MODEL}") as it:
        assert phases(it) == {"builtin:e5": "refused", "xlmr-head": "ready"}
        assert "could not be downloaded" in ask(it, "builtin:e5").json()["message"]
        assert raw_scores(ask(it, "xlmr-head")) == right(["a"])
        # It is retried, which does not affect the others.
        retry = it.get("/v1/status").json()["unavailable"][0]["retry_after_s"]
        until(lambda: it.get("/v1/status").json()["unavailable"][0]["retry_after_s"] > retry)
        assert raw_scores(ask(it, "xlmr-head")) == right(["a"])


def test_a_reload_that_would_refuse_all_models_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "moves.gguf"
    shutil.copy(OTHER, path)
    file = tmp_path / "rerankd.toml"

    def write(max_length: int, *, second: bool) -> None:
        more = f'[models.two]\nref = "{MODEL}"\n' if second else ""
        file.write_text(f'[models.one]\nref = "{path}"\nmax_length = {max_length}\n{more}')

    write(100, second=False)
    with service(tmp_path, model="", config=file) as it:
        path.rename(tmp_path / "away.gguf")
        write(200, second=False)
        it.signal(signal.SIGHUP)
        until(lambda: "the settings were not reloaded: The file " in it.output)
        assert raw_scores(ask(it, None)) == right(["a"])
        # With a second model, the other settings are applied, and this one keeps its previous settings.
        write(200, second=True)
        it.signal(signal.SIGHUP)
        until(lambda: phases(it) == {"one": "ready", "two": "ready"})
        assert "one keeps its previous settings: The file " in it.output
        assert raw_scores(ask(it, "one")) == right(["a"])
        assert it.get("/v1/models").status_code == 200  # although a file is missing
        (tmp_path / "away.gguf").rename(path)
        it.signal(signal.SIGHUP)
        until(
            lambda: {row["id"]: row["window"] for row in it.get("/v1/status").json()["models"]}["one"] == 200
        )


def test_it_listens_at_once_and_reports_what_it_waits_for(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with service(tmp_path, "--load-gate", str(gate), wait=False) as it:
        listening(it)
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(ask(it, None)))
        thread.start()
        health = it.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "starting")
        until(lambda: phases(it) == {"xlmr-head": "starting"})
        assert it.get("/metrics").status_code == 200
        for where in ("/ready", "/v1/models/xlmr-head/ready"):
            told = it.get(where)
            assert told.status_code == 503 and int(told.headers["retry-after"]) >= 1
            (awaited,) = told.json()["waiting_for"]
            assert (awaited["model"], awaited["state"]) == ("xlmr-head", "starting")
            assert 0 <= awaited["since_s"] < 60
        hurried = ask(it, None, **{"x-request-timeout": "0.3"})
        assert hurried.status_code == 503 and int(hurried.headers["retry-after"]) >= 1
        assert " serves " not in it.output
        gate.touch()
        thread.join()
        assert raw_scores(answers[0]) == right(["a"])  # it waited
        it.wait_up()
        assert it.get("/ready").status_code == 200
        assert it.get("/v1/models/xlmr-head/ready").status_code == 200
        assert it.get("/v1/models/who/ready").status_code == 404


@pytest.fixture
def silent_index(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A package index that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{sock.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        yield sock


def test_the_port_is_open_while_a_model_is_fetched(tmp_path: Path, silent_index: socket.socket) -> None:
    with service(tmp_path, model=f"builtin:e5,{MODEL}", wait=False) as it:
        listening(it)
        assert raw_scores(ask(it, "xlmr-head")) == right(["a"])
        with silent_index.accept()[0]:
            (awaited,) = it.get("/v1/models/builtin:e5/ready").json()["waiting_for"]
            assert awaited["doing"] == "downloading the built-in model, 0%"
            assert "downloading the built-in model" in it.get("/ready").json()["message"]
            late = ask(it, "builtin:e5", **{"x-request-timeout": "0.3"})
            assert late.status_code == 503 and int(late.headers["retry-after"]) >= 1
            assert [row["id"] for row in it.get("/v1/models").json()["data"]] == ["builtin:e5", "xlmr-head"]
            it.signal(signal.SIGTERM)
            assert it.ended() == 0
    assert list((tmp_path / "home" / "models").iterdir()) == []


def test_sighup_while_a_model_loads_is_safe(tmp_path: Path) -> None:
    file = tmp_path / "rerankd.toml"
    file.write_text(f'[models.one]\nref = "{MODEL}"\n')
    gate = tmp_path / "gate"
    with service(tmp_path, "--load-gate", str(gate), model="", config=file, wait=False) as it:
        until(lambda: it.engines() != [])
        (engine,) = it.engines()
        file.write_text(f'max_documents = 3\n[models.one]\nref = "{MODEL}"\n')
        it.signal(signal.SIGHUP)
        until(lambda: "the settings were reloaded" in it.output)
        gate.touch()
        it.wait_up()
        assert it.engines() == [engine]
        assert it.rerank(["a", "b", "c", "d"]).status_code == 400


def test_sighup_during_imports_is_safe(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "class Hook:\n"
        "    def find_spec(self, name, *_):\n"
        "        name == 'rerankd.cli' and os.kill(os.getpid(), signal.SIGHUP)\n"
        "sys.meta_path.insert(0, Hook())\n"
        "sys.argv = ['rerankd', 'serve', '--help']\n"
        "from rerankd.__main__ import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and "Usage" in done.stdout


def test_sighup_on_a_terminal_reloads(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    environ = support.environment(tmp_path, RERANKD_LLAMA_PATH=str(fake_engine.install(tmp_path)))
    it = subprocess.Popen(
        [sys.executable, "-m", "rerankd", "serve", str(MODEL), "--port", "0"],
        env=environ,
        stdin=slave,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert it.stderr is not None
    with it.stderr:
        next(line for line in it.stderr if "API endpoint URL" in line)
        it.send_signal(signal.SIGHUP)
        assert "the settings were reloaded" in next(iter(it.stderr))
        it.send_signal(signal.SIGTERM)
        assert it.wait(20) == 0
    os.close(master)
    os.close(slave)


def test_a_second_signal_while_a_model_loads_exits_at_once(tmp_path: Path) -> None:
    with service(tmp_path, "--slow-load", "60", "--ignore-term", stop_timeout_s=60, wait=False) as it:
        until(lambda: it.engines() != [])
        (engine,) = it.engines()
        started = time.monotonic()
        it.signal(signal.SIGTERM)
        until(lambda: phases_or_none(it) is None or "stopping" in str(phases_or_none(it)))
        it.signal(signal.SIGINT)
        assert it.ended() == 0
        assert time.monotonic() - started < 10
        assert processes.identify(engine) is None
        assert list(it.runtime.iterdir()) == []


def phases_or_none(it: Service) -> Any:
    """The answer of /health; None if the service does not answer."""
    with contextlib.suppress(httpx.HTTPError):
        return it.get("/health").json() if it.url else None
    return None


def test_the_rerank_command_waits_for_a_loading_server(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with service(tmp_path, "--load-gate", str(gate), wait=False) as it:
        listening(it)
        port = it.url.rpartition(":")[2]

        def open_the_gate() -> None:
            until(lambda: it.get("/ready").status_code == 503 and it.process.poll() is None)
            until(lambda: it.metric("rerankd_queue_requests") == 1)
            gate.touch()

        thread = threading.Thread(target=open_the_gate)
        thread.start()
        ended = support.rerankd("rerank", "q", home=tmp_path, stdin="a\n", RERANKD_PORT=port)
        thread.join()
        assert ended.returncode == 0, ended.stderr
        assert "starting an engine" not in ended.stderr


def test_a_removed_engine_build_does_not_block_the_start(tmp_path: Path) -> None:
    engines = tmp_path / "home" / "engines"
    engines.mkdir(parents=True)
    (engines / "used").write_text("b9-cpu-0\n")
    with service(tmp_path, real=True, engine="llama") as it:
        assert "b9-cpu-0, chosen with rerankd engine use, was removed" in it.output
        assert ask(it, None).status_code == 200


async def test_the_library_starts_with_the_models_that_can_be_served(tmp_path: Path) -> None:
    program = fake_engine.install(tmp_path)
    models = (str(MODEL), str(UNSCORABLE), "/no/such.gguf")
    async with Reranker(Settings(model=models, home=tmp_path, llama_path=program)) as it:
        assert [row.index for row in (await it.rerank("q", ["a"])).results] == [0]
        with pytest.raises(ModelRefused, match="template"):
            await it.rerank("q", ["a"], model="qwen2-labels")
        with pytest.raises(ModelUnavailable, match="does not exist"):
            await it.rerank("q", ["a"], model="such")
    with pytest.raises(ModelFileError, match="template"):
        async with Reranker(Settings(model=models[1:], home=tmp_path, llama_path=program)):
            pass


def test_a_data_folder_that_can_not_be_made_keeps_no_model_from_being_served(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with service(tmp_path, home=tmp_path / "file" / "home") as it:
        assert raw_scores(it.rerank(["a"])) == right(["a"])
        assert "Traceback" not in it.output
