"""(pure) The queue's decisions: who is let in, and what the next batch of an engine is.

Every batch is formed here, when an engine has room for one. The turn is the client's that has had the
smallest share of the engine, and in it the request's (see fair.py). That request's inputs make the batch; the
room that they leave goes to other requests with inputs that fit, the same client's first.

**Small requests.** A request of up to HEAD_START tokens comes before the others (unless its priority or its
client's is low), and its batch is filled with inputs of such requests only: it waits for no others' work.

**Runs.** An engine that keeps what it has read of a question (`run_tokens`) goes on with one request until it
has got that many tokens in a row, although another one would be next. Only a small request with a head start
interrupts: reading a question anew costs less than waiting for the rest of a run. The run then goes on.

**Time.** A request with a time budget gives its inputs in its own order. None is begun that the engine would
not finish in time, by its measured rate and what it has already; these are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rerankd.backends.base import BatchPolicy
from rerankd.domain import Priority
from rerankd.serving.admission import Bounds, Client, Full, Held, full
from rerankd.serving.batches import Limits, Others, Part, form
from rerankd.serving.fair import HEAD_START, FairShare
from rerankd.serving.pace import Pace
from rerankd.serving.waiting import NEARLY, Waiting

WEIGHTS: Mapping[Priority, float] = {"low": 0.25, "normal": 1.0, "high": 4.0}
"""What a request weighs against others of its client, and a client's setting against other clients."""

_LONGEST_RETRY_S = 120
# Tokens of a document, while none has been counted.
_TYPICAL = 100.0


class Given(NamedTuple):
    """The next batch: (request, place in it) of each input, none where nothing waits, and the tokens that the
    engine computes for it, padding included."""

    inputs: Sequence[tuple[int, int]] = ()
    tokens: int = 0


@dataclass(slots=True)
class _Client:
    weight: float
    held: Held = field(default_factory=Held)
    turns: FairShare[int] = field(default_factory=FairShare)


@dataclass(slots=True)
class _Request:
    client: str
    weight: float
    held: Held
    waiting: Waiting = field(default_factory=lambda: Waiting(()))
    until: float | None = None
    at_engine: int = 0


