"""What a request needs of a model: the raw value of each document, as far as its budget goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rerankd.domain import RerankRequest
from rerankd.errors import TextsRefused
from rerankd.scoring import deduplicate
from rerankd.scoring.cache import CachedScore
from rerankd.scoring.deduplicate import UniqueTexts
from rerankd.scoring.inputs import Reader, Reading
from rerankd.scoring.question import PreparedQuestion, Truncation, takes_instruction
from rerankd.scoring.result import Scored
from rerankd.serving.queue import QueuedRequest
from rerankd.serving.served_model import ServedModel

# How much longer than its budget a request waits for what has begun, as a share of it.
GRACE = 0.1
# These are tokenized in some 20 ms.
_PORTION_CHARACTERS = 2**16


@dataclass(frozen=True, slots=True)
class Budget:
    """When a request's budget ends, and until when it waits for what has begun: seconds of the monotonic
    clock."""

    ends: float
    latest: float

    @classmethod
    def of(cls, request: RerankRequest, set_ms: int | None, since: float) -> Budget | None:
        """That of a request that came at `since`; `set_ms` is what is set for its model."""
        budget_ms = set_ms if request.budget_ms is None else request.budget_ms
        if not budget_ms:
            return None
        seconds = budget_ms / 1000
        return cls(since + seconds, since + seconds * (1 + GRACE))

    @property
    def left_s(self) -> float:
        """Seconds until it ends, 0 after that."""
        return max(self.ends - time.monotonic(), 0.0)


def texts_to_score(request: RerankRequest, served: ServedModel) -> UniqueTexts:
    """The texts of a request that are to be scored."""
    nfc = served.model.recipe.nfc
    documents = [deduplicate.clean(document, nfc=nfc) for document in request.documents]
    return deduplicate.unique_texts(documents, request.max_scored_documents or None)


async def score_documents(
    served: ServedModel,
    request: RerankRequest,
    place: QueuedRequest,
    texts: UniqueTexts,
    budget: Budget | None,
) -> Scored:
    """The raw value of each document: from the cache, else by the engine. Raises what the engine does,
    TooLong where a text must not be truncated, and Overloaded where there are too many tokens."""
    started = time.perf_counter()
    wanted, cache = served.wanted, served.cache
    how = Truncation.of(request, query=wanted.truncate_query, at=wanted.truncate_at)
    try:
        async with asyncio.timeout(budget.left_s if budget else None):
            reader = await served.reader()
            prepared = await reader.prepare(request.query, request.instruction, how)
    except TimeoutError:
        return nothing_scored(texts)
    # A value that depends on the block that it was scored in is not kept.
    is_kept = served.engine.capabilities.scope == "pair"
    keys = cache.keys(prepared.question.key, texts.texts, how.of_documents) if is_kept else []
    known: dict[int, CachedScore] = {}
    for at, key in enumerate(keys):
        entry = cache.get(key)
        if entry is not None and (how.is_allowed or not entry.is_truncated):
            known[at] = entry
    missing = [at for at in range(len(texts.texts)) if at not in known]
    raw: dict[int, float] = {at: entry.raw for at, entry in known.items()}
    tokens = {at: entry.tokens for at, entry in known.items()}
    truncated = {at for at, entry in known.items() if entry.is_truncated}
    errors: dict[int, str] = {}
    partly: list[int] = []
    unscored: list[int] = []
    read, overlap = 0, None
    for portion in _portions(texts.texts, missing) if budget else [missing]:
        if budget and not budget.left_s:
            unscored += portion
            continue
        try:
            async with asyncio.timeout(budget.left_s if budget else None):
                left, reading, refused = await _read(reader, prepared, texts, portion, how)
        except TimeoutError:
            unscored += portion
            continue
        errors |= refused
        overlap = overlap or reading.overlap
        scores = await place.score(
            reading.inputs,
            until=budget.ends if budget else None,
            latest=budget.latest if budget else None,
            blocks=() if is_kept else _blocks(len(reading.inputs), served.engine.policy.inputs),
        )
        for number, (at, part) in enumerate(zip(left, reading.parts, strict=True)):
            values = [value for one in part if (value := scores.values[one]) is not None]
            tokens[at] = sum(reading.inputs[one].tokens for one in part)
            if number in reading.truncated:
                truncated.add(at)
            if values:
                raw[at] = max(values)
                read += tokens[at]
            if len(values) == len(part):
                if keys:
                    cache.put(keys[at], CachedScore(raw[at], tokens[at], number in reading.truncated))
            elif not scores.unscored.isdisjoint(part):
                unscored.append(at)
            elif values:
                partly.append(at)
            else:
                errors[at] = scores.errors[part[0]]
    places = texts.text_index
    requested_tokens = sum(tokens[at] for at in places if at in raw)
    return Scored(
        texts=texts,
        raw=[None if at is None else raw.get(at) for at in places],
        errors={document: errors[at] for document, at in enumerate(places) if at in errors},
        partly=texts.documents(partly),
        truncated=texts.documents(sorted(truncated)),
        unscored=tuple(sorted((*texts.unscored, *texts.documents([at for at in unscored if at not in raw])))),
        document_budget=prepared.budget_for(how),
        query_tokens=prepared.query_tokens,
        overlap=overlap,
        unused_instruction=bool(request.instruction) and not takes_instruction(reader.recipe),
        tokens=read + (len(prepared.question.ids) if read else 0),
        cached_tokens=requested_tokens - read,
        cached=len(known),
        engine_s=time.perf_counter() - started - place.waited_s,
    )


def nothing_scored(texts: UniqueTexts) -> Scored:
    """What became of documents that no engine was ready for within the budget."""
    every = tuple(at for at, place in enumerate(texts.text_index) if place is not None)
    return Scored(
        texts, [None] * len(texts.text_index), {}, unscored=tuple(sorted((*every, *texts.unscored)))
    )


async def _read(
    reader: Reader, prepared: PreparedQuestion, texts: UniqueTexts, missing: Sequence[int], how: Truncation
) -> tuple[Sequence[int], Reading, dict[int, str]]:
    """The texts that can be read, their inputs, and why others can't be."""
    refused: dict[int, str] = {}
    while True:
        left = [at for at in missing if at not in refused]
        numbers = [texts.text_index.index(at) for at in left] if not how.is_allowed else ()
        try:
            return left, await reader.read(prepared, [texts.texts[at] for at in left], how, numbers), refused
        except TextsRefused as error:
            refused |= {left[at]: reason for at, reason in error.reasons.items()}


def _portions(texts: Sequence[str], missing: Sequence[int]) -> Iterator[list[int]]:
    """The texts of a request with a budget, in its order, as they are tokenized: the first ones are scored
    before a long one that follows is read."""
    portion: list[int] = []
    characters = 0
    for at in missing:
        if portion and characters + len(texts[at]) > _PORTION_CHARACTERS:
            yield portion
            portion, characters = [], 0
        portion.append(at)
        characters += len(texts[at])
    if portion:
        yield portion


def _blocks(count: int, most: int) -> list[range]:
    """A request's inputs as blocks that don't depend on what else the engine has to do."""
    return [range(start, min(start + most, count)) for start in range(0, count, most)]
