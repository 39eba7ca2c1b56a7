"""Embed the texts of one request: from the cache or by an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from rerankd import tracing
from rerankd.content import Content
from rerankd.embedding import EmbedRequest, TokenIds, Vectors
from rerankd.errors import EngineError, InvalidRequest, TextsRefused
from rerankd.scoring import deduplicate, own_ids
from rerankd.scoring.deduplicate import UniqueTexts
from rerankd.scoring.engine_input import Input, Question
from rerankd.scoring.inputs import Reader, Reading
from rerankd.scoring.question import PLAIN, PreparedQuestion, Truncation
from rerankd.serving.model_tokenizer import OwnTokenizer
from rerankd.serving.queue import QueuedRequest
from rerankd.serving.served_model import ServedModel


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of texts, as the model computes them, and the fields of EmbedResult that belong to them."""

    vectors: Vectors
    tokens: int
    cached_tokens: int
    truncated: tuple[int, ...]


def distinct_texts(request: EmbedRequest, served: ServedModel) -> UniqueTexts:
    """Clean and deduplicate the texts. Raises InvalidRequest for a model that computes no vectors of texts,
    and for a blank text."""
    recipe = served.model.recipe
    if recipe.method != "embedding":
        raise InvalidRequest(
            f"{served.name} ranks documents and computes no embeddings (its method is {recipe.method}). "
            "Serve an embedding model as well, and send its name as model."
        )
    texts = [
        deduplicate.clean(text, nfc=recipe.nfc) if isinstance(text, str) else text for text in request.texts
    ]
    found = deduplicate.unique_texts(cast("Sequence[Content]", texts))  # token ids are as good as a text here
    for at in found.blank:
        raise InvalidRequest(f"Text {at} is empty, and an empty text has no embedding. Leave it out.")
    return found


async def embed_texts(
    request: EmbedRequest, served: ServedModel, texts: UniqueTexts, queued: QueuedRequest
) -> Embedded:
    """Return the vector of each text. Raises what the engine raises, and TooLong for a text that is too long
    and must not be truncated."""
    reader, cache = await served.reader(), served.cache
    prepared = await _prepared(reader, request)
    contents = cast("Sequence[str | TokenIds]", texts.texts)
    keys = cache.digests(prepared.question.key, texts.texts, prepared.prefix)
    known = await cache.find_vectors(keys)
    if not request.truncate:
        known = {at: one for at, one in known.items() if not one.is_truncated}
    missing = [at for at in range(len(contents)) if at not in known]
    missing.sort(key=lambda at: isinstance(contents[at], TokenIds))  # as _read returns them
    cached_tokens = sum(known[at].tokens for at in texts.text_index if at in known)
    if missing:
        numbers = texts.first_documents(missing)
        how = replace(PLAIN, is_allowed=request.truncate)
        try:
            with tracing.step("tokenize documents"):
                wanted = [contents[at] for at in missing]
                inputs, truncated = await _read(reader, prepared, wanted, numbers, how)
        except TextsRefused as error:
            at, why = next(iter(error.reasons.items()))
            raise EngineError(f"Text {numbers[at]} could not be embedded: {why}.") from None
        scores = await queued.score(inputs)
        for number, why in scores.errors.items():
            raise EngineError(f"Text {numbers[number]} could not be embedded: {why}.")
        for number, at in enumerate(missing):
            vector: Any = scores.values[number]
            known[at] = cache.put_vector(
                keys[at], vector, inputs[number].tokens, is_truncated=number in truncated
            )
    rows = [known[at] for at in texts.text_index if at is not None]
    tracing.count(documents=len(rows), tokens=sum(one.tokens for one in rows) - cached_tokens)
    return Embedded(
        np.stack([one.vector for one in rows]),
        sum(one.tokens for one in rows),
        cached_tokens,
        tuple(at for at, one in enumerate(rows) if one.is_truncated),
    )


async def _read(
    reader: Reader,
    prepared: PreparedQuestion,
    contents: Sequence[str | TokenIds],
    numbers: Sequence[int],
    how: Truncation,
) -> tuple[list[Input], set[int]]:
    """The input of each text, those of texts first, then those of token ids; and the indexes of truncated
    inputs. `numbers` are the indexes of the texts in the request."""
    texts = [one for one in contents if isinstance(one, str)]
    reading = await reader.read(prepared, texts, how, numbers) if texts else Reading((), ())
    inputs, truncated = [*reading.inputs], {*reading.truncated}
    tokenizer = reader.tokenizer
    size = tokenizer.size if isinstance(tokenizer, OwnTokenizer) and not reader.reads_text else None
    for number in numbers[len(texts) :]:
        ids = contents[len(inputs)]
        assert isinstance(ids, TokenIds)
        one, is_truncated = own_ids.read(ids.ids, size, prepared, number, how)
        truncated |= {len(inputs)} if is_truncated else set()
        inputs.append(one)
    return inputs, truncated


async def _prepared(reader: Reader, request: EmbedRequest) -> PreparedQuestion:
    """How each text is read: alone, with the prefix of the request's input type."""
    frame, recipe = reader.tokenizer.frame, reader.recipe
    prefix = {"query": recipe.query_prefix, "document": recipe.document_prefix}.get(
        request.input_type or "", ""
    )
    (of_prefix,) = await reader.tokenizer.encode([prefix])
    space = recipe.max_length - len(frame.start) - len(frame.alone)
    question = Question("", before=frame.start, after=frame.alone, embeds=True)
    return PreparedQuestion(question, prefix, "", space, space - len(of_prefix), 0)
