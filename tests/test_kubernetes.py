"""The manifests under deploy/kubernetes/: rendered, valid, and their pod tried with the real program."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import kubernetes_validate
import pytest
import yaml

import kustomize
import sandbox
from kustomize import Manifest, render
from rerankd import __version__, config, keys
from rerankd.config import Settings
from support import ROOT, Program, children, post, start_serving

KUBERNETES = ROOT / "deploy" / "kubernetes"
RENDERED = ["base", "overlays/gpu", "overlays/production"]
KSERVE = KUBERNETES / "kserve" / "inference-service.yaml"
RAY = KUBERNETES / "ray" / "ray-service.yaml"
# The oldest and the newest version whose schemas the manifests must fit.
VERSIONS = ["1.29", "1.37"]
SETTINGS = (KUBERNETES / "base" / "rerankd.toml").read_text()


def of(kind: str, manifests: list[Manifest], name: str = "rerankd") -> Manifest:
    (found,) = [one for one in manifests if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def pod_of(folder: str) -> Manifest:
    spec: Manifest = of("Deployment", render(KUBERNETES / folder))["spec"]["template"]["spec"]
    return spec


def kserve_pod() -> Manifest:
    spec: Manifest = yaml.safe_load(KSERVE.read_text())["spec"]["predictor"]
    return spec


def pods() -> list[Any]:
    return [pytest.param(pod_of(one), id=one) for one in RENDERED] + [pytest.param(kserve_pod(), id="kserve")]


def an_object(required: str, optional: str = "", **properties: Any) -> Manifest:
    """The schema of an object that has these fields (words) and no others."""
    fields = {name: properties.get(name, {}) for name in f"{required} {optional}".split()}
    assert properties.keys() <= fields.keys()
    return {
        "type": "object",
        "required": required.split(),
        "properties": fields,
        "additionalProperties": False,
    }


def array(items: Manifest) -> Manifest:
    return {"type": "array", "minItems": 1, "items": items}


STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
NUMBER = {"type": "integer"}
# What rerankd uses of kinds that are not Kubernetes' own, by the definitions (CRDs) of KEDA, the Prometheus
# operator, KServe and KubeRay.
OTHER_KINDS = {
    ("keda.sh/v1alpha1", "ScaledObject"): an_object(
        "scaleTargetRef triggers",
        "minReplicaCount maxReplicaCount pollingInterval cooldownPeriod fallback advanced",
        scaleTargetRef=an_object("name", "apiVersion kind envSourceContainerName"),
        minReplicaCount=NUMBER,
        maxReplicaCount=NUMBER,
        pollingInterval=NUMBER,
        fallback=an_object("failureThreshold replicas", "behavior", failureThreshold=NUMBER, replicas=NUMBER),
        triggers=array(
            an_object(
                "type metadata",
                "name metricType authenticationRef useCachedMetrics",
                type={"const": "prometheus"},
                metadata={**STRINGS, "required": ["serverAddress", "query", "threshold"]},
            )
        ),
    ),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): an_object(
        "selector endpoints",
        "jobLabel namespaceSelector",
        endpoints=array(
            an_object(
                "port path",
                "interval scrapeTimeout authorization",
                authorization=an_object("credentials", "type", credentials=an_object("name key", "optional")),
            )
        ),
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): an_object(
        "groups",
        groups=array(
            an_object(
                "name rules",
                "interval",
                rules=array(
                    an_object("alert expr", "for labels annotations", labels=STRINGS, annotations=STRINGS)
                ),
            )
        ),
    ),
    ("serving.kserve.io/v1beta1", "InferenceService"): an_object("predictor"),
    ("ray.io/v1", "RayService"): an_object(
        "serveConfigV2 rayClusterConfig",
        serveConfigV2={"type": "string"},
        rayClusterConfig=an_object(
            "headGroupSpec workerGroupSpecs",
            "rayVersion enableInTreeAutoscaling autoscalerOptions",
            rayVersion={"type": "string"},
            headGroupSpec=an_object("template rayStartParams", "serviceType", rayStartParams=STRINGS),
            workerGroupSpecs=array(
                an_object(
                    "groupName template rayStartParams replicas minReplicas maxReplicas",
                    rayStartParams=STRINGS,
                    replicas=NUMBER,
                    minReplicas=NUMBER,
                    maxReplicas=NUMBER,
                )
            ),
        ),
    ),
}


def check(manifest: Manifest) -> None:
    """Raise the error of a schema if a manifest has a field that its kind does not have, or lacks one."""
    kind = manifest["apiVersion"], manifest["kind"]
    if kind in OTHER_KINDS:
        jsonschema.validate(manifest["spec"], OTHER_KINDS[kind])
        return
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("folder", RENDERED)
def test_each_rendered_manifest_fits_the_schema_of_its_kind(folder: str) -> None:
    manifests = render(KUBERNETES / folder)
    for one in manifests:
        check(one)
        named = one["metadata"]["namespace"] if one["kind"] != "Namespace" else one["metadata"]["name"]
        assert named == "rerankd", one["metadata"]
    (container,) = pod_of(folder)["containers"]
    assert container["image"].startswith("ghcr.io/rerankd/rerankd:" + __version__.partition(".dev")[0])
    assert container["image"].endswith("-cuda") is (folder == "overlays/gpu")


@pytest.mark.parametrize("path", ["spec/replica", "spec/template/spec/enableServiceLink"])
def test_a_misspelled_field_is_found(path: str) -> None:
    deployment = of("Deployment", render(KUBERNETES / "base"))
    *way, name = path.split("/")
    at = deployment
    for word in way:
        at = at[word]
    at[name] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match=name):
        check(deployment)


def test_a_misspelled_field_of_another_kind_is_found() -> None:
    scaled = of("ScaledObject", render(KUBERNETES / "overlays" / "production"))
    scaled["spec"]["triggers"][0]["metadata"]["limit"] = 8
    with pytest.raises(jsonschema.ValidationError):
        check(scaled)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl here")
@pytest.mark.parametrize("folder", RENDERED)
def test_kustomize_renders_the_same(folder: str) -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", KUBERNETES / folder], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    theirs = kustomize.unhashed(list(yaml.safe_load_all(done.stdout)))
    ours = render(KUBERNETES / folder)
    assert sorted(map(repr_of, ours)) == sorted(map(repr_of, theirs))


def repr_of(manifest: Manifest) -> str:
    text: str = yaml.safe_dump(manifest)
    return text


def test_each_file_belongs_to_a_kustomization_that_is_rendered() -> None:
    used = {KSERVE, RAY}
    waiting = [KUBERNETES / one for one in RENDERED]
    while waiting:
        folder = waiting.pop().resolve()
        plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
        used.add(folder / "kustomization.yaml")
        for name in plan.get("resources", []) + plan.get("components", []):
            path = (folder / name).resolve()
            waiting += [path] * path.is_dir()
            used.add(path)
        used |= {folder / name for one in plan.get("configMapGenerator", ()) for name in one["files"]}
    assert {path for path in KUBERNETES.rglob("*") if path.is_file()} <= used


@pytest.mark.parametrize("pod", pods())
def test_a_pod_keeps_to_the_restricted_standard_and_waits_for_a_drain(pod: Manifest) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["enableServiceLinks"] is False and pod["automountServiceAccountToken"] is False
    settings = Settings()
    (_, seconds) = container["lifecycle"]["preStop"]["exec"]["command"]
    needed = int(seconds) + settings.drain_timeout_s + settings.stop_timeout_s
    assert pod["terminationGracePeriodSeconds"] > needed
    assert {one["containerPort"] for one in container["ports"]} == {settings.port}


def test_the_image_has_the_user_and_the_folder_of_the_pod() -> None:
    for path in (ROOT / "deploy").glob("Dockerfile*"):
        users = re.findall(r"^USER (\d+)$", path.read_text(), re.MULTILINE)
        for pod in (pod_of("base"), kserve_pod()):
            assert set(users) == {str(pod["securityContext"]["runAsUser"])}
            assert image_environment(path)["RERANKD_HOME"] in mount_paths(pod)


def image_environment(path: Path) -> dict[str, str]:
    """The variables that the last stage of a Dockerfile sets."""
    stage = path.read_text().rpartition("\nFROM ")[2].replace("\\\n", " ")
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(re.findall(r"^ENV (.*)$", stage, re.MULTILINE))))


def mount_paths(pod: Manifest) -> list[str]:
    return [one["mountPath"] for one in pod["containers"][0]["volumeMounts"]]


def ray_pods() -> list[Manifest]:
    cluster = yaml.safe_load(RAY.read_text())["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [one["template"]["spec"] for one in groups]


def test_the_ray_service_fits_its_schema_and_serves_what_it_has_pulled() -> None:
    service = yaml.safe_load(RAY.read_text())
    check(service)
    (app,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert app["import_path"] == "rerankd.ray:build" and app["args"].keys() <= {"models", "settings"}
    settings = Settings.model_validate({"model": app["args"]["models"], **app["args"]["settings"]})
    for pod in ray_pods():
        check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, "spec": pod})
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["enableServiceLinks"] is False
        assert pod["terminationGracePeriodSeconds"] > settings.drain_timeout_s + settings.stop_timeout_s
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            assert container["image"].endswith(f":{__version__.partition('.dev')[0]}")
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            variables = {one["name"]: one.get("value") for one in container["env"]}
            assert variables["RAY_USAGE_STATS_ENABLED"] == "0"
            for name in variables:
                assert (
                    name.startswith("RAY_") or name.removeprefix("RERANKD_").lower() in Settings.model_fields
                )
    _, worker = ray_pods()
    assert worker["initContainers"][0]["command"] == ["rerankd", "pull", *settings.model]
    # A worker has room for a replica and the ingress, and the head for no replica.
    (container,) = worker["containers"]
    assert settings.ray_cpus and float(container["resources"]["limits"]["cpu"]) >= settings.ray_cpus + 1
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]
    assert float(head["num-cpus"]) < settings.ray_cpus


def test_the_settings_are_settings() -> None:
    settings = config.load(SETTINGS, {}, {})
    assert [one.ref for one in settings.wanted("")] == ["bge-reranker-v2-m3"]
    for pod in (pod_of("base"), pod_of("overlays/production"), kserve_pod()):
        for one in pod["containers"][0]["env"]:
            name = one["name"].removeprefix("RERANKD_").lower()
            assert name in Settings.model_fields or one["name"] in ("RERANKD_CONFIG", "STORAGE_URI")


def test_what_is_named_is_there() -> None:
    """Services, budgets and policies select the pods, secrets have the names that the commands create, and
    the scaler counts a metric of its own namespace."""
    manifests = render(KUBERNETES / "overlays" / "production")
    labels = of("Deployment", manifests)["spec"]["template"]["metadata"]["labels"]
    assert of("Deployment", manifests)["spec"]["selector"]["matchLabels"] == labels
    assert of("Service", manifests)["spec"]["selector"] == labels
    assert of("PodDisruptionBudget", manifests)["spec"]["selector"]["matchLabels"] == labels
    for name in ("rerankd", "rerankd-monitoring"):
        assert of("NetworkPolicy", manifests, name)["spec"]["podSelector"]["matchLabels"] == labels
    monitor = of("ServiceMonitor", manifests)["spec"]
    assert monitor["selector"]["matchLabels"] == of("Service", manifests)["metadata"]["labels"]
    assert monitor["endpoints"][0]["port"] == of("Service", manifests)["spec"]["ports"][0]["name"]
    assert of("ScaledObject", manifests)["spec"]["scaleTargetRef"] == {"name": "rerankd"}
    (trigger,) = of("ScaledObject", manifests)["spec"]["triggers"]
    assert 'namespace="rerankd"' in trigger["metadata"]["query"]
    assert "replicas" not in of("Deployment", manifests)["spec"]
    created = re.findall(
        r"create secret generic ([\w-]+) --from-(?:literal|file)=([\w.-]+)", all_text(KUBERNETES)
    )
    secrets = [
        (one["secret"]["secretName"], "rerankd.keys")
        for one in pod_of("overlays/production")["volumes"]
        if "secret" in one
    ]
    key = pod_of("base")["containers"][0]["env"][1]["valueFrom"]["secretKeyRef"]
    credentials = monitor["endpoints"][0]["authorization"]["credentials"]
    for named in [*secrets, (key["name"], key["key"]), (credentials["name"], credentials["key"])]:
        assert named in created


def all_text(folder: Path) -> str:
    return "\n".join(path.read_text() for path in folder.rglob("*.yaml"))


def pod_folders(own: Path, home: Path) -> tuple[dict[str, Path], str]:
    """A folder for each volume of the pod with its files, and the key of the client dify."""
    folders = {name: own / name for name in ("settings", "data", "api-keys")}
    folders["models"] = folders["data"] / "models"  # a volume of its own for several pods
    for folder in folders.values():
        folder.mkdir()
    (folders["settings"] / "rerankd.toml").write_text(SETTINGS)
    for file in (home / "models").glob("*.gguf"):
        (folders["models"] / file.name).symlink_to(file)
    secret, named = keys.new("dify")
    (folders["api-keys"] / "rerankd.keys").write_text(f"{named.line}\n")
    (folders["api-keys"] / "rerankd.keys").chmod(0o440)
    return folders, secret


LOOK = """
id -u; id -g; grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status
for folder in / /etc /etc/rerankd /etc/rerankd-keys /usr /var/tmp /run /home /data /tmp; do
    (: > "$folder/new") 2> /dev/null && echo "$folder"
