"""A question and texts -> the inputs that a model reads: token ids, truncated to what the model takes.

Texts are tokenized once; a truncated text is the first of its ids, which is what the reference
implementations read of it. Where the tokens of a text end in it (see sequences.Tokenizer.ends) is asked only
for texts that are too long, and only where it matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rerankd.domain import Recipe, RerankRequest
from rerankd.errors import TooLong
from rerankd.scoring import plan, prompt, truncate
from rerankd.scoring.sequences import NONE, Ids, Input, Question
from rerankd.scoring.tokenizer import Tokenizer

# The question leaves a document at least so many tokens, or it is too long.
_LEAST_ROOM = 8


@dataclass(frozen=True, slots=True)
class Truncation:
    """What a request says of texts that are too long; 0: nothing."""

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
        """That of a request; `query` and `at` are what is set for the model."""
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
        """What a document's value depends on, in words (see cache.py)."""
        said = (
            self.max_tokens_per_doc,
            self.max_tokens_per_pair,
            self.chunks,
            self.overlap,
            self.at_sentence,
        )
        return "" if said == _PLAIN_DOCUMENTS else repr(said)


PLAIN = Truncation()
_PLAIN_DOCUMENTS = (0, 0, 1, 0, False)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, and how a document is read beside it: `head` and `tail` are put around its text before that
    is tokenized, and `space` is how many ids the three may have; `room` is what that leaves a document.
    `query_room` is how many tokens a query is truncated to that leaves too little, `query_tokens` how many
    this one was truncated to, None where it was not."""

    question: Question
    head: str
    tail: str
    space: int
    room: int
    query_room: int
    query_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """The inputs of texts; `parts` holds, for each text, which of them it is made of. `cut` are the texts of
    which something is left out, `overlap` is how many tokens chunks share where more were asked for."""

    inputs: Sequence[Input]
    parts: Sequence[range]
    cut: frozenset[int] = frozenset()
    overlap: int | None = None

    @property
    def tokens(self) -> list[int]:
        """What is read of each text."""
        return [sum(self.inputs[at].tokens for at in part) for part in self.parts]


@dataclass(frozen=True, slots=True)
class Reader:
    """How one model reads questions and texts. `reads_text`: its engine takes no ids."""

    recipe: Recipe
    tokenizer: Tokenizer
    control_tokens: Mapping[str, int] = field(default_factory=dict)
    reads_text: bool = False

    @property
    def takes_instruction(self) -> bool:
        return self.recipe.method == "causal_lm" and prompt.INSTRUCTION in self.recipe.template

    async def ask(self, query: str, instruction: str | None = None, how: Truncation = PLAIN) -> Asked:
        """The question of a request. Raises TooLong where the query leaves a document no room."""
        query = plan.clean(query, nfc=self.recipe.nfc)
        wanted = (instruction or self.recipe.instruction) if self.takes_instruction else ""
        instruction = plan.clean(wanted, nfc=self.recipe.nfc)
        limit, query_tokens = how.max_tokens_per_query, None
        if limit:
            query, query_tokens = await self._shortened(query, limit)
        asked = await self._asked(query, instruction, how)
        if asked.room < _LEAST_ROOM and how.query:
            query, query_tokens = await self._shortened(query, max(asked.query_room, 1))
            asked = await self._asked(query, instruction, how)
        if query_tokens is not None and plan.is_blank(query):
            raise TooLong(f"max_tokens_per_query = {limit} leaves nothing of the query. Raise it.")
        if asked.room < _LEAST_ROOM:
            used = sum(map(len, await self.tokenizer.encode([query, instruction])))
            raise TooLong(
                f"The query has {used} tokens (with the instruction, if any), too many for the "
                f"{self._length(how)} that this model takes. Shorten it, or send truncate_query: true."
            )
        return replace(asked, query_tokens=query_tokens)

    async def read(
        self, asked: Asked, texts: Sequence[str], how: Truncation = PLAIN, documents: Sequence[int] = ()
    ) -> Reading:
        """The inputs of texts that are clean and not blank. Raises TooLong for one that must not be
        truncated; `documents` are the numbers to name them by."""
        whole = [f"{asked.head}{text}{asked.tail}" for text in texts] if asked.head or asked.tail else texts
        found = await self.tokenizer.encode(whole)
        around = len(asked.question.before) + len(asked.question.after)
        bound = min(asked.space, asked.space - asked.room + (how.max_tokens_per_doc or asked.room))
        # Joined texts may have a token less than they have apart.
        sure = bound if not (asked.head or asked.tail) or bound == asked.space else bound - 2
        inputs: list[Input] = []
        parts: list[range] = []
        long = [at for at, ids in enumerate(found) if len(ids) > sure]
        shortened = await self._truncated(asked, long, texts, whole, found, how) if long else {}
        cut = set()
        for at, (text, ids) in enumerate(zip(texts, found, strict=True)):
            start = len(inputs)
            if at in shortened:
                pieces, is_cut = shortened[at]
                if is_cut:
                    cut.add(at)
                for number, (part, own) in enumerate(pieces):
                    inputs.append(Input(asked.question, part, own, max(around + len(own), 1), number))
            else:
                inputs.append(Input(asked.question, text, ids, max(around + len(ids), 1)))
            parts.append(range(start, len(inputs)))
        if cut and not how.is_allowed:
            first = min(cut)
            named = documents[first] if documents else first
            has = len(found[first]) - (asked.space - asked.room)
            room = min(asked.room, how.max_tokens_per_doc or asked.room)
            raise TooLong(
                f"Document {named} has {has} tokens and there is room for {room} beside the query. "
                "Shorten it, or leave out truncate: false to have it truncated."
            )
        most = truncate.most_overlap(asked.room)
        is_chunked = len(inputs) > len(texts)
        return Reading(inputs, parts, frozenset(cut), most if is_chunked and how.overlap > most else None)

    async def plain(self, query: str, texts: Sequence[str], instruction: str | None = None) -> list[Input]:
        """The inputs of texts as they are, one each."""
        reading = await self.read(await self.ask(query, instruction), texts)
        return list(reading.inputs)

    def _length(self, how: Truncation) -> int:
        """Tokens that an input may have."""
        return min(self.recipe.max_length, how.max_tokens_per_pair or self.recipe.max_length)

    async def _asked(self, query: str, instruction: str, how: Truncation) -> Asked:
        frame, length = self.tokenizer.frame, self._length(how)
        if self.recipe.method == "embedding":
            texts = [self.recipe.query_prefix + query, self.recipe.query_prefix, self.recipe.document_prefix]
            own, of_query, of_document = await self.tokenizer.encode(texts)
            ids = np.concatenate((frame.start, own, frame.alone))
            space = length - len(frame.start) - len(frame.alone)
            # It is read apart from the document, and takes nothing of its room.
            room = space - len(of_document) if len(own) <= space else 0
            question = Question(query, "", frame.start, frame.alone, ids)
            return Asked(question, self.recipe.document_prefix, "", space, room, space - len(of_query) - 1)
        if self.recipe.method == "cross_encoder":
            (own,) = await self.tokenizer.encode([query])
            before = np.concatenate((frame.start, own, frame.between))
            second = None if frame.first_typed is None else len(frame.start) + len(own) + frame.first_typed
            space = length - len(before) - len(frame.end)
            question = Question(query, "", before, frame.end, NONE, second)
            return Asked(question, "", "", space, space, _share(space + len(own)))
        return await self._prompt(query, instruction, length)

    async def _prompt(self, query: str, instruction: str, length: int) -> Asked:
        """A causal model's question: its prompt up to the piece with the document, and after it (see
        prompt.py)."""
        pieces = prompt.split(self.recipe.template, self.control_tokens)
        place = next(at for at, one in enumerate(pieces) if isinstance(one, str) and prompt.DOCUMENT in one)

        def fill(piece: str) -> str:
            return prompt.fill(piece, instruction=instruction, query=query, document="")

        head, _, tail = (fill(part) for part in str(pieces[place]).partition(prompt.DOCUMENT))
        texts = [fill(piece) for at, piece in enumerate(pieces) if isinstance(piece, str) and at != place]
        *encoded, of_query, of_head, of_tail = await self.tokenizer.encode([*texts, query, head, tail])
        own = iter(encoded)
        ids = [
            next(own) if isinstance(piece, str) else np.array([piece], np.int32)
            for at, piece in enumerate(pieces)
            if at != place
        ]
        # What the vocabulary puts before a text stands before a prompt that begins with one.
        start = self.tokenizer.frame.start if isinstance(pieces[0], str) else NONE
        before, after = np.concatenate((start, *ids[:place])), np.concatenate((NONE, *ids[place:]))
        space = length - len(before) - len(after)
        question = Question(query, instruction, before, after)
        room = space - len(of_head) - len(of_tail)
        return Asked(question, head, tail, space, room, _share(room + len(of_query)))

    async def _shortened(self, query: str, limit: int) -> tuple[str, int | None]:
        """The query with up to `limit` tokens, and how many where it had more."""
        (ids,) = await self.tokenizer.encode([query])
        if len(ids) <= limit:
            return query, None
        (ends,) = await self.tokenizer.ends([query])
        (found,) = await self._beginnings([(query, ends, ids, limit, True)])
        return found[0], len(found[1])

    async def _truncated(
        self,
        asked: Asked,
        long: Sequence[int],
        texts: Sequence[str],
        whole: Sequence[str],
        found: Sequence[Ids],
        how: Truncation,
    ) -> dict[int, tuple[list[tuple[str, Ids]], bool]]:
        """For each text that may be too long: its parts with their ids, and whether something is left out."""
        done: dict[int, tuple[list[tuple[str, Ids]], bool]] = {}
        is_plain = not (asked.tail or how.chunks > 1 or how.at_sentence or self.reads_text)
        if is_plain and not (asked.head and how.max_tokens_per_doc):
            room = min(asked.space, asked.space - asked.room + (how.max_tokens_per_doc or asked.room))
            for at in long:
                if not texts[at][-1].isspace():
                    done[at] = ([(texts[at], found[at][:room])], True)
        rest = [at for at in long if at not in done]
        # Each part that an engine reads as text, with the tokens that it should have.
        to_read: list[tuple[int, str, Ids, Ids, int, bool]] = []
        for at, ends in zip(rest, await self.tokenizer.ends([whole[at] for at in rest]), strict=True):
            text, ids = texts[at], found[at]
            first = int(np.searchsorted(ends, len(asked.head), "right")) if asked.head else 0
            last = len(ids)
            if asked.tail:
                last = int(np.searchsorted(ends, len(asked.head) + len(text), "right"))
            own = np.maximum(ends[first:last] - len(asked.head), 0)
            room = max(asked.space - first - (len(ids) - last), 1)
            limit = how.max_tokens_per_doc or len(own)
            spans = truncate.chunks(
                text, own, room, how.chunks, how.overlap, limit=limit, at_sentence=how.at_sentence
            )
            is_cut = truncate.is_something_left(text, own, spans[-1].stop)
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
            done[at] = (pieces, is_cut)
        for (at, *_), piece in zip(
            to_read, await self._beginnings([part[1:] for part in to_read]), strict=True
        ):
            done[at][0].append(piece)
        return done

    async def _beginnings(self, parts: Sequence[tuple[str, Ids, Ids, int, bool]]) -> list[tuple[str, Ids]]:
        """For each (text, ends of its tokens, ids, room, is_exact): the longest beginning that, tokenized by
        itself, has no more than `room` tokens, and with `is_exact` only the first of `ids`; and its ids."""
        options = [iter(truncate.beginnings(text, ends, room)) for text, ends, _, room, _ in parts]
        found: dict[int, tuple[str, Ids]] = {}
        while left := [at for at in range(len(parts)) if at not in found]:
            tried = [parts[at][0][: next(options[at], 0)].rstrip() for at in left]
            for at, text, got in zip(left, tried, await self.tokenizer.encode(tried), strict=True):
                _, _, ids, room, is_exact = parts[at]
                if not text or (len(got) <= room and (not is_exact or np.array_equal(got, ids[: len(got)]))):
                    found[at] = (text, got)
        return [found[at] for at in range(len(parts))]


def _share(space: int) -> int:
    """What a query that is too long is truncated to: three quarters of what it has with the document, as
    FlagReranker and mxbai-rerank have it."""
    return space * 3 // 4
