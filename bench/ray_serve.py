"""What Ray Serve adds and gains: python bench/ray_serve.py [--part …] [--seconds 10]

Runs a Ray cluster on this machine, with the fake engine of the tests, which waits instead of computing: the
numbers are those of the way of a request, not of a model. Needs rerankd[ray].

- latency: p50 of requests with 50 documents whose scores are cached, one after the other; beside it, in turn,
  through an empty app in Ray Serve, which returns the body at once.
- throughput: answers per second of 8 clients, with one replica and with two. A request takes 100 ms.
- fairness: p50 of a client with one small request at a time, alone and beside another client with 8 large
  ones at a time, through Ray and with `rerankd serve`.
"""

from __future__ import annotations

import argparse
import itertools
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

import httpx
from ray import serve

import fake_engine
from rerankd import keys, machine
from rerankd.config import Settings
from rerankd.ray.connection import connected
from rerankd.ray.running import is_listening, served
from support import GOLDEN, start_serving, until

MODEL = GOLDEN / "xlmr-head.gguf"
DOCUMENTS = 50
# No text is sent twice, so that no cache answers.
_NUMBERS = itertools.count()


@serve.deployment(ray_actor_options={"num_cpus": 0}, logging_config={"enable_access_log": False})
class Empty:
    """Returns the body of a request."""

    async def __call__(self, request: Any) -> Any:
        return await request.json()


def post(http: httpx.Client, url: str, body: Any, key: str) -> float:
    """Send a request; seconds until its response."""
    started = time.perf_counter()
    http.post(url, json=body, headers={"authorization": f"Bearer {key}"}).raise_for_status()
    return time.perf_counter() - started


def body(query: str, documents: int = DOCUMENTS) -> dict[str, Any]:
    return {"query": query, "documents": [f"document {at} of {query}" for at in range(documents)]}


def p50_ms(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1000


class Place:
    """Where the model is served, and two keys for clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        made = [keys.new(name) for name in ("one", "two")]
        self.keys = [secret for secret, _ in made]
        self.file = folder / "keys"
        self.file.write_text("".join(f"{entry.line}\n" for _, entry in made))

    def values(self, delay_ms: float, **more: Any) -> dict[str, Any]:
        return {
            "home": self.folder / "home",
            "llama_path": fake_engine.install(self.folder, "--delay-ms", str(delay_ms)),
            "api_keys_file": self.file,
            "log_level": "error",
            **more,
        }

    @contextmanager
    def in_ray(self, delay_ms: float, replicas: int) -> Iterator[str]:
        """Serve through Ray; yields the URL."""
        scale = {"ray_min_replicas": replicas, "ray_max_replicas": replicas, "ray_cpus": 0, "ray_memory": 0}
        given = self.values(delay_ms, model=(str(MODEL),), port=self.port, **scale)
        url = f"http://127.0.0.1:{self.port}"
        with served(Settings.model_validate(given)):
            until(is_listening, 60)
            until(lambda: httpx.get(f"{url}/ready", trust_env=False).status_code == 200, 60)
            until(lambda: len(self.replicas(url)) == replicas, 60)
            yield url

    def replicas(self, url: str) -> list[Any]:
        (remote,) = httpx.get(
            f"{url}/v1/status", headers={"authorization": f"Bearer {self.keys[0]}"}, trust_env=False
        ).json()["remote"]
        return [place for place in remote["places"] if place["state"] == "ready"]

    @contextmanager
    def alone(self, delay_ms: float) -> Iterator[str]:
        """Serve with `rerankd serve`; yields the URL."""
        given = self.values(delay_ms)
        home = given.pop("home")
        environ = {f"RERANKD_{name.upper()}": str(value) for name, value in given.items()}
        program = start_serving(home, str(MODEL), **environ)
        try:
            yield program.url
        finally:
            program.stop()
            assert program.process.stderr is not None
            program.process.stderr.close()


def many(url: str, key: str, clients: int, documents: int, is_over: Callable[[], bool]) -> list[float]:
    """Requests of several connections at once, each with new texts, until `is_over`: their durations."""
    durations: list[float] = []

    def client() -> None:
        with httpx.Client(timeout=120, trust_env=False) as http:
            while not is_over():
                query = body(f"query {next(_NUMBERS)}", documents)
                durations.append(post(http, f"{url}/v1/rerank", query, key))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return durations


def after(seconds: float) -> Callable[[], bool]:
    ends = time.monotonic() + seconds
    return lambda: time.monotonic() > ends


def latency(place: Place, seconds: float) -> None:
    with place.in_ray(0, 1) as url, httpx.Client(timeout=60, trust_env=False) as http:
        serve.run(Empty.bind(), name="empty", route_prefix="/empty")
        ours, empty = [], []
        is_over = after(seconds)
        post(http, f"{url}/v1/rerank", body("q"), place.keys[0])
        while not is_over():
            ours.append(post(http, f"{url}/v1/rerank", body("q"), place.keys[0]))
            empty.append(post(http, f"{url}/empty", body("q"), place.keys[0]))
        serve.delete("empty")
    more = p50_ms(ours) - p50_ms(empty)
    print(
        f"latency: p50 {p50_ms(ours):.1f} ms, empty app {p50_ms(empty):.1f} ms, {more:.1f} ms more "
        f"({len(ours)} requests of each)"
    )


def throughput(place: Place, seconds: float) -> None:
    rates = []
    for replicas in (1, 2):
        with place.in_ray(20, replicas) as url:
            many(url, place.keys[0], 8, 5, after(1))
            started = time.monotonic()
            answers = len(many(url, place.keys[0], 8, 5, after(seconds)))
            rates.append(answers / (time.monotonic() - started))
            print(f"throughput: {rates[-1]:.1f} answers/s with {replicas} replica(s)")
    print(f"throughput: {rates[1] / rates[0]:.2f} times with two replicas")


def fairness(place: Place, seconds: float) -> None:
    for name, serving in (("Ray", place.in_ray(2, 1)), ("rerankd serve", place.alone(2))):
        with serving as url:
            alone = many(url, place.keys[0], 1, 5, after(seconds / 2))
            is_over = after(seconds)
            bulk = threading.Thread(target=many, args=(url, place.keys[1], 8, 200, is_over))
            bulk.start()
            beside = many(url, place.keys[0], 1, 5, is_over)
            bulk.join()
        print(f"fairness, {name}: p50 {p50_ms(alone):.0f} ms alone, {p50_ms(beside):.0f} ms beside the other")


PARTS = {"latency": latency, "throughput": throughput, "fairness": fairness}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--part", choices=PARTS, action="append", help="default: all")
    arguments.add_argument("--seconds", type=float, default=10, help="of each measurement")
    given = arguments.parse_args()
    print(machine.cpu_name())
    with tempfile.TemporaryDirectory(prefix="rd-", dir="/tmp") as folder, connected(None):
        place = Place(Path(folder))
        for part in given.part or PARTS:
            PARTS[part](place, given.seconds)


if __name__ == "__main__":
    main()
