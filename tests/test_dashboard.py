"""The Grafana dashboard, the alert rules and the scaler's query, against the metrics of a running server."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from promql import Labels, faults, labels_of
from support import GOLDEN, ROOT, Program, post, start_serving

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "rerankd.json").read_text())
RULES = ROOT / "deploy" / "prometheus" / "rerankd.rules.yaml"
SCALER = ROOT / "deploy" / "kubernetes" / "components" / "autoscaling" / "scaled-object.yaml"
PANELS = DASHBOARD["panels"]
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def known(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Labels]:
    """The series of a server that has answered one request, and what Prometheus itself adds."""
    program: Program = start_serving(
        tmp_path_factory.mktemp("home"), str(GOLDEN / "xlmr-head.gguf"), RERANKD_PRECISION="f32"
    )
    try:
        body = {"query": "panda", "documents": ["a bear", "bread"]}
        assert post(f"{program.url}/v1/rerank", body).status_code == 200
        page = httpx.get(f"{program.url}/metrics", trust_env=False).text
        yield {**labels_of(page), "up": set()}
    finally:
        program.stop()
        assert program.process.stderr is not None
        program.process.stderr.close()


def expressions() -> list[Any]:
    found = [
        (f"{panel['title']} {target['refId']}", target["expr"])
        for panel in PANELS
        for target in panel["targets"]
    ]
    found += [(alert["alert"], alert["expr"]) for alert in ALERTS]
    (trigger,) = yaml.safe_load(SCALER.read_text())["spec"]["triggers"]
    found.append(("scaler", trigger["metadata"]["query"]))
    return [pytest.param(expr, id=name) for name, expr in found]


@pytest.mark.parametrize("expr", expressions())
def test_each_query_asks_for_metrics_and_labels_that_exist(expr: str, known: Labels) -> None:
    assert faults(expr, known) == []


@pytest.mark.parametrize(
    ("expr", "fault"),
    [
        ("rerankd_queue_request", "there is no metric rerankd_queue_request"),
        ('rerankd_queue_requests{kind="a"}', "rerankd_queue_requests has no label {'kind'}"),
        ("sum by (key) (rerankd_queue_requests)", "rerankd_queue_requests has no label {'key'}"),
        ("up and on (key) rerankd_queue_requests", "up has no label {'key'}"),
        ("rate(rerankd_request_seconds[5m])", "there is no metric rerankd_request_seconds"),
    ],
)
def test_a_query_for_what_does_not_exist_is_found(expr: str, fault: str, known: Labels) -> None:
    assert fault in faults(expr, known)


def test_the_names_in_the_legends_are_kept_by_the_queries() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            named = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
            kept = re.findall(r"by \(([^)]*)\)", target["expr"])
            assert set(named) <= set(", ".join(kept).split(", ")), target


def test_the_variables_of_the_dashboard_exist_and_ask_for_metrics_that_exist(known: Labels) -> None:
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    used = re.findall(r"\$\{?(\w+)", json.dumps(PANELS))
    assert set(used) - {"__rate_interval"} == variables.keys()
    for one in variables.values():
        if one["type"] == "query":
            asked = re.fullmatch(r"label_values\((.*), (\w+)\)", one["query"]["query"])
            assert asked is not None
            assert faults(f"sum by ({asked[2]}) ({asked[1]})", known) == []


def test_the_panels_do_not_overlap() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    cells: Callable[[Any], set[tuple[int, int]]] = lambda at: set(  # noqa: E731
        itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"]))
    )
    taken = [cell for panel in PANELS for cell in cells(panel["gridPos"])]
    assert len(taken) == len(set(taken)) and max(x for x, _ in taken) < 24


def test_each_alert_is_explained() -> None:
    page = (ROOT / "docs" / "observability.md").read_text()
    assert len(ALERTS) >= 8
    for alert in ALERTS:
        assert f"`{alert['alert']}`" in page
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"].keys() == {"summary", "description"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here: apt install prometheus")
def test_each_alert_fires_when_it_should_and_else_not() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", ROOT / "tests" / "alert_rules.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_would_test_each_alert() -> None:
    tests = yaml.safe_load((ROOT / "tests" / "alert_rules.yaml").read_text())["tests"]
    for test in tests:
        assert {one["alertname"] for one in test["alert_rule_test"]} == {one["alert"] for one in ALERTS}
    assert all("exp_alerts" in one for one in tests[1]["alert_rule_test"])
