"""The application for Ray Serve: an ingress with all dialects, and a deployment for each model.

serve run rerankd.ray:build models=bge-reranker-v2-m3
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.deployment import Application

from rerankd import config
from rerankd.config import Settings
from rerankd.errors import ConfigError
from rerankd.ray.ingress import Ingress
from rerankd.ray.replica import Replica
from rerankd.ray.serve_plan import INGRESS, ModelPlan, Plan, cluster_of, plan

# A replica refuses more requests than max_requests itself, with 429; these are for its state and its metrics.
_SPARE_REQUESTS = 16
# Ray's proxy would hold more requests back; rerankd answers them with 429.
_MOST_OF_INGRESS = 10_000
# A failed replica is replaced after three of them.
_HEALTH_CHECK_S = 5.0
# rerankd logs requests itself, at the ingress.
_LOGS = {"enable_access_log": False}
# Beyond drain_timeout_s: the engine stops meanwhile.
_STOP_S = 15.0


def build(args: Mapping[str, Any]) -> Application:
    """Return the application, for `serve run rerankd.ray:build` and for a Serve config file.

    `args`: `models` (names, as a list or separated by commas), `config_file`, and `settings`, which has the
    form of rerankd.toml and overrides that file. Raises ConfigError.
    """
    if unknown := sorted(args.keys() - {"models", "config_file", "settings"}):
        raise ConfigError(
            f"{', '.join(unknown)}: not an argument of rerankd.ray:build. The arguments are models, "
            "config_file and settings."
        )
    settings = args.get("settings") or {}
    if not isinstance(settings, Mapping):
        raise ConfigError("settings must be a mapping, in the form of rerankd.toml.")
    # Serve's proxies listen for others, whatever the address in the settings.
    given = {"host": "0.0.0.0", **settings, "model": args.get("models") or settings.get("model")}
    file = Path(args["config_file"]) if args.get("config_file") else None
    return application(config.from_machine(given, file))


def application(settings: Settings) -> Application:
    """The application with these settings. Raises ConfigError."""
    # `serve run` asks for the application before it connects: this machine then stands for the cluster.
    nodes = ray.nodes() if ray.is_initialized() else ()
    planned = plan(settings, cluster_of(nodes, float(os.cpu_count() or 1)))
    handles = {one.deployment: _deployment(one, settings) for one in planned.models}
    return _ingress(planned, settings, handles)


def _ingress(planned: Plan, settings: Settings, handles: Mapping[str, Application]) -> Application:
    rows = [(one.names, one.deployment, one.most_replicas) for one in planned.models]
    deployment = serve.deployment(Ingress).options(
        name=INGRESS,
        num_replicas=settings.ray_ingresses,
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=_MOST_OF_INGRESS,
        logging_config=_LOGS,
        graceful_shutdown_timeout_s=settings.drain_timeout_s + _STOP_S,
    )
    return deployment.bind(planned.ingress, rows, handles)


def _deployment(one: ModelPlan, settings: Settings) -> Application:
    reserved = one.reservation
    options: dict[str, Any] = {"num_cpus": reserved.cpus, "num_gpus": reserved.gpus}
    if reserved.memory_bytes:
        options["memory"] = reserved.memory_bytes
    scaling: dict[str, Any] = {"num_replicas": one.least_replicas}
    if one.most_replicas > one.least_replicas:
        scaling = {
            "autoscaling_config": {
                "min_replicas": one.least_replicas,
                "max_replicas": one.most_replicas,
                "target_ongoing_requests": one.target_requests,
            }
        }
    deployment = serve.deployment(Replica).options(
        name=one.deployment,
        ray_actor_options=options,
        max_ongoing_requests=one.max_requests + _SPARE_REQUESTS,
        logging_config=_LOGS,
        request_router_config=RequestRouterConfig(request_router_class="rerankd.ray.routing.AffinityRouter"),
        health_check_period_s=_HEALTH_CHECK_S,
        graceful_shutdown_timeout_s=settings.drain_timeout_s + settings.stop_timeout_s + _STOP_S,
        **scaling,
    )
    return deployment.bind(one.values)
