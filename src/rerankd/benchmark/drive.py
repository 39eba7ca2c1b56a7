"""Drive a benchmark: send the rounds of each case to all servers in alternation (A B A B)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rerankd.benchmark.figures import Round, Series
from rerankd.benchmark.load import Plan, Request, round_of
from rerankd.progress import Progress
from rerankd.remote_client import Remote

# Rounds that are not counted have negative numbers, so that their texts differ from those of counted rounds.
_COLD, _WARM_UP = -1, -2


@dataclass(frozen=True, slots=True)
class Target:
    """A server to measure. `start_s` is the time that it took to start; None: it was already running."""

    name: str
    server: Remote
    start_s: float | None = None


@dataclass(frozen=True, slots=True)
class Driven:
    """The measurements. `cold_s`: latency of each server's first request. `again_s`: latency of the same
    request sent again, which a cache may answer. `complete`: neither the time limit nor Ctrl-C ended it."""

    series: list[Series]
    cold_s: dict[str, float]
    again_s: dict[str, float]
    complete: bool


async def drive(targets: Sequence[Target], plan: Plan, progress: Progress) -> Driven:
    """Measure until all rounds are done, the time limit is reached or the task is cancelled; return the
    results so far. Raises RemoteError if a server fails."""
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
    """Send all requests at the same time, each from its own client."""
    started = time.perf_counter()
    answered = await asyncio.gather(*(timed(server, request) for request in requests))
    wall_s = time.perf_counter() - started
    reported = [tokens for _, tokens in answered if tokens is not None]
    seconds = tuple(took for took, _ in answered)
    return Round(seconds, wall_s, sum(reported) if len(reported) == len(answered) else None)


async def timed(server: Remote, request: Request) -> tuple[float, int | None]:
    """Return the latency in seconds, and the number of tokens that the server reports, None if it does
    not."""
    started = time.perf_counter()
    answer = await server.rerank(request.query, request.documents)
    return time.perf_counter() - started, answer.tokens
