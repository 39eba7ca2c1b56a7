"""Score the documents of one request: from the cache or by an engine, within the request's time budget."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rerankd import tracing
from rerankd.content import Content
from rerankd.domain import RerankRequest
from rerankd.errors import TextsRefused
from rerankd.scoring import block_scores, deduplicate, image_inputs
from rerankd.scoring.cache import CachedScore
from rerankd.scoring.deduplicate import UniqueTexts
from rerankd.scoring.inputs import Reader, Reading
from rerankd.scoring.question import PreparedQuestion, Truncation, takes_instruction
from rerankd.scoring.result import Scored
from rerankd.serving.queue import QueuedRequest
from rerankd.serving.queue_scores import Scores
from rerankd.serving.served_model import ServedModel

# How long a request waits past its budget for inputs that an engine has begun, as a fraction of the budget.
GRACE = 0.1
# Tokenizing this many characters takes about 20 ms.
_PORTION_CHARACTERS = 2**16


@dataclass(frozen=True, slots=True)
class Budget:
    """The time budget of a request, in seconds of the monotonic clock: when it ends, and until when the
    request waits for inputs that an engine has begun."""

    ends: float
    latest: float

    @classmethod
    def of(cls, request: RerankRequest, default_ms: int | None, since: float) -> Budget | None:
        """The budget of a request that arrived at `since`. `default_ms` is the model's setting."""
        budget_ms = default_ms if request.budget_ms is None else request.budget_ms
        if not budget_ms:
            return None
        seconds = budget_ms / 1000
        return cls(since + seconds, since + seconds * (1 + GRACE))

    @property
    def left_s(self) -> float:
        """Seconds until the budget ends; 0 after that."""
        return max(self.ends - time.monotonic(), 0.0)


def texts_to_score(
    request: RerankRequest, served: ServedModel, candidates: Sequence[int] | None = None
) -> UniqueTexts:
    """Clean and deduplicate the documents of a request; with `candidates`, those with these indexes."""
    nfc = served.model.recipe.nfc
    clean: Any = deduplicate.clean_content if request.has_images else deduplicate.clean
    documents = [clean(document, nfc=nfc) for document in request.documents]
    if candidates is not None:
        return deduplicate.of_candidates(documents, candidates)
    return deduplicate.unique_texts(documents, request.max_scored_documents or None)


@dataclass(slots=True)
class _Outcome:
    """The outcome so far, by the index of each distinct text. `read` counts the tokens that the engine read
    for scores, `overlap` is as in Reading."""

    raw: dict[int, float] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)
    truncated: set[int] = field(default_factory=set)
    errors: dict[int, str] = field(default_factory=dict)
    partly: list[int] = field(default_factory=list)
    unscored: list[int] = field(default_factory=list)
    read: int = 0
    overlap: int | None = None

    def add_cached(self, at: int, score: CachedScore) -> None:
        self.raw[at], self.tokens[at] = score.raw, score.tokens
        if score.is_truncated:
            self.truncated.add(at)

    def add(self, at: int, reading: Reading, number: int, scores: Scores) -> CachedScore | None:
        """Add text `at`, which is text `number` of `reading`. Returns its score if all its chunks have
        one."""
        part, is_truncated = reading.parts[number], number in reading.truncated
        values = [value for one in part if (value := scores.values[one]) is not None]
        self.tokens[at] = sum(reading.inputs[one].tokens for one in part)
        if is_truncated:
            self.truncated.add(at)
        if values:
            self.raw[at] = max(values)
            self.read += self.tokens[at]
        if len(values) == len(part):
            return CachedScore(self.raw[at], self.tokens[at], is_truncated)
        if not scores.unscored.isdisjoint(part):
            self.unscored.append(at)
        elif values:
            self.partly.append(at)
        else:
            self.errors[at] = scores.errors[part[0]]
        return None

    def scored(self, texts: UniqueTexts) -> Scored:
        """The outcome by document."""
        indexes = texts.text_index
        unscored = texts.documents([at for at in self.unscored if at not in self.raw])
        return Scored(
            texts=texts,
            raw=[None if at is None else self.raw.get(at) for at in indexes],
            errors={document: self.errors[at] for document, at in enumerate(indexes) if at in self.errors},
            partly=texts.documents(self.partly),
            truncated=texts.documents(sorted(self.truncated)),
            unscored=tuple(sorted((*texts.unscored, *unscored))),
            overlap=self.overlap,
            cached_tokens=sum(self.tokens[at] for at in indexes if at in self.raw) - self.read,
        )


