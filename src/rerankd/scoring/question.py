"""Prepare a question: the token ids before and after each document, and the document budget they leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from rerankd.content import Content, Image, images_of, text_of
from rerankd.domain import Recipe, RerankRequest
from rerankd.errors import TooLong
from rerankd.scoring import block_prompt, deduplicate, image_tokens, prompt, truncate, truncated_text
from rerankd.scoring.engine_input import NONE, Ids, Pictures, Question
from rerankd.scoring.tokenizer import Tokenizer

# A question that leaves fewer tokens for a document is too long.
_LEAST_DOCUMENT_TOKENS = 8
# A document in its passage may have some tokens more than the two have alone.
BLOCK_MARGIN = 4


class Model(Protocol):
    """The parts of a model that tokenization needs."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def control_tokens(self) -> Mapping[str, int]: ...


@dataclass(frozen=True, slots=True)
class Truncation:
    """The truncation options of a request; 0 means not set."""

    max_tokens_per_doc: int = 0
    max_tokens_per_query: int = 0
    max_tokens_per_pair: int = 0
    chunks: int = 1
    overlap: int = 0
    at_sentence: bool = False
    query: bool = False
    is_allowed: bool = True

    @classmethod
    def of(cls, request: RerankRequest, *, query: bool = False, at: str = "token") -> Truncation:
        """The options of a request; `query` and `at` are the model's settings."""
        return cls(
            request.max_tokens_per_doc or 0,
            request.max_tokens_per_query or 0,
            request.max_tokens_per_pair or 0,
            max(request.max_chunks_per_doc, 1) if request.truncate else 1,
            request.overlap_tokens,
            (request.truncate_at or at) == "sentence",
            query if request.truncate_query is None else request.truncate_query,
            request.truncate,
        )

    @property
    def of_documents(self) -> str:
        """The part of a cache key that stands for the truncation of documents (see cache.py)."""
        options = (
            self.max_tokens_per_doc,
            self.max_tokens_per_pair,
            self.chunks,
            self.overlap,
            self.at_sentence,
        )
        return "" if options == _PLAIN_DOCUMENTS else repr(options)


PLAIN = Truncation()
_PLAIN_DOCUMENTS = (0, 0, 1, 0, False)


@dataclass(frozen=True, slots=True)
class PreparedQuestion:
    """A question, and how a document is read with it. `prefix` and `suffix` surround the document's text
    before tokenization; the three may have `ids_limit` ids together, which leaves `document_budget` for the
    document. `query_budget` is the length in tokens to which a query that is too long is truncated.
    `query_tokens` is the length to which this query was truncated, None if it was not."""

    question: Question
    prefix: str
    suffix: str
    ids_limit: int
    document_budget: int
    query_budget: int
    query_tokens: int | None = None

    def around(self, text: str) -> str:
        """The text of a document with its prefix and suffix."""
        return f"{self.prefix}{text}{self.suffix}"

    def budget_for(self, how: Truncation) -> int:
        """The number of tokens read of a document, including the request's own limit."""
        return min(self.document_budget, how.max_tokens_per_doc or self.document_budget)


async def prepare(
    model: Model,
    asked: Content,
    instruction: str | None = None,
    how: Truncation = PLAIN,
    shown: tuple[Image, ...] = (),
) -> PreparedQuestion:
    """Prepare the question of a request, for documents without images or for one with the images `shown`.

    Raises TooLong if the query leaves too few tokens for a document, and BadImage.
    """
    recipe, length = model.recipe, _length(model, how)
    pictures = Pictures(images_of(asked), shown, prompt.is_document_first(recipe.template))
    query = deduplicate.clean(text_of(asked), nfc=recipe.nfc)
    wanted = (instruction or recipe.instruction) if takes_instruction(recipe) else ""
    instruction = deduplicate.clean(wanted, nfc=recipe.nfc)
    limit, query_tokens = how.max_tokens_per_query, None
    if limit:
        query, query_tokens = await _shortened(model, query, limit)
    # A query longer than an input need not be tokenized to its end.
    read = truncate.beginning(query, length)
    prepared = await _prepare(model, read, instruction, length, pictures)
    if prepared.document_budget < _LEAST_DOCUMENT_TOKENS and how.query:
        query, query_tokens = await _shortened(model, read, max(prepared.query_budget, 1))
        prepared = await _prepare(model, query, instruction, length, pictures)
    elif len(read) < len(query) and prepared.document_budget >= _LEAST_DOCUMENT_TOKENS:
        prepared = await _prepare(model, query, instruction, length, pictures)
    if query_tokens is not None and deduplicate.is_blank(query):
        raise TooLong(f"max_tokens_per_query = {limit} leaves nothing of the query. Raise it.")
    if prepared.document_budget < _LEAST_DOCUMENT_TOKENS:
        raise await _too_long(model, prepared, read, length, how, is_whole=len(read) == len(query))
    return replace(prepared, query_tokens=query_tokens)


