"""What the application for Ray Serve consists of: for each model its settings, and what a replica reserves.

A replica may start on any node, where neither the settings file nor the environment of the command exists. So
settings travel as a value, without what belongs to a machine and without the API keys, which only the ingress
checks.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rerankd.backends.base import Offer
from rerankd.config import EffectiveModelSettings, Settings
from rerankd.errors import ConfigError, RerankdError
from rerankd.hub import builtin
from rerankd.hub.store import Store
from rerankd.serving.prepare_model import names_of, prepare

_log = logging.getLogger("rerankd")

INGRESS = "ingress"
# Ray's own limit for num_replicas="auto".
MOST_REPLICAS = 100
# A Reranker without its engine, in a Ray worker process: measured 290 MB.
REPLICA_BYTES = 300 * 10**6

Values = Mapping[str, Any]
"""Settings by name, as in rerankd.toml; those that are not set are left to each node."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The CPUs of the largest node, and the GPUs of all nodes."""

    node_cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a replica reserves of its node; 0: nothing."""

    cpus: float
    gpus: float
    memory_bytes: int

    def plus(self, other: Reservation) -> Reservation:
        return Reservation(
            self.cpus + other.cpus, self.gpus + other.gpus, self.memory_bytes + other.memory_bytes
        )


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """The deployment of a model or a cascade. `names[0]` is displayed."""

    names: tuple[str, ...]
    deployment: str
    values: Values
    reservation: Reservation
    least_replicas: int
    most_replicas: int
    target_requests: float
    max_requests: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All deployments, and the settings of the ingress, which has no model."""

    ingress: Values
    models: tuple[ModelPlan, ...]


def plan(settings: Settings, cluster: Cluster) -> Plan:
    """Plan the application. Reads the files of models that are on this machine. Raises ConfigError."""
    if getattr(settings, "upstreams", None):
        raise ConfigError(
            "[upstreams] can't be served through Ray: its models run elsewhere. Remove the section, or "
            "serve it with `rerankd serve`."
        )
    carried = carried_values(settings)
    entries = settings.listed or (Store(settings.home).default(),)
    plans: list[ModelPlan] = []
    for entry in entries:
        one = _model(settings, carried, entry, entries[0], cluster)
        if double := {*one.names} & {name for other in plans for name in other.names}:
            raise ConfigError(f"Two models have the name {min(double)}. Give each model names of its own.")
        taken = [INGRESS, *(other.deployment for other in plans)]
        numbered = (one.deployment, *(f"{one.deployment}-{number}" for number in range(2, len(taken) + 2)))
        plans.append(replace(one, deployment=next(name for name in numbered if name not in taken)))
    ingress = {name: value for name, value in carried.items() if name not in ("alias", "model", "models")}
    most = max(one.most_replicas for one in plans)
    # Each replica has a queue with these limits; the ingress holds the requests of all.
    for name in ("max_requests", "max_queue_documents", "max_queue_tokens", "max_queue_bytes"):
        bound = next(one.le for one in Settings.model_fields[name].metadata if hasattr(one, "le"))
        ingress[name] = min(getattr(settings, name) * most, bound)
    return Plan(ingress, tuple(plans))


def carried_values(settings: Settings) -> dict[str, Any]:
    """(pure) The settings as they travel to other nodes."""
    values = settings.model_dump(exclude_unset=True)
    if settings.home == Settings.model_construct().home:  # each node has its own
        values.pop("home", None)
    return values


def _model(settings: Settings, carried: Values, entry: str, first: str, cluster: Cluster) -> ModelPlan:
    values = {name: value for name, value in carried.items() if name not in ("api_key", "api_keys_file")}
    own = settings.models.get(entry)
    sections = {entry, *(stage.model for stage in own.stages)} if own else {entry}
    values["models"] = {
        name: {**one, "ref": _everywhere(one.get("ref", ""))}
        for name, one in carried.get("models", {}).items()
        if name in sections
    }
    values["model"] = (entry if own else _everywhere(entry),)
    if entry != first:
        values.pop("alias", None)
    alone = Settings.model_validate(values)
    wanted = alone.wanted(alone.model[0])
    names = alone.cascades[0].names if alone.cascades else names_of(wanted[0])
    reservation = Reservation(0, 0, 0)
    for one in wanted:
        reservation = reservation.plus(reserve(one, _offer(alone, one), cluster))
    if not reservation.gpus and cluster.gpus and wanted[0].ray_gpus is None:
        _log.warning(
            "%s: its replicas reserve no GPU, although the cluster has some. To use them, set ray_gpus = 1.",
            names[0],
        )
    if settings.threads is None and reservation.cpus >= 1:
        # By default each engine would use all cores of its node, together with the other replicas there.
        engines = sum(one.replicas for one in wanted)
        values["threads"] = max(1, int(reservation.cpus) // engines)
    least = max(one.ray_min_replicas for one in wanted)
    most = max(one.ray_max_replicas or MOST_REPLICAS for one in wanted)
    if most < least:
        raise ConfigError(
            f"{names[0]}: ray_max_replicas = {most} is less than ray_min_replicas = {least}. Raise it, or "
            "lower ray_min_replicas."
        )
    return ModelPlan(
        names,
        re.sub(r"[^A-Za-z0-9._-]+", "-", names[0]),
        values,
        reservation,
        least,
        most,
        wanted[0].ray_target_requests,
        settings.max_requests,
    )


def _everywhere(ref: str) -> str:
    """A reference that means the same in every folder: a file's path is absolute."""
    return os.path.abspath(ref) if ref and os.path.exists(ref) else ref


def _offer(settings: Settings, wanted: EffectiveModelSettings) -> Offer | None:
    """How this machine would run a model; None if the file is not here or can't be used here."""
    if wanted.ref == builtin.NAME and not builtin.path_in(Store(settings.home).models).is_file():
        return None
    try:
        return prepare(settings, wanted, copies=False).engine
    except RerankdError:  # the replicas report it, on the nodes where it holds
        return None


def reserve(wanted: EffectiveModelSettings, offer: Offer | None, cluster: Cluster) -> Reservation:
    """(pure) What a replica of a model reserves: the settings, else what the model would take on the machine
    where the application is planned."""
    gpus = wanted.ray_gpus
    if gpus is None:
        on_gpu = offer is not None and not offer.on_cpu
        gpus = float(wanted.replicas if on_gpu and cluster.gpus else 0)
    cpus = wanted.ray_cpus
    if cpus is None and wanted.threads is not None:
        cpus = float(wanted.threads * wanted.replicas)
    if cpus is None:
        cpus = max(1.0, gpus) if gpus else max(1.0, float(math.floor(cluster.node_cpus / 2)))
    memory = wanted.ray_memory
    if memory is None:
        engines = offer.memory_bytes if offer is not None and not gpus else 0
        memory = engines + REPLICA_BYTES if offer is not None else 0
    return Reservation(cpus, gpus, memory)


def cluster_of(nodes: Sequence[Mapping[str, Any]], here: float) -> Cluster:
    """(pure) The resources of a cluster, from ray.nodes(); `here` are the CPUs of this machine, if there are
    no nodes."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    return Cluster(
        max((float(one.get("CPU", 0)) for one in resources), default=here),
        sum(float(one.get("GPU", 0)) for one in resources),
    )