done
true
"""


def test_the_sandbox_is_as_restricted_as_the_pod(home: Path) -> None:
    pod = pod_of("overlays/production")
    with tempfile.TemporaryDirectory(prefix="rd-", dir="/var/tmp") as own:
        folders, _ = pod_folders(Path(own), home)
        argv = [*sandbox.pod(pod, folders), "sh", "-c", LOOK]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [
        *("10001", "10001", "CapEff:", "0000000000000000", "NoNewPrivs:", "1", "/data", "/tmp")
    ]


def start_pod(pod: Manifest, own: Path, home: Path, *arguments: str) -> tuple[Program, dict[str, str]]:
    """Start rerankd in the sandbox as this pod. Returns it and the keys that clients may send, by name."""
    folders, secret = pod_folders(own, home)
    env = {**image_environment(ROOT / "deploy" / "Dockerfile"), "HOME": "/home/rerankd"}
    del env["PATH"]  # the image's, with another Python
    given = {one["name"]: one.get("value", "a-key") for one in pod["containers"][0]["env"]}
    env |= given | {"RERANKD_HOST": "127.0.0.1"}
    program = start_serving(
        Path(env.pop("RERANKD_HOME")), *arguments, inside=sandbox.pod(pod, folders), **env
    )
    (program.url,) = re.findall(r"API endpoint URL +(http://[\d.:]+)", program.said[-1])  # in a line of JSON
    return program, {"default": "a-key", "dify": secret}


@pytest.mark.parametrize("folder", ["base", "overlays/production"])
def test_the_program_serves_as_the_pod(folder: str, home: Path) -> None:
    """Read-only root, the user without a name, no capabilities, and only the mounts of the manifest."""
    pod = pod_of(folder)
    with tempfile.TemporaryDirectory(prefix="rd-", dir="/var/tmp") as own:
        program, known = start_pod(pod, Path(own), home, "builtin:e5")
        assert program.process.stderr is not None
        try:
            (container,) = pod["containers"]
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                path = container[probe]["httpGet"]["path"]  # probes send no key
                assert httpx.get(program.url + path, trust_env=False).status_code == 200
            body = {"query": "什么是熊猫？", "documents": ["hi", "大熊猫是一种原产于中国的熊科动物。"]}
            url = f"{program.url}/v1/rerank"
            assert post(url, body).status_code == 401
            expected = {"default": 200, "dify": 200 if folder.endswith("production") else 401}
            for name, key in known.items():
                assert post(url, body, authorization=f"Bearer {key}").status_code == expected[name]
            bearer = {"authorization": "Bearer a-key"}
            assert httpx.get(f"{program.url}/metrics", headers=bearer, trust_env=False).status_code == 200
            (rerankd,) = children(program.process.pid)
            os.kill(rerankd, signal.SIGTERM)
            assert program.process.wait(30) == 0
            said = "".join(program.said) + program.process.stderr.read()
            assert "Traceback" not in said and "Read-only" not in said and "Permission" not in said
            assert (Path(own) / "data" / "logs").is_dir() is (folder == "base")
        finally:
            program.process.kill()
            program.process.stderr.close()
