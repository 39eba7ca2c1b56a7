"""Ray Serve: a real cluster of several nodes on this machine, under load, with replicas and nodes lost."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

pytest.importorskip("ray", reason="no Ray here: make test-ray")

import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.schema import ServeDeploySchema

import fake_engine
from faults.served import MODEL
from rerankd.config import Settings
from rerankd.errors import ConfigError
from rerankd.ray import build
from rerankd.ray.running import APP, served
from support import ROOT, until, wait_until_gone

# Ray leaves files and sockets open.
pytestmark = [pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.timeout(300)]

MIB = 2**20
HEAD_BYTES, NODE_BYTES, REPLICA_BYTES = 300 * MIB, 4000 * MIB, 400 * MIB
"""The head is too small for a replica, so that it has the ingress, and the other nodes the replicas."""


class Nodes:
    """A cluster with an ingress on its head, and the application on it."""

    def __init__(self, folder: Path, runtime: Path) -> None:
        self.folder = folder
        self.runtime = runtime
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "memory": HEAD_BYTES,
                "object_store_memory": 80 * MIB,
                "include_dashboard": False,
                "temp_dir": str(runtime / "ray"),
            },
        )
        ray.init(address=self.cluster.address, log_to_driver=False)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60, trust_env=False)

    def add_node(self, cpus: int) -> Any:
        return self.cluster.add_node(num_cpus=cpus, memory=NODE_BYTES, object_store_memory=80 * MIB)

    @contextlib.contextmanager
    def serving(
        self, *flags: str, nodes: int = 1, cpus: int = 4, wait: bool = True, **more: Any
    ) -> Iterator[list[Any]]:
        """Serve with the fake engine; yields the nodes."""
        values = {
            "model": (str(MODEL),),
            "home": self.folder / "home",
            "port": self.port,
            "llama_path": fake_engine.install(self.folder, *flags),
            "ray_cpus": 1,
            "ray_memory": REPLICA_BYTES,
            "log_level": "warning",
            **more,
        }
        # Here the proxies of all nodes would share the port, and a lost node would take connections along.
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": self.port})
        until(lambda: serve.status().proxies)
        with served(Settings.model_validate(values)):
            until(lambda: self.deployment("ingress") == {"RUNNING": 1}, 60)
            added = [self.add_node(cpus) for _ in range(nodes)]
            if wait:
                until(lambda: self.deployment(self.name) == {"RUNNING": values["ray_min_replicas"]}, 60)
                until(lambda: self.http.get("/ready").status_code == 200, 30)
            yield added
            everyone = self.engines()
        wait_until_gone(everyone)
        assert not self.engines()
        for node in self.cluster.worker_nodes.copy():
            self.cluster.remove_node(node)

    @property
    def name(self) -> str:
        return Path(MODEL).stem

    def deployment(self, name: str) -> dict[str, int]:
        """How many replicas a deployment has, by state."""
        app = serve.status().applications.get(APP)
        found = app.deployments.get(name) if app else None
        return {str(state): count for state, count in found.replica_states.items()} if found else {}

    def engines(self) -> list[int]:
        """The process ids of the engines that run."""
        notes = [int(path.stem) for path in self.runtime.glob("rerankd-*/[0-9]*.json")]
        return [pid for pid in notes if Path(f"/proc/{pid}").exists()]

    def rerank(self, query: str, documents: list[str], **headers: str) -> httpx.Response:
        body = {"query": query, "documents": documents, "raw_scores": True}
        return self.http.post("/v1/rerank", json=body, headers=headers)

    def metric(self, name: str) -> float:
        found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", self.http.get("/metrics").text, re.MULTILINE)
        return sum(map(float, found))

    def close(self) -> None:
        self.http.close()
        serve.shutdown()
        ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    # A socket path has at most 107 bytes, and pytest's folders are long.
    runtime = Path(tempfile.mkdtemp(prefix="rd-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        for name in [one for one in os.environ if one.startswith(("RERANKD", "LLAMA", "RAY_ADDRESS"))]:
            patch.delenv(name)
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        running = Nodes(tmp_path_factory.mktemp("ray"), runtime)
        yield running
        running.close()
    shutil.rmtree(runtime, ignore_errors=True)


def load(nodes: Nodes, seconds: float, clients: int = 6) -> tuple[Counter[int], list[float], list[str]]:
    """Requests of several clients at once: responses by status, when the good ones came, and wrong scores."""
    statuses: Counter[int] = Counter()
    good: list[float] = []
    wrong: list[str] = []
    ends = time.monotonic() + seconds

    def client(number: int) -> None:
        chance = random.Random(number)
        with httpx.Client(base_url=nodes.http.base_url, timeout=60, trust_env=False) as http:
            while time.monotonic() < ends:
                query = f"query {chance.randrange(200)}"
                documents = [f"text {chance.randrange(10**6)}" for _ in range(5)]
                body = {"query": query, "documents": documents, "raw_scores": True}
                answer = http.post("/v1/rerank", json=body)
                statuses[answer.status_code] += 1
                if answer.status_code != 200:
                    wrong.append(answer.text[:300]) if answer.status_code not in (429, 503) else None
                    continue
                good.append(time.monotonic())
                for row in answer.json()["results"]:
                    expected = fake_engine.raw(query, documents[row["index"]])
                    if abs(row["relevance_score"] - expected) > 1e-6:
                        wrong.append(f"{query}: {row}, not {expected}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses, sorted(good), wrong


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("seconds", [20, pytest.param(60, marks=pytest.mark.soak)])
def test_an_engine_a_replica_and_a_node_are_lost_under_load(nodes: Nodes, seconds: float) -> None:
    # A node has room for one replica.
    with nodes.serving("--delay-ms", "2", nodes=2, cpus=1, ray_min_replicas=2, ray_max_replicas=2) as added:
        started = time.monotonic()
        engines = nodes.engines()
        assert len(engines) == 2

        def faults() -> None:
            # The moments are part of the story: each fault meets a service that has answered since the last.
            time.sleep(seconds * 0.15)
            os.kill(engines[0], signal.SIGKILL)
            time.sleep(seconds * 0.15)
            os.kill(parent(engines[1]), signal.SIGKILL)
            wait_until_gone([engines[1]])
            time.sleep(seconds * 0.3)
            nodes.cluster.remove_node(added[1], allow_graceful=False)

        breaking = threading.Thread(target=faults)
        breaking.start()
        statuses, good, wrong = load(nodes, seconds)
        breaking.join()
        moments = [started, *good, started + seconds]
        pause = max(after - before for before, after in itertools.pairwise(moments))
        print(f"\n{seconds} s: {dict(statuses)}, {len(good) / seconds:.0f} answers/s")
        print(f"longest time without an answer: {pause:.2f} s")
        assert not wrong
        assert statuses.keys() <= {200, 429, 503} and statuses[200]
        assert pause < 10
        nodes.add_node(1)
        until(lambda: len(nodes.engines()) == 2, 30)


def hits(nodes: Nodes, replicas: int, queries: list[str]) -> float:
    """The share of texts whose score was in a replica's cache."""
    documents = [f"text {number}" for number in range(5)]
    with nodes.serving(nodes=1, cpus=replicas, ray_min_replicas=replicas, ray_max_replicas=replicas):
        known = nodes.metric("rerankd_cache_hits_total")
        for query in queries:
            assert nodes.rerank(query, documents).status_code == 200
        (remote,) = nodes.http.get("/v1/status").json()["remote"]
        assert len(remote["places"]) == replicas
        assert all(place["answered"] for place in remote["places"]), "each replica has queries of its own"
        return (nodes.metric("rerankd_cache_hits_total") - known) / (len(queries) * len(documents))


