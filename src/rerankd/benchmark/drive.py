"""Sends the rounds of all cases to all servers in turn: A B, A B, for each case."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rerankd.benchmark.figures import Round, Series
from rerankd.benchmark.load import Plan, Request, round_of
from rerankd.progress import Progress
from rerankd.remote_client import Remote

# Rounds that are sent and not counted have negative numbers, so that their texts are others too.
_COLD, _WARM_UP = -1, -2


@dataclass(frozen=True, slots=True)
class Target:
    """A server under a name. `start_s` is how long it took to start, None where it ran already."""

    name: str
    server: Remote
    start_s: float | None = None


@dataclass(frozen=True, slots=True)
class Driven:
    """What came of it: `cold_s` is each server's first request, `again_s` the same one when it came again and
    could be answered from a cache. `complete` is False where the time was up or Ctrl-C came."""

    series: list[Series]
    cold_s: dict[str, float]
    again_s: dict[str, float]
    complete: bool


async def drive(targets: Sequence[Target], plan: Plan, progress: Progress) -> Driven:
    """Measure until all rounds are done or the time is up; being cancelled ends it as well, and returns what
    there is. Raises RemoteError where a server fails."""
    series = [[Series(target.name, case) for target in targets] for case in plan.cases]
    driven = Driven([one for row in series for one in row], {}, {}, complete=False)
    ends = time.monotonic() + plan.within_s
    steps, done = plan.rounds * len(plan.cases) * len(targets), 0
    try:
        for target in targets:
            progress("warming up", len(driven.cold_s), len(targets))
            first = round_of(plan.cases[0], plan.seed, _COLD)[0]
            driven.cold_s[target.name], _ = await timed(target.server, first)
            driven.again_s[target.name], _ = await timed(target.server, first)
            await one_round(target.server, round_of(plan.cases[0], plan.seed, _WARM_UP))
        progress("warming up", len(targets), len(targets))
        for at in range(plan.rounds):
            for case, row in zip(plan.cases, series, strict=True):
                requests = round_of(case, plan.seed, at)
                for target, into in zip(targets, row, strict=True):
                    if time.monotonic() > ends:
                        return driven
                    progress("measuring", done, steps)
                    into.rounds.append(await one_round(target.server, requests))
                    done += 1
    except asyncio.CancelledError:
        return driven
    progress("measuring", steps, steps)
    return replace(driven, complete=True)


async def one_round(server: Remote, requests: Sequence[Request]) -> Round:
    """All the requests at the same time, each by a client of its own."""
    started = time.perf_counter()
    answered = await asyncio.gather(*(timed(server, request) for request in requests))
    wall_s = time.perf_counter() - started
    told = [tokens for _, tokens in answered if tokens is not None]
    seconds = tuple(took for took, _ in answered)
    return Round(seconds, wall_s, sum(told) if len(told) == len(answered) else None)


async def timed(server: Remote, request: Request) -> tuple[float, int | None]:
    """The seconds until the answer, and the tokens that the server says it read, None where it says none."""
    started = time.perf_counter()
    answer = await server.rerank(request.query, request.documents)
    return time.perf_counter() - started, answer.tokens
