"""Read the documents of a request as blocks for a listwise model, one prompt for each block.

A document is truncated on its own, as in the reference implementation: its first tokens are turned into text
again, and the prompt is tokenized with that text. A block has up to `block_documents` documents, in the
request's order, as many as fit into max_length. Which documents share a block depends on the request alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rerankd.domain import Recipe
from rerankd.scoring.block_prompt import BlockPrompt, without_markers
from rerankd.scoring.engine_input import Ids, Input
from rerankd.scoring.inputs import Reader, Reading
from rerankd.scoring.question import BLOCK_MARGIN, PLAIN, PreparedQuestion, Truncation, encoded
from rerankd.scoring.tokenizer import Tokenizer


def reader(
    recipe: Recipe, tokenizer: Tokenizer, control_tokens: Mapping[str, int], *, reads_text: bool = False
) -> Reader:
    """The Reader of a model. With `reads_text`, its engine takes text instead of token ids."""
    kind = BlockReader if recipe.method == "listwise" else Reader
    return kind(recipe, tokenizer, control_tokens, reads_text=reads_text)


@dataclass(frozen=True, slots=True)
class BlockReader(Reader):
    """Turns a question and texts into the inputs of a listwise model. An input has the ids of the prompt from
    the end of the document before it up to the marker of its own."""

    async def read(
        self,
        prepared: PreparedQuestion,
        texts: Sequence[str],
        how: Truncation = PLAIN,
        documents: Sequence[int] = (),
    ) -> Reading:
        """See Reader.read. A document has one input: it is not read in chunks."""
        # As for an engine that reads text, so that a truncated text is known, too.
        alone = Reader(self.recipe, self.tokenizer, self.control_tokens, reads_text=True)
        own = [without_markers(text, self.recipe.markers) for text in texts]
        reading = await alone.read(prepared, own, replace(how, chunks=1), documents)
        question = prepared.question
        prompt = BlockPrompt(
            self.recipe.template, self.control_tokens, query=question.query, instruction=question.instruction
        )
        first, each = map(len, await encoded(self.tokenizer, prompt.segments(["", ""]).documents))
        shared = len(question.before) + len(question.after)
        lengths = [len(one.ids) for one in reading.inputs]
        found: list[Input] = []
        made: list[range] = []
        waiting = self._blocks(lengths, self.recipe.max_length - shared - first + each, each)
        while waiting:
            block = waiting.pop(0)
            segments = prompt.segments([reading.inputs[at].text for at in block])
            ids = await encoded(self.tokenizer, segments.documents)
            is_too_long = shared + sum(map(len, ids)) > self.recipe.max_length
            if is_too_long and len(block) > 1:  # no length but that of the whole prompt is certain
                middle = (block.start + block.stop) // 2
                waiting[:0] = [range(block.start, middle), range(middle, block.stop)]
                continue
            made.append(block)
            found += _inputs(prepared, [texts[at] for at in block], ids, shared)
        return replace(reading, inputs=found, blocks=made)

    def _blocks(self, lengths: Sequence[int], most: int, each: int) -> list[range]:
        """Divide documents of these lengths, in order. `most` tokens may be used for the documents of a
        block, each with `each` tokens around it."""
        found: list[range] = []
        start = used = 0
        for at, length in enumerate(lengths):
            needed = length + each + BLOCK_MARGIN
            is_full = used + needed > most or at - start == self.recipe.block_documents
            if at > start and is_full:
                found.append(range(start, at))
                start, used = at, 0
            used += needed
        return [*found, range(start, len(lengths))] if lengths else []


def _inputs(prepared: PreparedQuestion, texts: Sequence[str], ids: Sequence[Ids], shared: int) -> list[Input]:
    """The inputs of a block; the first one counts the tokens that they share."""
    return [
        Input(prepared.question, text, own, len(own) + (0 if number else shared))
        for number, (text, own) in enumerate(zip(texts, ids, strict=True))
    ]
