"""Several models in one service: loaded on demand, within a budget, changed at run time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import GOLDEN, Service, raw_scores, right, service

import support
from fake_hub import FakeHub, fake_hub
from rerankd import processes

NAMES = ("xlmr-head", "modernbert-head", "qwen3-headed")
# Most of these tests start an engine.
until = partial(support.until, timeout_s=20)
DOCUMENTS = ["The giant panda is a bear of China.", "Bread is baked from flour.", "熊猫住在竹林里"]


def path(name: str) -> str:
    return str(GOLDEN / f"{name}.gguf")


def ask(it: Service, model: str, documents: list[str] = DOCUMENTS) -> httpx.Response:
    body = {"model": model, "query": "what is a panda?", "documents": documents, "raw_scores": True}
    return it.post("/v1/rerank", body)


def phases(it: Service) -> dict[str, str]:
    return {row["model"]: row["engine"]["state"] for row in it.get("/health").json()["models"]}


def starts(it: Service) -> dict[str, int]:
    return {row["model"]: row["engine"]["starts"] for row in it.get("/health").json()["models"]}


def memory(it: Service) -> list[int]:
    lines = it.get("/metrics").text.splitlines()
    return [int(float(line.split()[-1])) for line in lines if line.startswith("rerankd_engine_memory_bytes{")]


def test_three_models_in_memory_for_two_give_correct_answers(tmp_path: Path) -> None:
    several = ",".join(map(path, NAMES))
    # Scores of two services are compared, and `auto` may choose another precision at each start.
    options = {"real": True, "model": several, "cache_entries": 0, "precision": "f32"}
    with service(tmp_path, **options) as it:
        assert set(phases(it).values()) == {"ready"}
        held = sorted(memory(it))
        expected = {name: raw_scores(ask(it, name)) for name in NAMES}
        assert len({tuple(scores.values()) for scores in expected.values()}) == 3
    room = sum(held[1:]) + held[0] // 10
    with service(tmp_path, memory_budget=room, least_stay_s=0.3, **options) as it:
        # A model's memory is known after its first load; until then it is estimated from the file size.
        for name in NAMES:
            assert ask(it, name).status_code == 200
        until(lambda: len(it.engines()) <= 2)
        wrong: list[Any] = []
        most_engines = 0

        def client(first: int) -> None:
            for turn in range(6):
                name = NAMES[(first + turn) % 3]
                answer = ask(it, name)
                if answer.status_code != 200 or answer.json()["model"] != name:
                    wrong.append(answer.text)
                elif raw_scores(answer) != pytest.approx(expected[name], abs=1e-4):
                    wrong.append((name, raw_scores(answer)))

        threads = [threading.Thread(target=client, args=[number]) for number in range(6)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            most_engines = max(most_engines, len(it.engines()))
            time.sleep(0.02)
        assert wrong == []
        assert most_engines <= 2
        print(f"\nengines started for 36 requests to three models with room for two: {starts(it)}")


@pytest.fixture(scope="module")
def lazy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two models that are loaded on demand and unloaded soon."""
    folder = tmp_path_factory.mktemp("lazy")
    both = f"{path('xlmr-head')},{path('modernbert-head')}"
    with service(folder, model=both, preload=False, idle_unload_s=0.5) as it:
        yield it


def test_a_model_is_loaded_on_demand_and_unloaded_when_idle(lazy: Service) -> None:
    assert "It is loaded at its first request." in lazy.output
    assert lazy.get("/ready").status_code == 200
    assert lazy.get("/health").json()["status"] == "ok"
    assert raw_scores(ask(lazy, "modernbert-head")) == right(DOCUMENTS, "what is a panda?")
    assert phases(lazy) == {"xlmr-head": "unloaded", "modernbert-head": "ready"}
    until(lambda: phases(lazy)["modernbert-head"] == "unloaded")
    assert lazy.engines() == []


