"""What the application for Ray Serve is planned to be, and the metrics of its replicas. Pure, without Ray."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rerankd.config import Settings
from rerankd.domain import RerankRequest
from rerankd.embedding import EmbedRequest, TokenIds
from rerankd.errors import ConfigError
from rerankd.ray.metric_pages import joined
from rerankd.ray.serve_plan import MOST_REPLICAS, Cluster, cluster_of, plan, reserve
from rerankd.rerank_result import DocumentError, RerankResult, ScoredDocument, StageResult
from support import GOLDEN

SMALL = Cluster(node_cpus=8, gpus=0)
HEADED, EMBEDDER = str(GOLDEN / "xlmr-head.gguf"), str(GOLDEN / "bert-embedder.gguf")


def settings(tmp_path: Path, **more: Any) -> Settings:
    return Settings.model_validate({"home": tmp_path, **more})


def test_each_model_has_a_deployment_and_the_ingress_has_none_of_them(tmp_path: Path) -> None:
    models = {"a": {"ref": HEADED, "aliases": ["b"]}, "org/c": {"ref": EMBEDDER, "ray_max_replicas": 3}}
    planned = plan(settings(tmp_path, models=models, alias=["first"]), SMALL)
    assert [(one.names, one.deployment) for one in planned.models] == [
        (("first", "a", "b"), "first"),
        (("org/c",), "org-c"),
    ]
    assert [one.most_replicas for one in planned.models] == [MOST_REPLICAS, 3]
    assert not planned.ingress.keys() & {"model", "models", "alias"}
    for one, section in zip(planned.models, ("a", "org/c"), strict=True):
        alone = Settings.model_validate(one.values)
        assert alone.listed == (section,) and tuple(alone.models) == (section,)


def test_deployments_have_different_names(tmp_path: Path) -> None:
    models = {name: {"ref": HEADED} for name in ("a/b", "a-b", "ingress")}
    names = [one.deployment for one in plan(settings(tmp_path, models=models), SMALL).models]
    assert names == ["a-b", "a-b-2", "ingress-2"]


def test_a_cascade_is_one_deployment_with_the_models_of_its_stages(tmp_path: Path) -> None:
    models = {
        "fast": {"ref": EMBEDDER},
        "good": {"ref": HEADED},
        "both": {"stages": ["fast", {"model": "good", "keep": 5}]},
    }
    (one,) = plan(settings(tmp_path, models=models, model=["both"]), SMALL).models
    assert one.names == ("both",)
    assert [wanted.ref for wanted in Settings.model_validate(one.values).wanted("")] == [EMBEDDER, HEADED]


def test_settings_travel_as_a_value_without_keys_and_without_what_is_the_machines(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    given = Settings(model=(HEADED,), api_key="secret", api_keys_file=file, cache_entries=7)
    planned = plan(given, SMALL)
    (one,) = planned.models
    assert "secret" not in str(one.values) and str(file) not in str(one.values)
    assert planned.ingress["api_key"] == "secret"
    assert "home" not in one.values and "home" not in planned.ingress  # each node has its own
    again = Settings.model_validate(pickle.loads(pickle.dumps(one.values)))
    assert again.cache_entries == 7


def test_a_model_file_has_the_same_path_in_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(GOLDEN)
    (one,) = plan(settings(tmp_path, model=["xlmr-head.gguf"]), SMALL).models
    assert one.values["model"] == (HEADED,)
    (one,) = plan(settings(tmp_path, models={"a": {"ref": "xlmr-head.gguf"}}), SMALL).models
    assert one.values["models"]["a"]["ref"] == HEADED


def test_the_ingress_holds_the_requests_of_all_replicas(tmp_path: Path) -> None:
    given = settings(tmp_path, model=[HEADED], max_requests=10, ray_max_replicas=4)
    planned = plan(given, SMALL)
    assert planned.ingress["max_requests"] == 40
    assert Settings.model_validate(planned.models[0].values).max_requests == 10


@pytest.mark.parametrize(
    ("given", "cluster", "cpus", "gpus"),
    [
        ({}, SMALL, 4, 0),
        ({}, Cluster(1, 0), 1, 0),
        ({"threads": 3, "replicas": 2}, SMALL, 6, 0),
        ({"ray_cpus": 0.5}, SMALL, 0.5, 0),
        ({"ray_gpus": 1}, Cluster(8, 4), 1, 1),
        ({"ray_gpus": 0.5, "ray_cpus": 2}, Cluster(8, 4), 2, 0.5),
    ],
)
def test_a_replica_reserves_what_its_engines_use(
    given: dict[str, Any], cluster: Cluster, cpus: float, gpus: float
) -> None:
    (wanted,) = Settings.model_validate({"model": [HEADED], **given}).wanted("")
    reserved = reserve(wanted, None, cluster)
    assert (reserved.cpus, reserved.gpus, reserved.memory_bytes) == (cpus, gpus, 0)


def test_engines_use_no_more_cores_than_their_replica_reserves(tmp_path: Path) -> None:
    (one,) = plan(settings(tmp_path, model=[HEADED], replicas=2), SMALL).models
    assert (one.reservation.cpus, one.values["threads"]) == (4, 2)
    (one,) = plan(settings(tmp_path, model=[HEADED], threads=3), SMALL).models
    assert (one.reservation.cpus, one.values["threads"]) == (3, 3)


def test_a_model_on_this_machine_reserves_its_memory(tmp_path: Path) -> None:
    (known,) = plan(settings(tmp_path, model=[HEADED]), SMALL).models
    (unknown,) = plan(settings(tmp_path, model=[str(tmp_path / "missing.gguf")]), SMALL).models
    assert known.reservation.memory_bytes > 300 * 10**6 and unknown.reservation.memory_bytes == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ray_min_replicas": 3, "ray_max_replicas": 2}, "ray_max_replicas = 2"),
        ({"models": {"a": {"ref": HEADED, "aliases": ["x"]}, "b": {"ref": HEADED, "aliases": ["x"]}}}, "x"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(settings(tmp_path, **({} if "models" in given else {"model": [HEADED]}), **given), SMALL)


def test_the_cluster_is_its_living_nodes() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}},
        {"Alive": True, "Resources": {"CPU": 16.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    assert cluster_of(nodes, 2) == Cluster(16, 1)
    assert cluster_of([], 2) == Cluster(2, 0)


def test_the_page_for_prometheus_has_the_gauges_of_the_replicas() -> None:
    def gauge(name: str, value: float) -> str:
        return f'# HELP {name} what\n# TYPE {name} gauge\n{name}{{model="m"}} {value}\n'

    counter = "# HELP rerankd_tokens_total t\n# TYPE rerankd_tokens_total counter\nrerankd_tokens_total 5.0\n"
    own = (counter + gauge("rerankd_queue_requests", 1.0)).encode()
    page = (counter + gauge("rerankd_queue_requests", 2.0) + gauge("rerankd_engine_ready", 1.0)).encode()
    lines = joined(own, [("r1", page), ("r2", page)]).decode().splitlines()
    assert lines == [
        "# HELP rerankd_tokens_total t",
        "# TYPE rerankd_tokens_total counter",
        "rerankd_tokens_total 5.0",
        "# HELP rerankd_queue_requests what",
        "# TYPE rerankd_queue_requests gauge",
        'rerankd_queue_requests{replica="r1",model="m"} 2.0',
        'rerankd_queue_requests{replica="r2",model="m"} 2.0',
        'rerankd_queue_requests{model="m"} 1.0',
        "# HELP rerankd_engine_ready what",
        "# TYPE rerankd_engine_ready gauge",
        'rerankd_engine_ready{replica="r1",model="m"} 1.0',
        'rerankd_engine_ready{replica="r2",model="m"} 1.0',
    ]


def test_requests_and_results_travel() -> None:
    result = RerankResult(
        "m",
        (ScoredDocument(1, 0.5, "text"),),
        3,
        "sigmoid",
        errors=(DocumentError(0, "it crashes"),),
        stages=(StageResult("a", 2, 1),),
    )
    values = [
        RerankRequest("q", ("a", "b"), top_n=1, instruction="i"),
        EmbedRequest(("a", TokenIds.of([1, 2]))),
        result,
    ]
    assert pickle.loads(pickle.dumps(values)) == values


def test_usage_reports_are_off_before_ray_is_imported() -> None:
    code = "import rerankd.ray, os, sys; print(os.environ['RAY_USAGE_STATS_ENABLED'], 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "False"]
