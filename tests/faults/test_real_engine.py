"""Faults of the real engines under load. The long tests are marked `soak`: make test-soak."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from bodies import bodies
from hypothesis import HealthCheck, Phase, given, settings
from served import GOLDEN, Service, service
from served import raw_scores as scores

from rerankd import processes
from rerankd.process import restart_delay

CASES = {
    case["id"]: 1 / (1 + math.exp(-case["raw"]))
    for case in json.loads((GOLDEN / "xlmr-head.json").read_text())["cases"]
    if case["fits"]
}
PAIRS = [
    pair
    for pair in json.loads((GOLDEN / "pairs.json").read_text())
    if pair["id"] in CASES and pair["document"].strip()  # blank ones are not scored
]
TOLERANCE = 1e-3  # the score contract


WITH_TORCH = pytest.param(
    "torch", marks=pytest.mark.skipif(find_spec("torch") is None, reason="no PyTorch here: make test-torch")
)


@pytest.fixture(params=["llama", "openvino", WITH_TORCH])
def quiet(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings that select an engine with one thread: on few cores, concurrent tests and engine threads would
    wait for each other."""
    return {"real": True, "threads": 1, "engine": request.param, "precision": "f32"}


class Client:
    """Sends pairs with known scores in a loop, and records the answers."""

    def __init__(self, it: Service, number: int) -> None:
        self._it = it
        self._number = number
        self._random = random.Random(number)
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.spans: list[tuple[float, float]] = []  # when a request was sent and answered

    def run(self, stop: threading.Event) -> None:
        with self._it.client() as http:
            while not stop.is_set():
                pair = self._random.choice(PAIRS)
                # The same query with several documents: the score of the first is known.
                others = [self._random.choice(PAIRS)["document"] for _ in range(self._random.randrange(12))]
                # One document is never cached, so that each request needs the engine.
                documents = [pair["document"], *others, f"{self._number} {self.statuses.total()}"]
                body = {"query": pair["query"], "documents": documents}
                asked = time.monotonic()
                answer = http.post("/v1/rerank", json=body)
                self.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    self.spans.append((asked, time.monotonic()))
                    got = scores(answer)
                    if len(got) != len(documents) or abs(got[0] - CASES[pair["id"]]) > TOLERANCE:
                        self.wrong.append(f"{pair['id']}: {got.get(0)} for {CASES[pair['id']]}")
                else:
                    assert answer.headers["retry-after"]


