"""(pure) Decide which request the next batch is for: fair between clients, then between the requests of a
client.

A client whose waiting requests all have low priority weighs less against other clients. High priority counts
only among the requests of the same client.

**Small requests** of up to HEAD_START tokens get a head start (see fairness.py), unless they or their client
have low priority.

**Runs.** An engine that caches the question's prefix continues with one request until it has received
`run_tokens` in a row, even if another request is next. Only a small request with a head start interrupts a
run: reading a question again costs less than waiting for the rest of a run. The run then continues.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from rerankd.client import Client
from rerankd.serving.fairness import HEAD_START, FairShare
from rerankd.serving.waiting_inputs import NEARLY


@dataclass(slots=True)
class _Client:
    """A client with waiting requests, and the weights of these requests."""

    weight: float
    weights: dict[int, float] = field(default_factory=dict)
    turns: FairShare[int] = field(default_factory=FairShare)

    @property
    def against_others(self) -> float:
        return self.weight * min(1.0, max(self.weights.values()))


class TurnOrder:
    """The waiting requests in the order of their turns. Its methods are the events; all amounts are in
    tokens."""

    def __init__(self) -> None:
        self._turns: FairShare[str] = FairShare()
        self._clients: dict[str, _Client] = {}
        self._owners: dict[int, str] = {}
        self._run, self._run_left = 0, 0

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, request: object) -> bool:
        return request in self._owners

    def arrive(self, request: int, client: Client, weight: float, tokens: int) -> None:
        """The request waits for `tokens` tokens."""
        ours = self._clients.setdefault(client.name, _Client(client.weight))
        ours.weight, ours.weights[request] = client.weight, weight
        self._owners[request] = client.name
        is_small = tokens <= HEAD_START and min(weight, client.weight) >= 1
        head = tokens / NEARLY if is_small else 0.0  # the maximum with padding
        ours.turns.arrive(request, weight, head)
        self._turns.arrive(client.name, ours.against_others, head)

    def leave(self, request: int) -> None:
        """The request no longer waits."""
        name = self._owners.pop(request, None)
        if name is None:
            return
        ours = self._clients[name]
        del ours.weights[request]
        self._turns.take_back(name, ours.turns.forget(request))
        if ours.weights:
            self._turns.reweigh(name, ours.against_others)
        else:
            self._turns.leave(name)
            del self._clients[name]

    def next(self, run_tokens: int = 0) -> tuple[int, bool] | None:
        """The request whose turn it is, and whether it is because of a head start. None if no request
        waits."""
        name = self._turns.pick()
        if name is None:
            return None
        turns = self._clients[name].turns
        request = turns.pick()
        assert request is not None
        is_ahead = turns.is_ahead(request)
        runner = self._owners.get(self._run)
        if run_tokens and runner is not None and self._run_left > 0:
            interrupts = is_ahead and (name == runner or self._turns.is_ahead(name))
            return (request, True) if interrupts else (self._run, False)
        self._run, self._run_left = request, run_tokens
        return request, is_ahead

    def others(self, lead: int, is_ahead: bool) -> Iterator[int]:
        """The requests that may add to a batch of `lead`, in turn order, those of the same client first. If
        `lead` has the turn because of a head start, only other requests with a head start may add to its
        batch: it waits for no other work."""
        own = self._owners[lead]
        for name in (own, *(name for name in self._turns.in_order() if name != own)):
            if is_ahead and name != own and not self._turns.is_ahead(name):
                return
            turns = self._clients[name].turns
            for request in turns.in_order():
                if is_ahead and not turns.is_ahead(request):
                    break
                if request != lead:
                    yield request

    def charge(self, request: int, tokens: int, lead: int) -> None:
        """Charge a waiting request for `tokens` in the batch of `lead`. `lead` is charged first, and has left
        before the others are charged if it has no more waiting inputs."""
        name = self._owners[request]
        leading = self._owners.get(lead)
        turns = self._clients[name].turns
        turns.charge(request, tokens, spare=request != lead and lead in turns)
        self._turns.charge(name, tokens, spare=leading is not None and leading != name)
        if request == self._run:
            self._run_left -= tokens