async def _too_long(
    model: Model, prepared: PreparedQuestion, query: str, length: int, how: Truncation, *, is_whole: bool
) -> TooLong:
    """The error for a question that leaves too few tokens for a document."""
    (ids,) = await model.tokenizer.encode([query])
    is_apart = model.recipe.method in ("embedding", "late_interaction", "listwise")
    most = prepared.query_budget if is_apart else prepared.document_budget + len(ids) - _LEAST_DOCUMENT_TOKENS
    if most < 1:
        return TooLong(
            f"The limit of {length} tokens for an input leaves none for the query and the document. "
            "Shorten the instruction, or raise the request's token limit."
        )
    more = "" if is_whole else " more than"
    hint = "" if how.query else ", or send truncate_query: true"
    return TooLong(
        f"The query has{more} {len(ids)} tokens, but may use at most {most} of the {length} tokens of an "
        f"input. Shorten it{hint}."
    )


def takes_instruction(recipe: Recipe) -> bool:
    """Whether the model's prompt contains a request's instruction."""
    return recipe.method in ("causal_lm", "listwise") and prompt.INSTRUCTION in recipe.template


def _length(model: Model, how: Truncation) -> int:
    """The maximum number of tokens of an input."""
    return min(model.recipe.max_length, how.max_tokens_per_pair or model.recipe.max_length)


async def _prepare(
    model: Model, query: str, instruction: str, length: int, pictures: Pictures
) -> PreparedQuestion:
    frame, recipe = model.tokenizer.frame, model.recipe
    if recipe.method in ("embedding", "late_interaction"):
        return await _apart(model, query, length)
    if recipe.method == "cross_encoder" and not recipe.template:
        (own,) = await model.tokenizer.encode([recipe.query_prefix + query])
        before = np.concatenate((frame.start, own, frame.between))
        second = None if frame.first_typed is None else len(frame.start) + len(own) + frame.first_typed
        space = length - len(before) - len(frame.end)
        question = Question(query, "", before, frame.end, NONE, second)
        query_room = _share(space + len(own))
        if recipe.query_prefix:
            (of_prefix,) = await model.tokenizer.encode([recipe.query_prefix])
            query_room = _share(space + len(own) - len(of_prefix))
        return PreparedQuestion(question, "", "", space, space, query_room)
    if recipe.method == "listwise":
        return await _block(model, query, instruction, length)
    return await _prompt(model, query, instruction, length, pictures)


async def _apart(model: Model, query: str, length: int) -> PreparedQuestion:
    """Prepare the question of a model that reads the query separately, so that it takes no tokens from the
    document."""
    frame, recipe, interaction = model.tokenizer.frame, model.recipe, model.recipe.interaction
    texts = [recipe.query_prefix + query, query, recipe.document_prefix]
    own, alone, of_document = await model.tokenizer.encode(texts)
    starts, query_length = [frame.start, frame.start], length
    if interaction is not None:
        markers = (interaction.query_marker, interaction.document_marker)
        ids = [[model.control_tokens[one]] if one else [] for one in markers]
        starts = [np.concatenate((frame.start, np.array(one, np.int32))) for one in ids]
        query_length = interaction.query_length
    query_space = query_length - len(starts[0]) - len(frame.alone)
    space = length - len(starts[1]) - len(frame.alone)
    budget = space - len(of_document) if len(own) <= query_space else 0
    question = Question(query, "", starts[1], frame.alone, np.concatenate((starts[0], own, frame.alone)))
    room = query_space - (len(own) - len(alone))
    return PreparedQuestion(question, recipe.document_prefix, "", space, budget, room)