def test_repeated_queries_find_their_cache_among_four_replicas(nodes: Nodes) -> None:
    chance = random.Random(0)
    queries = [f"query {int(chance.paretovariate(0.8)) % 100}" for _ in range(300)]
    one, four = hits(nodes, 1, queries), hits(nodes, 4, queries)
    print(f"\ncache hits: {one:.1%} with one replica, {four:.1%} with four")
    assert four >= 0.95 * one > 0.5


def test_errors_and_pages_are_those_of_one_machine(nodes: Nodes) -> None:
    limits = {"api_key": "secret", "max_documents": 3, "max_queue_documents": 3, "strict_model_names": True}
    with nodes.serving(ray_min_replicas=1, ray_max_replicas=1, **limits):
        assert nodes.rerank("q", ["a"]).status_code == 401
        key = {"authorization": "Bearer secret"}
        answers = {
            "invalid_request": nodes.rerank("q", ["a"] * 4, **key),
            "too_long": nodes.rerank("q" * 10_000, ["a"], **key),
            "model_not_found": nodes.http.post(
                "/v1/rerank", json={"model": "other", "query": "q", "documents": ["a"]}, headers=key
            ),
        }
        assert {name: answer.status_code for name, answer in answers.items()} == {
            "invalid_request": 400,
            "too_long": 400,
            "model_not_found": 404,
        }
        assert {name: answer.json()["error"]["type"] for name, answer in answers.items()} == {
            name: name for name in answers
        }
        good = nodes.rerank("q", ["a", "b"], **key, **{"x-request-id": "mine"})
        assert good.status_code == 200 and good.json()["model"] == nodes.name
        assert good.headers.get_list("x-request-id") == ["mine"]
        (model,) = nodes.http.get("/v1/models", headers=key).json()["data"]
        assert model["id"] == nodes.name
        (remote,) = nodes.http.get("/v1/status", headers=key).json()["remote"]
        (place,) = remote["places"]
        assert (remote["state"], place["state"], place["answered"]) == ("ready", "ready", 1)
        assert nodes.http.get("/health").json()["status"] == "ok"
        metrics = nodes.http.get("/metrics", headers=key).text
        (replica,) = set(re.findall(r'rerankd_engine_ready\{replica="(\w+)",model=', metrics))
        assert replica in place["name"]
        assert "secret" not in str(serve.status())


def test_an_application_is_built_from_a_config_file_of_serve(nodes: Nodes) -> None:
    service = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "ray" / "ray-service.yaml").read_text())
    schema = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (app,) = schema.applications
    assert build(app.args) and build({"models": f"{MODEL},builtin:e5"})
    with pytest.raises(ConfigError, match="model: not an argument"):
        build({"model": str(MODEL)})


def test_an_application_is_built_before_a_cluster_is_there() -> None:
    given = {"models": str(MODEL)}
    code = f"from rerankd.ray import build; build({given}); import ray; print(ray.is_initialized())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "False\n"


def test_a_model_that_is_missing_is_told_and_served_once_it_is_there(nodes: Nodes, tmp_path: Path) -> None:
    file = tmp_path / MODEL.name
    with nodes.serving(wait=False, model=(str(file),), ray_min_replicas=1, ray_max_replicas=1):
        until(lambda: nodes.http.get("/health").json()["status"] == "failed", 60)
        refused = nodes.rerank("q", ["a"])
        assert refused.status_code in (404, 422, 503) and str(file) in refused.text
        shutil.copy(MODEL, file)
        until(lambda: nodes.rerank("q", ["a"]).status_code == 200, 90)
