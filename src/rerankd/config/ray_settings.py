"""Settings of Ray Serve: how many replicas a model has, and what a replica reserves of a cluster."""

from __future__ import annotations

from typing import ClassVar

from rerankd.backends.options import Needs, Options, per_model

_MOST = 10_000


class RaySettings(Options):
    """The replicas of a model in Ray Serve. Nothing else reads these settings."""

    needs: ClassVar[Needs] = "live"

    ray_min_replicas: int = per_model(1, ge=1, le=_MOST, description="Ray Serve: least replicas of the model")
    ray_max_replicas: int | None = per_model(
        None,
        ge=1,
        le=_MOST,
        description="Ray Serve: most replicas of the model; if not set, 100, as far as the cluster has room",
    )
    ray_target_requests: float = per_model(
        2,
        ge=0.1,
        le=1000,
        description="Ray Serve: requests under way per replica that autoscaling aims at",
    )
    ray_cpus: float | None = per_model(
        None,
        ge=0,
        le=4096,
        description="Ray Serve: CPUs that a replica reserves; if not set, threads times replicas if threads "
        "is set, 1 for a model on a GPU, else half of the cluster's largest node",
    )
    ray_gpus: float | None = per_model(
        None,
        ge=0,
        le=64,
        description="Ray Serve: GPUs that a replica reserves; if not set, those that the model would take on "
        "the machine where the command runs",
    )
    ray_memory: int | None = per_model(
        None,
        ge=0,
        le=2**50,
        description="Ray Serve: bytes of memory that a replica reserves, 0 for none; if not set, an estimate "
        "for the model if its file is on the machine where the command runs",
    )