def test_with_several_models_unknown_names_fail_and_no_name_selects_the_first(lazy: Service) -> None:
    unknown = ask(lazy, "gpt-4")
    assert unknown.status_code == 404
    assert "xlmr-head, modernbert-head" in unknown.json()["message"]
    answer = lazy.post("/v1/rerank", {"query": "q", "documents": ["a"]})
    assert answer.headers["x-rerankd-model"] == "xlmr-head"
    rows = lazy.get("/v1/models").json()["data"]
    assert [row["id"] for row in rows] == ["xlmr-head", "modernbert-head"]


def test_a_model_over_the_memory_budget_is_refused_with_the_numbers(tmp_path: Path) -> None:
    flags = ["--only-first", str(tmp_path / "first"), "--grow-mib", "0"]
    with service(tmp_path, *flags, model=path("xlmr-head"), preload=False, memory_budget=2 * 2**20) as it:
        answer = ask(it, "xlmr-head")
        assert answer.status_code == 507
        assert "the budget for all engines is 2 MiB" in answer.json()["message"]
        until(lambda: it.engines() == [])
        # Its memory is now known, so it is not loaded again.
        assert ask(it, "xlmr-head").status_code == 507
        assert starts(it) == {"xlmr-head": 1}


def test_a_request_that_waits_for_memory_past_its_deadline_gets_retry_after(tmp_path: Path) -> None:
    both = f"{path('xlmr-head')},{path('modernbert-head')}"
    with service(tmp_path, model=path("xlmr-head")) as it:
        room = memory(it)[0] * 3 // 2
    with service(
        tmp_path, "--delay-ms", "50", model=both, preload=False, memory_budget=room, least_stay_s=60
    ) as it:
        for name in NAMES[:2]:  # after this their memory is known
            assert ask(it, name).status_code == 200
        busy = threading.Thread(target=ask, args=[it, "modernbert-head", [f"{n}" for n in range(100)]])
        busy.start()
        until(lambda: it.metric("rerankd_queue_requests") >= 1)
        body = {"model": "xlmr-head", "query": "new", "documents": ["a"]}
        answer = it.post("/v1/rerank", body, **{"x-request-timeout": "0.5"})
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert "is waiting for memory that other models use" in answer.json()["message"]
        busy.join()
        assert it.post("/v1/rerank", body).status_code == 200


def test_replicas_share_the_work_and_one_may_crash(tmp_path: Path) -> None:
    with service(tmp_path, "--delay-ms", "2", model=path("xlmr-head"), replicas=2, cache_entries=0) as it:
        first, second = sorted(it.engines())
        documents = [f"document {number}" for number in range(200)]
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(it.rerank(documents)))
        thread.start()
        until(lambda: it.metric("rerankd_queue_requests") == 1)
        os.kill(first, signal.SIGKILL)
        thread.join()
        assert raw_scores(answers[0]) == right(documents)
        until(lambda: len(it.engines()) == 2 and first not in it.engines())
        assert second in it.engines()
        assert it.metric("rerankd_engine_starts") == 3


def settings_file(folder: Path, text: str) -> str:
    file = folder / "rerankd.toml"
    file.write_text(text)
    return str(file)


def section(name: str, model: str, more: str = "") -> str:
    return f'[models.{name}]\nref = "{path(model)}"\n{more}\n'