class Line:
    """What waits and what is at the engines. Its methods are the events; a request is a number that the
    caller makes up, `now` is in seconds of any clock."""

    def __init__(self, bounds: Bounds, *, engines: int = 1) -> None:
        self.bounds = bounds
        self.held = Held()
        self.pace = Pace()
        self._engines = engines
        self._halvings = 0
        self._requests: dict[int, _Request] = {}
        self._clients: dict[str, _Client] = {}
        self._turns: FairShare[str] = FairShare()
        # Requests with a budget that have inputs waiting, and those of them whose turn is not yet, since
        # no rate has been measured.
        self._timed: dict[int, float] = {}
        self._resting: set[int] = set()
        self._run, self._run_left = 0, 0

    def __len__(self) -> int:
        return len(self._requests)

    # Who comes and goes.

    def join(
        self, request: int, client: Client, size_bytes: int, documents: int, weight: float = 1.0
    ) -> Full | None:
        """Take a request in; or say what is full, and take nothing. Whatever its size, one is taken where
        there is no other."""
        asks = Held(1, documents, 0, size_bytes)
        ours = self._clients.get(client.name)
        if self._requests and (what := full(self.bounds, self.held, ours.held if ours else Held(), asks)):
            return what
        if ours is None:
            ours = self._clients[client.name] = _Client(client.weight)
        ours.weight = client.weight
        ours.held.add(asks)
        self.held.add(asks)
        self._requests[request] = _Request(client.name, weight, asks)
        return None

    def expect(
        self,
        request: int,
        tokens: Sequence[int],
        *,
        question: bytes = b"",
        until: float | None = None,
        blocks: Sequence[Sequence[int]] = (),
    ) -> Full | None:
        """The request's inputs are known and wait from now on: the tokens of each, and the key of their
        question. Or says what is full, and then none of them waits. No input is begun that would not be
        done by `until`. Each of `blocks` is a batch of its own."""
        place = self._requests[request]
        client = self._clients[place.client]
        has = Held(0, len(tokens), sum(tokens), 0)
        had = Held(0, place.held.documents, place.held.tokens, 0)
        for held in (self.held, client.held, place.held):
            held.remove(had)
        what = full(self.bounds, self.held, client.held, has) if len(self._requests) > 1 else None
        kept = had if what else has
        for held in (self.held, client.held, place.held):
            held.add(kept)
        if what or not tokens:
            return what
        place.waiting = Waiting(tokens, question=question, is_ordered=until is not None, blocks=blocks)
        place.until = until
        if until is not None:
            self._timed[request] = until
        self._wait(request)
        return None

    def drop(self, request: int) -> None:
        """None of the request's waiting inputs is to be given any more."""
        place = self._requests[request]
        lost = Held(0, *place.waiting.clear(), 0)
        for held in (self.held, self._clients[place.client].held, place.held):
            held.remove(lost)
        self._stop_waiting(request)

    def leave(self, request: int) -> None:
        """The request has ended, one way or another. What is at the engine is nobody's now."""
        self.drop(request)
        place = self._requests.pop(request)
        client = self._clients[place.client]
        client.turns.forget(request)
        client.held.remove(place.held)
        self.held.remove(place.held)
        if not client.held.requests:
            del self._clients[place.client]

    def retry_after_s(self, what: Full, client: Client) -> int:
        """Seconds until a request for which something was full should find room."""
        typical = self.held.tokens / self.held.documents if self.held.tokens else _TYPICAL
        if what.what == "tokens":
            over = float(what.over)
        elif what.what == "documents":
            over = what.over * typical
        else:  # one request has to end
            those = (one for one in self._requests.values() if not what.is_share or one.client == client.name)
            over = min((one.held.tokens or one.held.documents * typical for one in those), default=0.0)
        return min(max(math.ceil(over / self.pace.tokens), 1), _LONGEST_RETRY_S)

    # What the engine gets.

    def limits(self, policy: BatchPolicy) -> Limits:
        """What one batch may hold now."""
        within = int(self.pace.tokens / self._engines * policy.call_s) if self.pace.is_measured else 0
        tokens = max(policy.tokens, min(policy.most_tokens, within))
        return Limits(max(tokens >> self._halvings, 1), max(policy.inputs >> self._halvings, 1))

    def lower(self) -> None:
        """The engine ran out of memory: batches hold half as much from now on."""
        self._halvings += 1

    def restore(self) -> None:
        """Batches hold what the policy says again."""
        self._halvings = 0

    def late(self, now: float) -> list[int]:
        """Drop what can't be scored in time any more: all that waits of the requests that are returned."""
        late = []
        for request, until in self._timed.items():
            first = self._requests[request].waiting.first()
            if now >= until or (self.pace.is_measured and self.pace.in_time(now, until) < first):
                late.append(request)
        for request in late:
            self.drop(request)
        return late

    def next_at(self, under_way: int) -> float:
        """From when on the next batch may be begun, beside so many under way."""
        if not self._turns:
            return math.inf
        is_ahead = self._engines == 1 and under_way > 0 and self.pace.is_measured
        return self.pace.next_at() if is_ahead else -math.inf

    def next(self, policy: BatchPolicy, now: float) -> Given:
        """The next batch, which is at the engine from now on. `late` has been called for this moment."""
        lead, is_ahead = self._lead(policy)
        if lead is None:
            return Given()
        parts = self._form(policy, lead, is_ahead, now)
        for part in parts:
            self._charge(part, lead)
        tokens = sum(part.tokens for part in parts)
        if lead == self._run:
            self._run_left -= tokens
        self.pace.begun(now, tokens)
        inputs = [(part.request, at) for part in parts for at in part.places]
        return Given(inputs, tokens)

    def done(self, batch: Given, now: float, *, is_scored: bool = True) -> None:
        """The engine has ended with a batch; `is_scored` False where it gave no values."""
        self.pace.ended(now, batch.tokens, len(batch.inputs), is_scored=is_scored)
        for request, at in batch.inputs:
            place = self._requests.get(request)
            if place is None:
                continue
            place.at_engine -= 1
            freed = Held(0, 1, place.waiting.lengths[at], 0)
            for held in (self.held, self._clients[place.client].held, place.held):
                held.remove(freed)
        for request in tuple(self._resting):
            if self.pace.is_measured or not self._requests[request].at_engine:
                self._resting.discard(request)
                self._wait(request)

    def _lead(self, policy: BatchPolicy) -> tuple[int | None, bool]:
        """The request whose turn it is, and whether that is because of its head start."""
        name = self._turns.pick()
        if name is None:
            return None, False
        turns = self._clients[name].turns
        request = turns.pick()
        assert request is not None
        is_ahead = turns.is_ahead(request)
        if not policy.run_tokens:
            return request, is_ahead
        runner = self._requests.get(self._run)
        if runner is not None and self._run_left > 0 and self._run in self._clients[runner.client].turns:
            interrupts = is_ahead and (name == runner.client or self._turns.is_ahead(name))
            return (request, True) if interrupts else (self._run, False)
        if not is_ahead:
            self._run, self._run_left = request, policy.run_tokens
        return request, is_ahead

    def _form(self, policy: BatchPolicy, lead: int, is_ahead: bool, now: float) -> list[Part]:
        place = self._requests[lead]
        limits = self.limits(policy)
        if place.until is not None and self.pace.is_measured:
            limits = Limits(min(limits.tokens, self.pace.in_time(now, place.until)), limits.inputs)
        others = self._others(lead, is_ahead, limits.tokens, now)
        return form(policy, limits, lead, place.waiting, others)

    def _others(self, lead: int, is_ahead: bool, tokens: int, now: float) -> Others:
        """The other requests by turn, those of the same client first; of those with a time budget the ones
        that a batch of so many tokens is in time for."""
        own = self._requests[lead].client
        for name in (own, *(name for name in self._turns.in_order() if name != own)):
            if is_ahead and name != own and not self._turns.is_ahead(name):
                return
            turns = self._clients[name].turns
            for request in turns.in_order():
                place = self._requests[request]
                if request == lead or (
                    place.until is not None
                    and (not self.pace.is_measured or self.pace.in_time(now, place.until) < tokens)
                ):
                    continue
                if is_ahead and not turns.is_ahead(request):
                    break
                yield request, place.waiting

    def _charge(self, part: Part, lead: int) -> None:
        """Count what a request gives to the batch of `lead`, or has given as `lead`."""
        place = self._requests[part.request]
        owner = self._requests[lead].client
        turns = self._clients[place.client].turns
        turns.charge(part.request, part.tokens, spare=part.request != lead and lead in turns)
        self._turns.charge(place.client, part.tokens, spare=place.client != owner and owner in self._turns)
        place.at_engine += len(part.places)
        if not place.waiting:
            self._stop_waiting(part.request)
        elif place.until is not None and not self.pace.is_measured:
            self._leave_turns(part.request)
            self._resting.add(part.request)

    def _wait(self, request: int) -> None:
        """The request takes turns from now on."""
        place = self._requests[request]
        client = self._clients[place.client]
        tokens = place.waiting.tokens
        is_small = tokens <= HEAD_START and min(place.weight, client.weight) >= 1
        # As much as it may be with padding.
        head = tokens / NEARLY if is_small else 0.0
        client.turns.arrive(request, place.weight, head)
        self._turns.arrive(place.client, self._weight(client), head)

    def _stop_waiting(self, request: int) -> None:
        """The request has nothing waiting any more."""
        self._timed.pop(request, None)
        self._resting.discard(request)
        self._leave_turns(request)

    def _leave_turns(self, request: int) -> None:
        name = self._requests[request].client
        client = self._clients[name]
        if request not in client.turns:
            return
        client.turns.leave(request)
        if len(client.turns):
            self._turns.reweigh(name, self._weight(client))
        else:
            self._turns.leave(name)

    def _weight(self, client: _Client) -> float:
        """A client steps back for others while all it wants has a low priority. A high one is only against
        its own requests."""
        return client.weight * min(1.0, max(self._requests[one].weight for one in client.turns))