async def _block(model: Model, query: str, instruction: str, length: int) -> PreparedQuestion:
    """Prepare the question of a listwise model: its ids before the piece with the first document, and after
    the last document. Documents are tokenized alone here, to truncate them (see blocks.py)."""
    recipe = model.recipe
    query = block_prompt.without_markers(query, recipe.markers)
    one = block_prompt.BlockPrompt(
        recipe.template, model.control_tokens, query=query, instruction=instruction
    ).segments([""])
    before, first, after = await encoded(model.tokenizer, (one.before, *one.documents, one.after))
    if one.before and isinstance(one.before[0], str):
        before = np.concatenate((model.tokenizer.frame.start, before))
    (own,) = await model.tokenizer.encode([query])
    space = length - len(before) - len(first) - len(after) - BLOCK_MARGIN
    is_too_long = 0 < recipe.query_tokens < len(own)
    budget = 0 if is_too_long else min(space, recipe.document_tokens or space)
    # The query occurs twice in the prompt.
    query_budget = _share(space + 2 * len(own)) // 2
    query_budget = min(query_budget, recipe.query_tokens or query_budget)
    question = Question(query, instruction, before, after)
    return PreparedQuestion(question, "", "", budget, budget, query_budget)


async def encoded(tokenizer: Tokenizer, segments: Sequence[Sequence[prompt.Piece]]) -> list[Ids]:
    """The token ids of each segment of a prompt."""
    texts = [one for segment in segments for one in segment if isinstance(one, str)]
    own = iter(await tokenizer.encode(texts))
    return [
        np.concatenate(
            [NONE, *(next(own) if isinstance(one, str) else np.array([one], np.int32) for one in segment)]
        )
        for segment in segments
    ]


async def _prompt(
    model: Model, query: str, instruction: str, length: int, pictures: Pictures
) -> PreparedQuestion:
    """Prepare the question of a model that reads a prompt: its ids before and after the piece that contains
    the document (see prompt.py)."""
    template = prompt.choose(model.recipe.template, instructed=bool(instruction))
    pieces = image_tokens.pieces(template, model, pictures) if pictures else None
    pieces = pieces or prompt.split(template, model.control_tokens)
    place = next(at for at, one in enumerate(pieces) if isinstance(one, str) and prompt.DOCUMENT in one)

    def fill(piece: str) -> str:
        return prompt.fill(piece, instruction=instruction, query=query, document="")

    head, _, tail = (fill(part) for part in str(pieces[place]).partition(prompt.DOCUMENT))
    texts = [fill(piece) for at, piece in enumerate(pieces) if isinstance(piece, str) and at != place]
    *encoded, of_query, of_head, of_tail = await model.tokenizer.encode([*texts, query, head, tail])
    own = iter(encoded)
    ids = [
        next(own) if isinstance(piece, str) else np.array(piece, np.int32, ndmin=1)
        for at, piece in enumerate(pieces)
        if at != place
    ]
    # A prompt that begins with text gets the token that the vocabulary adds at the start of a text.
    start = model.tokenizer.frame.start if isinstance(pieces[0], str) else NONE
    before, after = np.concatenate((start, *ids[:place])), np.concatenate((NONE, *ids[place:]))
    space = length - len(before) - len(after)
    question = Question(query, instruction, before, after, head=of_head, pictures=pictures)
    budget = space - len(of_head) - len(of_tail)
    return PreparedQuestion(question, head, tail, space, budget, _share(budget + len(of_query)))


async def _shortened(model: Model, query: str, limit: int) -> tuple[str, int | None]:
    """Truncate the query to `limit` tokens. Also returns its new length, or None if it was not longer."""
    read = truncate.beginning(query, limit)
    (ids,) = await model.tokenizer.encode([read])
    if len(ids) <= limit and len(read) < len(query):
        read = query
        (ids,) = await model.tokenizer.encode([read])
    if len(ids) <= limit:
        return query, None
    (ends,) = await model.tokenizer.ends([read])
    (found,) = await truncated_text.shortened(model.tokenizer, [(read, ends, ids, limit, True)])
    return found[0], len(found[1])


def _share(space: int) -> int:
    """The length to which a query that is too long is truncated: three quarters of the tokens of query and
    document, as in FlagReranker and mxbai-rerank."""
    return space * 3 // 4
