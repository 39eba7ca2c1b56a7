"""What a request needs of a model: its texts truncated, and a raw value of each."""

from __future__ import annotations

import asyncio
import time

from rerankd.domain import RerankRequest
from rerankd.errors import InputTooLong
from rerankd.scoring import plan
from rerankd.scoring.inputs import Fitted, fit
from rerankd.scoring.result import Scored
from rerankd.serving.queue import Place
from rerankd.serving.served_model import ServedModel


async def score(served: ServedModel, request: RerankRequest, place: Place) -> Scored:
    """The raw value of each text of a request that has a place in the model's queue. Raises what the engine
    does, and InputTooLong where the request does not allow truncation."""
    try:
        return await _score(served, await _fit(served, request), place)
    except InputTooLong:
        return await _score(served, await _fit(served, request, exact=True), place)


async def _fit(served: ServedModel, request: RerankRequest, *, exact: bool = False) -> Fitted:
    fixed_tokens = await served.fixed_tokens()
    return await fit(request, served.model.scoring, fixed_tokens, served.calls.count_tokens, exact=exact)


async def _score(served: ServedModel, fitted: Fitted, place: Place) -> Scored:
    """From the cache, else in micro-batches from the engine."""
    started = time.perf_counter()
    cache, texts, policy = served.cache, fitted.plan.texts, served.engine.policy
    # A value that depends on the block that it was scored in is not kept.
    is_kept = served.engine.capabilities.scope == "pair"
    keys = cache.keys(fitted.query, fitted.instruction, texts) if is_kept else []
    known = [cache.get(key) for key in keys] or [None] * len(texts)
    raw = [entry and entry[0] for entry in known]
    tokens = [entry[1] if entry else 0 for entry in known]
    errors: dict[int, str] = {}
    missing = [at for at, value in enumerate(raw) if value is None]

    async def ask(part: list[int]) -> int:
        batch = [texts[at] for at in part]
        async with place.turn(len(part)):
            answer = await served.calls.score(fitted.query, batch, fitted.instruction)
        errors.update((part[at], reason) for at, reason in answer.errors.items())
        shares = plan.token_shares(answer.tokens, fitted.query, batch)
        for at, value, share in zip(part, answer.values, shares, strict=True):
            raw[at], tokens[at] = value, share
            if keys and value is not None:
                cache.put(keys[at], value, share)
        return answer.tokens

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(ask(missing[batch.start : batch.stop]))
                for batch in plan.micro_batches(
                    [texts[at] for at in missing], policy.texts, policy.characters
                )
            ]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return Scored(
        fitted,
        raw=raw,
        text_errors=errors,
        tokens=(read := sum(task.result() for task in tasks)),
        cached_tokens=sum(tokens[part] for parts in fitted.plan.parts for part in parts) - read,
        cached=len(texts) - len(missing),
        engine_s=time.perf_counter() - started - place.waited_s,
    )
