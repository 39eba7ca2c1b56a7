"""Choose the replica for a request in Ray Serve: equal queries go to the same one, if it is not busy.

Ray calls the router in the process of the ingress, for each request. It knows the requests that are under way
at each replica, from its own calls and from what the replicas report with each answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from rerankd import affinity


@dataclass(frozen=True, slots=True)
class Route:
    """The first argument of each call to a replica. `key` is affinity's key of the request. `tried` is the
    replica that has just failed to answer it; another one is preferred."""

    key: int
    tried: str = ""


@dataclass(frozen=True, slots=True)
class _Candidate:
    replica: RunningReplica
    seed: int
    load: float
    weight: float = 1.0


class AffinityRouter(RequestRouter):  # type: ignore[misc]
    """Prefers the replica that affinity chooses; Ray takes another if that one has reached its
    max_ongoing_requests."""

    def initialize_state(self) -> None:
        self._seeds: dict[str, int] = {}

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        names = [one.replica_id.unique_id for one in replicas]
        self._seeds = {name: self._seeds.get(name) or affinity.seed(name) for name in names}
        super().update_replicas(replicas)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None or not pending_request.args:
            return [candidate_replicas]
        # Not isinstance: Ray copies a router's class, and with it the classes of its module.
        route: Route = pending_request.args[0]
        pending_request.routing_context.should_backoff = True
        names = [one.replica_id.unique_id for one in candidate_replicas]
        usable = [
            _Candidate(one, self._seeds[name], self.replica_queue_len_cache.get(one.replica_id) or 0)
            for one, name in zip(candidate_replicas, names, strict=True)
            if name != route.tried or len(names) == 1
        ]
        chosen = affinity.choose(route.key, usable)
        if chosen is None:
            return []
        return [[chosen.replica], [one.replica for one in usable if one is not chosen]]