def test_sighup_starts_and_stops_only_what_changed(tmp_path: Path) -> None:
    one, two = section("one", "xlmr-head"), section("two", "modernbert-head")
    file = settings_file(tmp_path, "max_documents = 5\n" + one + two)
    with service(tmp_path, "--delay-ms", "150", model="", config=file) as it:
        before = {name: pid(it, name) for name in ("one", "two")}
        answers: list[httpx.Response] = []
        many = [f"document {number}" for number in range(5)]
        thread = threading.Thread(target=lambda: answers.append(ask(it, "two", many)))
        thread.start()
        until(lambda: it.metric("rerankd_queue_requests") >= 1)
        # `two` gets another max_length, `three` is new, and max_documents changes.
        changed = section("two", "modernbert-head", "max_length = 200")
        settings_file(tmp_path, "max_documents = 6\n" + one + changed + section("three", "xlmr-head"))
        it.signal(signal.SIGHUP)
        until(lambda: phases(it) == {"one": "ready", "two": "ready", "three": "ready"})
        thread.join()
        assert raw_scores(answers[0]) == right(many, "what is a panda?")
        assert pid(it, "one") == before["one"]
        assert pid(it, "two") != before["two"]
        until(lambda: processes.identify(before["two"]) is None)
        assert ask(it, "one", [*many, "six"]).status_code == 200
        # Invalid settings change nothing, and the log says why.
        for text, says in (
            ("max_dokuments = 1\n", "max_dokuments is not a setting"),
            (section("one", "no-such-file"), "does not exist"),
        ):
            settings_file(tmp_path, text)
            it.signal(signal.SIGHUP)
            until(lambda says=says: says in it.output)
            assert set(phases(it)) == {"one", "two", "three"}
        # A model that cannot be served is listed as refused; the others are served.
        settings_file(tmp_path, one + section("uno", "xlmr-head", 'aliases = ["one"]'))
        it.signal(signal.SIGHUP)
        until(lambda: phases(it) == {"one": "ready", "uno": "refused"})
        assert "Two models have the name 'one'" in it.output
        settings_file(tmp_path, one + "\n")
        it.signal(signal.SIGHUP)
        until(lambda: phases(it) == {"one": "ready"})
        until(lambda: len(it.engines()) == 1)
        assert pid(it, "one") == before["one"]
        settings_file(tmp_path, "header_timeout_s = 3\n" + one)
        it.signal(signal.SIGHUP)
        until(lambda: "take effect after a restart of rerankd: header_timeout_s" in it.output)


def pid(it: Service, name: str) -> int:
    """The process id of a model's engine."""
    rows = it.get("/v1/status", **KEY).json()["models"]
    (found,) = next(row["engine"]["pids"] for row in rows if row["id"] == name)
    return int(found)


BGE = "gpustack/bge-reranker-v2-m3-GGUF"


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    model = (GOLDEN / "xlmr-head.gguf").read_bytes()
    with fake_hub(repos={BGE: {"bge-reranker-v2-m3-Q8_0.gguf": model}}) as running:
        yield running


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory, hub: FakeHub) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("admin")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_HOME", str(folder / "hf"))
        with service(folder, admin_api=True, api_key="k", model=path("modernbert-head")) as it:
            yield it


KEY = {"x-api-key": "k"}


def admin_call(it: Service, method: str, where: str, **options: Any) -> httpx.Response:
    with it.client() as client:
        return client.request(method, f"/v1/models/{where}", **{"headers": KEY, **options})


@pytest.mark.parametrize(
    ("method", "where"),
    [("POST", "x/load"), ("POST", "x/unload"), ("POST", "pull"), ("DELETE", "x")],
)
def test_the_admin_api_requires_the_key_and_is_off_by_default(
    admin: Service, lazy: Service, method: str, where: str
) -> None:
    assert admin_call(admin, method, where, headers={}).status_code == 401
    off = admin_call(lazy, method, where)
    assert off.status_code == 403
    assert "admin_api = true" in off.json()["message"]
    foreign = {**KEY, "origin": "http://evil.example"}
    assert admin_call(admin, method, where, headers=foreign).status_code == 403


def test_load_and_unload(admin: Service) -> None:
    assert admin_call(admin, "POST", "modernbert-head/unload").status_code == 202
    until(lambda: phases(admin) == {"modernbert-head": "unloaded"})
    assert admin_call(admin, "POST", "modernbert-head/load").json()["status"] == "loaded"
    assert phases(admin) == {"modernbert-head": "ready"}
    assert admin_call(admin, "POST", "who/load").status_code == 404


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]


