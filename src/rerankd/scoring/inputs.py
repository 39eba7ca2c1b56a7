"""Tokenize and truncate texts: a question and documents become the inputs of a model.

Each text is tokenized once. A truncated text is its first token ids, as in the reference implementations. The
end positions of tokens (see tokenizer.Tokenizer.ends) are computed only for texts that are too long, and only
where they are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rerankd.content import Content, Image
from rerankd.domain import Recipe
from rerankd.errors import TooLong
from rerankd.ids import Ids
from rerankd.scoring import question, truncate, truncated_text
from rerankd.scoring.engine_input import Input
from rerankd.scoring.question import PLAIN, PreparedQuestion, Truncation
from rerankd.scoring.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Reading:
    """The inputs of a list of texts. `parts` holds the range of input indexes of each text. `truncated` holds
    the indexes of texts that were not read to their end. `overlap` is the number of tokens that chunks share,
    if that is less than requested. `blocks` holds the range of input indexes of each block that a listwise
    model reads at once."""

    inputs: Sequence[Input]
    parts: Sequence[range]
    truncated: frozenset[int] = frozenset()
    overlap: int | None = None
    blocks: Sequence[range] = ()


@dataclass(frozen=True, slots=True)
class Reader:
    """Turns questions and texts into the inputs of one model. With `reads_text`, its engine takes text
    instead of token ids."""

    recipe: Recipe
    tokenizer: Tokenizer
    control_tokens: Mapping[str, int] = field(default_factory=dict)
    reads_text: bool = False

    async def prepare(
        self,
        query: Content,
        instruction: str | None = None,
        how: Truncation = PLAIN,
        shown: tuple[Image, ...] = (),
    ) -> PreparedQuestion:
        """See question.prepare."""
        return await question.prepare(self, query, instruction, how, shown)

    async def read(
        self,
        prepared: PreparedQuestion,
        texts: Sequence[str],
        how: Truncation = PLAIN,
        documents: Sequence[int] = (),
    ) -> Reading:
        """The inputs of texts that are clean and not blank. Raises TooLong if a text is too long and the
        request forbids truncation; `documents` are the document indexes for that message."""
        shared = len(prepared.question.before) + len(prepared.question.after)
        bound = prepared.ids_limit - prepared.document_budget + prepared.budget_for(how)
        begun, found = await self._encoded(prepared, texts, bound * how.chunks)
        # Texts that are tokenized together may have one token less than the same texts tokenized separately.
        sure = bound if not (prepared.prefix or prepared.suffix) or bound == prepared.ids_limit else bound - 2
        long = [at for at, ids in enumerate(found) if len(ids) > sure]
        shortened = await self._truncated(prepared, long, texts, begun, found, how) if long else {}
        inputs: list[Input] = []
        parts: list[range] = []
        for at, (text, ids) in enumerate(zip(texts, found, strict=True)):
            start = len(inputs)
            pieces, _ = shortened.get(at, ([(text, ids)], False))
            for number, (part, own) in enumerate(pieces):
                inputs.append(Input(prepared.question, part, own, max(shared + len(own), 1), number))
            parts.append(range(start, len(inputs)))
        truncated = frozenset(at for at, (_, is_truncated) in shortened.items() if is_truncated)
        if truncated and not how.is_allowed:
            first = min(truncated)
            (ids,) = await self.tokenizer.encode([prepared.around(texts[first])])
            what, leaves = ("Document", "query leaves")
            if prepared.question.embeds:
                what, leaves = ("Text", "model reads")
            raise TooLong(
                f"{what} {documents[first] if documents else first} has "
                f"{len(ids) - (prepared.ids_limit - prepared.document_budget)} tokens, but the {leaves} "
                f"{prepared.budget_for(how)}. Shorten the {what.lower()}, or omit truncate: false to have it "
                "truncated."
            )
        most = truncate.most_overlap(prepared.document_budget)
        is_chunked = len(inputs) > len(texts)
        return Reading(inputs, parts, truncated, most if is_chunked and how.overlap > most else None)

    async def plain(
        self, query: Content, texts: Sequence[str], instruction: str | None = None
    ) -> list[Input]:
        """The inputs of texts with default options, one input for each text."""
        reading = await self.read(await self.prepare(query, instruction), texts)
        return list(reading.inputs)

    async def _encoded(
        self, prepared: PreparedQuestion, texts: Sequence[str], tokens: int
    ) -> tuple[list[str], list[Ids]]:
        """Tokenize the start of each text, long enough to have more than `tokens` tokens, or all of it.
        Returns the starts, and their ids together with the prefix and suffix."""
        begun = [truncate.beginning(text, tokens) for text in texts]
        found = await self.tokenizer.encode([prepared.around(text) for text in begun])
        expected = tokens
        while short := [
            at for at, text in enumerate(begun) if len(text) < len(texts[at]) and len(found[at]) <= tokens
        ]:
            expected *= 8
            for at in short:
                begun[at] = truncate.beginning(texts[at], expected)
            more = await self.tokenizer.encode([prepared.around(begun[at]) for at in short])
            for at, ids in zip(short, more, strict=True):
                found[at] = ids
        return begun, found

    async def _truncated(
        self,
        prepared: PreparedQuestion,
        long: Sequence[int],
        texts: Sequence[str],
        begun: Sequence[str],
        found: Sequence[Ids],
        how: Truncation,
    ) -> dict[int, tuple[list[tuple[str, Ids]], bool]]:
        """For each text that may be too long: its parts with their ids, and whether text was left out."""
        done: dict[int, tuple[list[tuple[str, Ids]], bool]] = {}
        is_plain = not (prepared.suffix or how.chunks > 1 or how.at_sentence or self.reads_text)
        if is_plain and not (prepared.prefix and how.max_tokens_per_doc):
            budget = prepared.ids_limit - prepared.document_budget + prepared.budget_for(how)
            for at in long:
                if not begun[at][-1].isspace():
                    done[at] = ([(texts[at], found[at][:budget])], True)
        rest = [at for at in long if at not in done]
        # Each part that an engine reads as text, with the token ids it must have.
        to_read: list[tuple[int, str, Ids, Ids, int, bool]] = []
        for at, ends in zip(
            rest, await self.tokenizer.ends([prepared.around(begun[at]) for at in rest]), strict=True
        ):
            text, ids = texts[at], found[at]
            first = int(np.searchsorted(ends, len(prepared.prefix), "right")) if prepared.prefix else 0
            last = len(ids)
            if prepared.suffix:
                last = int(np.searchsorted(ends, len(prepared.prefix) + len(begun[at]), "right"))
            own = np.maximum(ends[first:last] - len(prepared.prefix), 0)
            budget = max(prepared.ids_limit - first - (len(ids) - last), 1)
            limit = how.max_tokens_per_doc or len(own)
            spans = truncate.chunks(
                text, own, budget, how.chunks, how.overlap, limit=limit, at_sentence=how.at_sentence
            )
            is_truncated = truncate.is_something_left(text, own, spans[-1].stop)
            pieces = []
            for start, stop in spans:
                if self.reads_text:
                    place = int(own[start - 1]) if start else 0
                    part = (text[place:], own[start:stop] - place, ids[start:stop], stop - start, not start)
                    to_read.append((at, *part))
                else:
                    pieces.append(
                        (text, np.concatenate((ids[:first], ids[first + start : first + stop], ids[last:])))
                    )
            done[at] = (pieces, is_truncated)
        for (at, *_), piece in zip(
            to_read,
            await truncated_text.shortened(self.tokenizer, [part[1:] for part in to_read]),
            strict=True,
        ):
            done[at][0].append(piece)
        return done
