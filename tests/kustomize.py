"""Render the kustomizations of deploy/kubernetes, also on machines without Kustomize.

It knows what they use of Kustomize, and is stricter: a patch or an image that meets nothing is an error.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
_KNOWN = {
    *("apiVersion", "kind", "namespace", "resources", "components"),
    *("configMapGenerator", "patches", "images"),
}
_CLUSTER_WIDE = ("Namespace",)


def render(folder: Path) -> list[Manifest]:
    """The manifests of a kustomization. Generated names have no hash. Raises AssertionError for what
    Kustomize would refuse or ignore."""
    return _applied(folder, [])


def _applied(folder: Path, so_far: list[Manifest]) -> list[Manifest]:
    """`so_far` and the resources of `folder`, changed as it says."""
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert not plan.keys() - _KNOWN, f"{folder} uses {plan.keys() - _KNOWN}, which this file does not know"
    is_component = plan["kind"] == "Component"
    assert plan["apiVersion"] == f"kustomize.config.k8s.io/{'v1alpha1' if is_component else 'v1beta1'}"
    manifests = [*so_far]
    for name in plan.get("resources", ()):
        path = folder / name
        manifests += render(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    manifests += [_config_map(folder, one) for one in plan.get("configMapGenerator", ())]
    for name in plan.get("components", ()):
        manifests = _applied(folder / name, manifests)
    for patch in plan.get("patches", ()):
        _patch(manifests, patch)
    for image in plan.get("images", ()):
        _rename(manifests, image)
    for one in manifests if "namespace" in plan else ():
        if one["kind"] not in _CLUSTER_WIDE:
            one["metadata"]["namespace"] = plan["namespace"]
    names = [(one["kind"], one["metadata"]["name"]) for one in manifests]
    assert len(names) == len(set(names)), names
    return manifests


def _config_map(folder: Path, plan: Manifest) -> Manifest:
    metadata = {"name": plan["name"]}
    if labels := plan.get("options", {}).get("labels"):
        metadata["labels"] = labels
    data = {name: (folder / name).read_text() for name in plan["files"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _patch(manifests: list[Manifest], plan: Manifest) -> None:
    target = plan["target"]
    hit = [
        one
        for one in manifests
        if one["kind"] == target["kind"] and one["metadata"]["name"] == target["name"]
    ]
    assert hit, f"no manifest is {target}"
    for manifest in hit:
        for step in yaml.safe_load(plan["patch"]):
            _step(manifest, step)


def _step(manifest: Manifest, step: Manifest) -> None:
    """Apply one operation of a JSON patch (RFC 6902). Its target must exist, that of `add` must not."""
    *way, last = step["path"].strip("/").split("/")
    at: Any = manifest
    for word in way:
        at = at[int(word) if isinstance(at, list) else word]
    value: Any = copy.deepcopy(step.get("value"))
    if isinstance(at, list) and last == "-":
        assert step["op"] == "add", step
        at.append(value)
        return
    if isinstance(at, list):
        assert step["op"] == "replace" and at[int(last)]["name"] == value["name"], step
        at[int(last)] = value
        return
    assert (last in at) is (step["op"] != "add"), f"{step['op']} {step['path']}: is it there? {last in at}"
    if step["op"] == "remove":
        del at[last]
    else:
        at[last] = value


def _rename(manifests: list[Manifest], plan: Manifest) -> None:
    hit = 0
    for manifest in manifests:
        for container in containers(manifest):
            name, _, tag = container["image"].partition(":")
            if name == plan["name"]:
                container["image"] = f"{plan.get('newName', name)}:{plan.get('newTag', tag)}"
                hit += 1
    assert hit, f"no container has the image {plan['name']}"


def containers(manifest: Manifest) -> list[Manifest]:
    """The containers of a Deployment; of other kinds none."""
    return (
        list(manifest["spec"]["template"]["spec"]["containers"]) if manifest["kind"] == "Deployment" else []
    )


def unhashed(manifests: list[Manifest]) -> list[Manifest]:
    """Manifests that Kustomize has rendered, without the hashes in the names of ConfigMaps."""
    texts: Callable[[Manifest], str] = yaml.safe_dump
    named = [one["metadata"]["name"] for one in manifests if one["kind"] == "ConfigMap"]
    found = "---\n".join(texts(one) for one in manifests)
    for name in named:
        stem, _, digest = name.rpartition("-")
        if len(digest) == 10 and digest.isalnum():
            found = found.replace(name, stem)
    return list(yaml.safe_load_all(found))