def test_pull_then_serve_then_delete(admin: Service) -> None:
    answer = admin_call(admin, "POST", "pull", json={"model": "bge-reranker-v2-m3:q8_0"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = events(answer)
    assert told[-1] == {"status": "success", "model": "bge-reranker-v2-m3:q8_0"}
    downloads = [event for event in told if event["status"].startswith("downloading")]
    assert downloads[-1]["completed"] == downloads[-1]["total"] > 0
    assert set(phases(admin)) == {"modernbert-head", "bge-reranker-v2-m3:q8_0"}
    body = {"model": "bge-reranker-v2-m3:q8_0", "query": "q", "documents": ["a"], "raw_scores": True}
    assert raw_scores(admin.post("/v1/rerank", body, **KEY)) == right(["a"])
    gone = admin_call(admin, "DELETE", "bge-reranker-v2-m3:q8_0")
    assert gone.json()["status"] == "deleted" and gone.json()["freed_bytes"] > 0
    assert set(phases(admin)) == {"modernbert-head"}
    until(lambda: len(admin.engines()) == 1)
    again = admin_call(admin, "DELETE", "bge-reranker-v2-m3:q8_0")
    assert again.status_code == 404


def test_a_file_that_was_not_pulled_is_not_deleted(admin: Service) -> None:
    answer = admin_call(admin, "DELETE", "modernbert-head")
    assert answer.status_code == 409
    assert (GOLDEN / "modernbert-head.gguf").exists()


def test_a_failed_pull_ends_with_the_reason(admin: Service, hub: FakeHub) -> None:
    told = events(admin_call(admin, "POST", "pull", json={"model": "hf:no/such"}))
    assert told[-1]["status"] == "error" and told[-1]["code"] in ("fetch_error", "model_not_found")
    whole = admin_call(admin, "POST", "pull", json={"model": "hf:no/such", "stream": False})
    assert whole.status_code == 502 and whole.json()["status"] == "error"
    assert admin_call(admin, "POST", "pull", json={}).status_code == 400


def test_an_abandoned_pull_ends_and_the_next_resumes_it(admin: Service, hub: FakeHub) -> None:
    hub.hang = threading.Event()
    try:
        with (
            admin.client() as client,
            client.stream("POST", "/v1/models/pull", headers=KEY, json={"model": f"hf:{BGE}:Q8_0"}) as answer,
        ):
            for line in answer.iter_lines():
                if "downloading" in line:
                    break
    finally:
        hub.hang.set()
        hub.hang = None
    told = events(admin_call(admin, "POST", "pull", json={"model": f"hf:{BGE}:Q8_0"}))
    assert told[-1]["status"] == "success"
    assert admin_call(admin, "DELETE", f"hf:{BGE}:q8_0").status_code == 200


def test_after_a_pull_a_reload_serves_the_pulled_model_and_the_default_one(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    # The default model is the one pulled last; at the start there is only one.
    first = tmp_path / "home" / "models" / "first"
    first.mkdir(parents=True)
    shutil.copy(path("modernbert-head"), first / "first.gguf")
    file = settings_file(tmp_path, "admin_api = true\n")
    with service(tmp_path, api_key="k", model="", config=file) as it:
        pulled = events(admin_call(it, "POST", "pull", json={"model": "bge-reranker-v2-m3:q8_0"}))
        assert pulled[-1]["status"] == "success"
        for text in (
            "admin_api = true\n",
            'admin_api = true\nmodel = ["first", "bge-reranker-v2-m3:q8_0"]\n',
        ):
            it.lines.clear()
            settings_file(tmp_path, text)
            it.signal(signal.SIGHUP)
            until(lambda: "the settings were reloaded" in it.output)
            assert list(phases(it)) == ["first", "bge-reranker-v2-m3:q8_0"]
            until(lambda: set(phases(it).values()) == {"ready"})
        # Changed settings also apply to the pulled model.
        before = pid(it, "bge-reranker-v2-m3:q8_0")
        settings_file(tmp_path, "admin_api = true\nthreads = 1\n")
        it.signal(signal.SIGHUP)
        until(lambda: processes.identify(before) is None)
        until(lambda: set(phases(it).values()) == {"ready"})
        assert list(phases(it)) == ["first", "bge-reranker-v2-m3:q8_0"]