async def score_documents(
    served: ServedModel,
    request: RerankRequest,
    queued: QueuedRequest,
    texts: UniqueTexts,
    budget: Budget | None,
) -> Scored:
    """Score each text, from the cache or by an engine.

    Raises what the engine raises, TooLong if a text is too long and must not be truncated, and Overloaded if
    the request has too many tokens for the queue.
    """
    started = time.perf_counter()
    wanted, cache = served.wanted, served.cache
    # A query that fills the length that a late-interaction model has for queries is truncated by its own
    # encoder too. The response says so.
    truncates = wanted.truncate_query or served.model.recipe.interaction is not None
    how = Truncation.of(request, query=truncates, at=wanted.truncate_at)
    try:
        async with asyncio.timeout(budget.left_s if budget else None):
            reader = await served.reader()
            with tracing.step("tokenize query"):
                prepared = await reader.prepare(request.query, request.instruction, how)
    except TimeoutError:
        return nothing_scored(texts)
    has_blocks = served.engine.capabilities.scope == "block"
    # A score that depends on the other documents is cached for the same documents in the same order.
    whole = (one if isinstance(one, str) else one.key.hex() for one in texts.texts)
    others = "\0".join(("", *whole)) if has_blocks else ""
    keys = cache.keys(prepared.question.key, texts.texts, how.of_documents + others)
    outcome = _Outcome()
    known = await cache.find(keys, budget.left_s if budget else math.inf)
    for at, score in _usable(known, len(keys), how, is_whole=has_blocks).items():
        outcome.add_cached(at, score)
    cached = len(outcome.raw)
    missing = [at for at in range(len(texts.texts)) if at not in outcome.raw]
    left = deque(_portions(texts.texts, missing) if budget and not has_blocks else [missing])
    while left:
        portion = left.popleft()
        if budget and not budget.left_s:
            outcome.unscored += portion
            continue
        try:
            async with asyncio.timeout(budget.left_s if budget else None):
                with tracing.step("tokenize documents"):
                    readable, reading, refused = await _read(
                        reader, request, prepared, texts, portion, how, served.settings.max_image_pixels
                    )
        except TimeoutError:
            outcome.unscored += portion
            continue
        outcome.errors |= refused
        outcome.overlap = outcome.overlap or reading.overlap
        inputs = reading.inputs
        blocks = (reading.blocks or _blocks(len(inputs), served.engine.policy.inputs)) if has_blocks else ()
        scores = await queued.score(
            inputs,
            until=budget.ends if budget else None,
            latest=budget.latest if budget else None,
            blocks=blocks,
        )
        if blocks and scores.errors and len(scores.errors) < len(inputs):
            # The scores of the others are those of other blocks: without the texts that can't be scored.
            owners = dict(_owners(readable, reading))
            failed = {owners[one]: reason for one, reason in scores.errors.items()}
            outcome.errors |= failed
            left.append([at for at in readable if at not in failed])
            continue
        scores = _merged(scores, blocks)
        made = {at: outcome.add(at, reading, number, scores) for number, at in enumerate(readable)}
        if not has_blocks or (len(made) == len(keys) and None not in made.values()):
            for at, one in made.items():
                if one is not None and keys:
                    cache.put(keys[at], one)
    return replace(
        outcome.scored(texts),
        document_budget=prepared.budget_for(how),
        query_tokens=prepared.query_tokens,
        unused_instruction=bool(request.instruction) and not takes_instruction(reader.recipe),
        has_no_chunks=how.chunks > 1 and reader.recipe.method == "listwise",
        tokens=outcome.read + (len(prepared.question.ids) if outcome.read else 0),
        cached=cached,
        engine_s=time.perf_counter() - started - queued.waited_s,
        normalization=reader.recipe.normalization_for(len(prepared.question.ids)),
    )


def _usable(
    known: Mapping[int, CachedScore], texts: int, how: Truncation, *, is_whole: bool
) -> Mapping[int, CachedScore]:
    """The cached scores that the request may use. With `is_whole`, those of all texts or none."""
    found = {at: score for at, score in known.items() if how.is_allowed or not score.is_truncated}
    return found if not is_whole or len(found) == texts else {}


def _owners(readable: Sequence[int], reading: Reading) -> Iterator[tuple[int, int]]:
    """The index of each input, and that of its text."""
    for at, part in zip(readable, reading.parts, strict=True):
        for one in part:
            yield one, at


def _merged(scores: Scores, blocks: Sequence[range]) -> Scores:
    """The scores of a request of several blocks, from their vectors (see block_scores.py)."""
    scored = [block for block in blocks if block.start in scores.blocks]
    if len(scored) < 2:
        return scores
    values = [*scores.values]
    found = block_scores.merged([scores.blocks[block.start] for block in scored])
    for block, own in zip(scored, found, strict=True):
        values[block.start : block.stop] = own
    return replace(scores, values=values)


def nothing_scored(texts: UniqueTexts) -> Scored:
    """The outcome if no engine was ready within the budget."""
    every = tuple(at for at, text in enumerate(texts.text_index) if text is not None)
    return Scored(
        texts, [None] * len(texts.text_index), {}, unscored=tuple(sorted((*every, *texts.unscored)))
    )


async def _read(
    reader: Reader,
    request: RerankRequest,
    prepared: PreparedQuestion,
    texts: UniqueTexts,
    missing: Sequence[int],
    how: Truncation,
    most_pixels: int,
) -> tuple[Sequence[int], Reading, dict[int, str]]:
    """Tokenize the texts. Returns the indexes of the tokenized texts, their inputs, and for each other text
    the reason why it could not be tokenized."""
    refused: dict[int, str] = {}
    while True:
        left = [at for at in missing if at not in refused]
        numbers = texts.first_documents(left) if not how.is_allowed else ()
        wanted = [texts.texts[at] for at in left]
        try:
            if request.has_images:
                reading = await image_inputs.read(
                    reader, request, prepared, wanted, how, numbers, most_pixels=most_pixels
                )
            else:
                reading = await reader.read(prepared, wanted, how, numbers)  # type: ignore[arg-type]
            return left, reading, refused
        except TextsRefused as error:
            refused |= {left[at]: reason for at, reason in error.reasons.items()}


def _portions(texts: Sequence[Content], missing: Sequence[int]) -> Iterator[list[int]]:
    """Split the texts of a request with a time budget, in their order, so that the first ones are scored
    before a long one that follows is tokenized."""
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
    """Split a request's inputs into blocks that do not depend on other requests."""
    return [range(start, min(start + most, count)) for start in range(0, count, most)]