@contextmanager
def load(it: Service, count: int = 8) -> Iterator[list[Client]]:
    """Clients that send requests until the block ends."""
    clients = [Client(it, number) for number in range(count)]
    stop = threading.Event()
    threads = [threading.Thread(target=client.run, args=(stop,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield clients
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()


def kills(it: Service, count: int, sign: signal.Signals, within_s: float) -> list[float]:
    """Kill the engine repeatedly. Returns the seconds from each kill until a later request is answered."""
    waits = []
    with load(it) as clients:
        for _ in range(count):
            time.sleep(random.uniform(1.2, 1.6))
            (engine,) = it.engines()
            at = time.monotonic()
            os.kill(engine, sign)
            while it.get("/ready").status_code == 200 and time.monotonic() < at + within_s:
                time.sleep(0.01)
            with it.client() as http:
                pair = PAIRS[0]
                fresh = {"query": pair["query"], "documents": [f"after {at}"]}
                answer = http.post("/v1/rerank", json=fresh)
            waits.append(time.monotonic() - at)
            assert answer.status_code == 200, answer.text
            assert waits[-1] <= within_s
    statuses = sum((client.statuses for client in clients), Counter[int]())
    assert [wrong for client in clients for wrong in client.wrong] == []
    assert set(statuses) <= {200, 429, 503}
    print(
        f"\n{count} x {sign.name}: answers {dict(statuses)}, seconds until the next answer: median "
        f"{statistics.median(waits):.2f}, longest {max(waits):.2f}"
    )
    return waits


def test_killing_a_real_engine_under_load_loses_no_answer(tmp_path: Path, quiet: dict[str, Any]) -> None:
    with service(tmp_path, cache_entries=0, **quiet) as it:
        kills(it, 3, signal.SIGKILL, within_s=10)
        assert it.get("/health").json()["engine"]["starts"] == 4


def test_a_real_engine_that_is_stopped_is_replaced(tmp_path: Path, quiet: dict[str, Any]) -> None:
    with service(tmp_path, health_poll_s=0.3, cache_entries=0, **quiet) as it:
        kills(it, 1, signal.SIGSTOP, within_s=15)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_twenty_kills_under_eight_clients(tmp_path: Path, quiet: dict[str, Any]) -> None:
    with service(tmp_path, cache_entries=0, **quiet) as it:
        kills(it, 20, signal.SIGKILL, within_s=3)
        (engine,) = it.engines()
        it.signal(signal.SIGKILL)
        it.ended()
        time.sleep(0.2)
        assert processes.identify(engine) is None


class Loads:
    """Measures how long each load of the engine takes, from /health, until the block ends."""

    def __init__(self, it: Service) -> None:
        self.took = [0.0]
        self._it = it
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        began = None
        with self._it.client() as http:
            while not self._stop.wait(0.02):
                state = http.get("/health").json()["engine"]["state"]
                now = time.monotonic()
                if state == "starting":
                    began = began or now
                elif began is not None:
                    self.took.append(now - began)
                    began = None

    def __enter__(self) -> Loads:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["llama", "openvino"])
def test_an_engine_that_is_killed_each_time_it_is_ready(tmp_path: Path, kind: str) -> None:
    """Fifty times in a row, with default settings, under six clients; float32, because the expected scores
    are. An outage lasts as long as announced, plus a load."""
    with service(tmp_path, real=True, engine=kind, precision="f32") as it:
        kills: list[tuple[float, int]] = []
        mine: list[tuple[float, float]] = []
        with load(it, 6) as clients, it.client() as http, Loads(it) as loads:
            for number in range(50):
                while it.get("/ready").status_code != 200:
                    time.sleep(0.002)
                (engine,) = it.engines()
                killed, announced = time.monotonic(), 0
                os.kill(engine, signal.SIGKILL)
                while True:
                    asked = time.monotonic()
                    fresh = {"query": "q", "documents": [f"after kill {number} {asked}"]}
                    answer = http.post("/v1/rerank", json=fresh)
                    if answer.status_code == 200:
                        break
                    assert answer.status_code in (429, 503), answer.text
                    announced = max(announced, int(answer.headers["retry-after"]))
                    time.sleep(int(answer.headers["retry-after"]))
                mine.append((asked, time.monotonic()))
                kills.append((killed, announced))
        # An outage ends with the first answer to a request sent after the kill.
        spans = mine + [span for client in clients for span in client.spans]
        outages = [
            (min(came for asked, came in spans if asked > killed) - killed, announced)
            for killed, announced in kills
        ]
        statuses = sum((client.statuses for client in clients), Counter[int]())
        print(
            f"\n50 kills, {kind}: statuses {dict(statuses)}; outage median "
            f"{statistics.median(took for took, _ in outages):.2f} s, longest {max(outages)[0]:.2f} s, "
            f"announced then {max(outages)[1]} s; longest load {max(loads.took):.2f} s"
        )
        assert [wrong for client in clients for wrong in client.wrong] == []
        assert set(statuses) <= {200, 429, 503}
        # If the next start is close, requests wait for it and nothing is announced.
        longest = max(loads.took)
        assert [
            outage for outage in outages if outage[0] > max(outage[1], restart_delay.PATIENCE_S) + longest
        ] == []
        # No document was quarantined, and no safer settings were taken.
        assert not (tmp_path / "home" / "state" / "quarantine.json").exists()
        assert not (tmp_path / "home" / "state" / "safer_settings.json").exists()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_three_hangs_under_eight_clients(tmp_path: Path, quiet: dict[str, Any]) -> None:
    with service(tmp_path, cache_entries=0, **quiet) as it:
        kills(it, 3, signal.SIGSTOP, within_s=20)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_ten_thousand_requests_leave_memory_and_descriptors_as_they_were(
    tmp_path: Path, quiet: dict[str, Any]
) -> None:
    def open_files(pid: int) -> int:
        return len(os.listdir(f"/proc/{pid}/fd"))

    with service(tmp_path, cache_entries=2000, **quiet) as it:
        pid = it.process.pid
        (engine,) = it.engines()
        figures = []
        for thousand in range(11):
            with it.client() as http:
                for number in range(1000):
                    documents = [f"document {thousand} {number}", "the same each time"]
                    answer = http.post("/v1/rerank", json={"query": "q", "documents": documents})
                    assert answer.status_code == 200
            at = (
                processes.memory_bytes(pid),
                open_files(pid),
                processes.memory_bytes(engine),
                open_files(engine),
            )
            figures.append([value or 0 for value in at])
        print("\nservice MiB, files; engine MiB, files, after each 1,000 requests:")
        for memory, files, engine_memory, engine_files in figures:
            print(f"  {memory / 2**20:.1f} {files}  {engine_memory / 2**20:.1f} {engine_files}")
        first, last = figures[0], figures[-1]
        assert abs(last[0] - first[0]) <= 0.1 * first[0]
        assert last[1] <= first[1] + 2
        assert last[3] <= first[3] + 4


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_five_thousand_malformed_bodies(tmp_path: Path, quiet: dict[str, Any]) -> None:
    with service(tmp_path, **quiet) as it, it.client() as http:
        statuses: Counter[int] = Counter()

        @given(bodies)
        @settings(
            max_examples=5000,
            suppress_health_check=list(HealthCheck),
            database=None,
            phases=[Phase.generate],
        )
        def each(data: bytes) -> None:
            answer = http.post("/v1/rerank", content=data)
            assert answer.status_code < 500, (data, answer.text)
            statuses[answer.status_code] += 1

        each()
        print(f"\nanswers to {statuses.total()} bodies: {dict(statuses)}")
        assert it.get("/health").json()["engine"]["starts"] == 1


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_hundreds_of_clients_disconnect_at_once(tmp_path: Path, quiet: dict[str, Any]) -> None:
    """Hundreds of clients disconnect at once while their requests are being scored."""
    with service(tmp_path, cache_entries=0, max_queue_documents=10**6, **quiet) as it:
        # More than any engine scores in a second.
        words = " ".join(["document"] * 30)
        body = {"query": "q", "documents": [f"{words} {number}" for number in range(1000)]}

        def ask() -> None:
            with pytest.raises(httpx.TimeoutException), it.client() as http:
                http.post("/v1/rerank", json=body, timeout=1)

        threads = [threading.Thread(target=ask) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        deadline = time.monotonic() + 2
        while it.metric("rerankd_queue_requests") != 0:
            assert time.monotonic() < deadline
        started = time.monotonic()
        assert it.rerank(["a"]).status_code == 200
        print(f"\nthe first answer after 50 clients hung up: {time.monotonic() - started:.2f} s")
