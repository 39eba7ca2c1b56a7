"""(pure) How many actors a job has, and what each reserves of its node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rerankd.errors import EngineUnavailable


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asks for; None: what the cluster has."""

    actors: int | None = None
    cpus: float | None = None
    gpus: float | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """`actors` with an engine each, which reserve these CPUs and GPUs. `threads` are those of an engine, None
    for its own default."""

    actors: int
    cpus: float
    gpus: float
    threads: int | None


def pool(nodes: Sequence[Mapping[str, Any]], wanted: Wanted) -> Pool:
    """Plan the actors for the nodes of ray.nodes(): by default one for each GPU, or, if there is none, one
    for each node, with the CPUs of the smallest.

    Raises EngineUnavailable if no actor fits anywhere, unless the user gives a number of them.
    """
    found = [node["Resources"] for node in nodes if node["Alive"]]
    sizes = [(float(one.get("CPU", 0)), float(one.get("GPU", 0))) for one in found]
    gpus = wanted.gpus
    if gpus is None:
        gpus = 1.0 if any(size[1] >= 1 for size in sizes) else 0.0
    cpus = wanted.cpus
    if cpus is None:
        cpus = 1.0 if gpus else min((size[0] for size in sizes if size[0] >= 1), default=1.0)
    on_node = [_fit(size, (cpus, gpus)) for size in sizes]
    actors = wanted.actors or sum(on_node)
    if not actors:
        raise EngineUnavailable(
            f"No node of the cluster has {cpus:g} CPUs and {gpus:g} GPUs. Ask for less with --cpus and "
            "--gpus; if the cluster grows on demand, give the number of --actors."
        )
    shares_nodes = wanted.cpus is not None or max(on_node, default=0) > 1
    return Pool(actors, cpus, gpus, max(1, int(cpus)) if shares_nodes and not gpus else None)


def _fit(node: tuple[float, float], actor: tuple[float, float]) -> int:
    """How many actors a node holds."""
    return min((int(has / needs) for has, needs in zip(node, actor, strict=True) if needs), default=1)
