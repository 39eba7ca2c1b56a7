"""The client of one llama.cpp child: head, judge and cosine scoring over its HTTP, on a UNIX socket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rerankd.backends.base import Batch, Engine, EngineSpec, RawScores
from rerankd.backends.llama.launch import CALLS
from rerankd.domain import Method, Refusal
from rerankd.errors import EngineError, EngineUnavailable, InputTooLong
from rerankd.process.protocol import Wire
from rerankd.scoring import prompt
from rerankd.scoring.cache import QueryVectors

# A text that is tokenised together with a prefix or a template may take a token more than alone.
_SLACK = 2
# How llama.cpp says that a text is longer than its micro-batch, its context or a slot of it.
_TOO_LONG = ("too large to process", "larger than the max context size", "exceeds the available context size")
Vector = NDArray[np.float32]


class LlamaClient(Wire):
    """One llama.cpp server's HTTP. Raises EngineError only.

    Calls that compute and calls that only tokenise wait for places of their own, since llama.cpp keeps one of
    its few HTTP threads for each.
    """

    def __init__(self, socket: Path) -> None:
        super().__init__(socket)
        self._computing = asyncio.Semaphore(CALLS)
        self._tokenising = asyncio.Semaphore(CALLS)
        self._answered = 0

    async def shows_work(self, within_s: float) -> bool:
        """Whether the server's own loop makes progress within `within_s`.

        `/slots` is answered by the loop that computes, between two of its steps, and `/health` is not.
        """
        answered = self._answered
        try:
            await self.get("/slots", within_s)
        except TimeoutError:
            return self._answered != answered
        except OSError:
            pass  # it is dying, which is seen elsewhere
        return True

    async def compute(self, path: str, body: dict[str, Any]) -> Any:
        """POST one call that runs the model."""
        async with self._computing:
            answer = await self.post(path, body)
        self._answered += 1
        return answer

    async def tokenize(self, text: str | Sequence[str | int], *, special: bool = False) -> list[int]:
        """The ids of `text` as plain text; with `special`, the tokens the vocabulary puts around it too. Of a
        sequence, strings are tokenised and ids stay as they are."""
        body = {"content": text, "add_special": special, "parse_special": False}
        async with self._tokenising:
            answer = await self.post("/tokenize", body)
        with _in_shape():
            return [*answer["tokens"]]

    async def tokenize_all(self, texts: Sequence[str], separator: int | None) -> list[list[int]]:
        """The ids of each text, in one call where `separator` is an id that plain text never becomes."""
        if separator is None:
            return await asyncio.gather(*map(self.tokenize, texts))
        split: list[list[int]] = [[]]
        for token in await self.tokenize([part for text in texts for part in (text, separator)]):
            if token == separator:
                split.append([])
            else:
                split[-1].append(token)
        return split[:-1]

    def _error(self, status: int, said: str) -> EngineError:
        if status == 503:
            return EngineUnavailable("The engine is still loading its model; try again in a moment.")
        if any(sign in said for sign in _TOO_LONG):
            return InputTooLong(f"The engine refused the request: {said}")
        return super()._error(status, said)


class LlamaEngine(LlamaClient, Engine):
    """What the three ways share."""

    fixed_tokens = 0
    about = ""

    def __init__(self, spec: EngineSpec, socket: Path) -> None:
        super().__init__(socket)
        self.scoring = spec.scoring
        self._control_tokens = spec.control_tokens
        # An id that plain text never becomes.
        self._separator = next(iter(spec.control_tokens.values()), None)
        self._control = prompt.control_pattern(spec.control_tokens)

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in await self.tokenize_all(texts, self._separator)]

    async def score(self, batch: Batch) -> RawScores:
        return RawScores.joined([await self._score(*asked) for asked in batch.inputs])

    async def _score(self, query: str, texts: Sequence[str], instruction: str) -> RawScores:
        raise NotImplementedError


class HeadEngine(LlamaEngine):
    """Cross-encoders with a rank head: raw is the head's logit."""

    async def prepare(self) -> None:
        # What stands around a pair differs by vocabulary: <s> q </s></s> d </s>, [CLS] q [SEP] d [SEP].
        (one,) = await self.count_tokens(["x"])
        self.fixed_tokens = (await self._score("x", ["x"], "")).tokens - 2 * one

    async def _score(self, query: str, texts: Sequence[str], instruction: str) -> RawScores:
        # Only the keys it knows: a key like `texts` would change the answer's shape.
        answer = await self.compute("/v1/rerank", {"query": query, "documents": list(texts)})
        with _in_shape():
            found = {row["index"]: row["relevance_score"] for row in answer["results"]}
            return RawScores(_in_order(found, len(texts)), answer["usage"]["prompt_tokens"])


class CosineEngine(LlamaEngine):
    """Embedding models: raw is the cosine of the query's and the text's embeddings."""

    async def prepare(self) -> None:
        self._queries = QueryVectors[Vector]()
        prefixes = (self.scoring.query_prefix, self.scoring.document_prefix)
        around = len(await self.tokenize("x", special=True)) - len(await self.tokenize("x"))
        self.fixed_tokens = around + max(await self.count_tokens(prefixes)) + _SLACK

    async def _score(self, query: str, texts: Sequence[str], instruction: str) -> RawScores:
        inputs = [self.scoring.document_prefix + text for text in texts]
        known = self._queries.get(query)
        if known is None:
            inputs.insert(0, self.scoring.query_prefix + query)
        vectors, tokens = await self._embed(inputs)
        if known is None:
            known, vectors = vectors[0], vectors[1:]
            self._queries.put(query, known)
        return RawScores((vectors @ known).tolist(), tokens)

    async def _embed(self, texts: list[str]) -> tuple[Vector, int]:
        inputs = await asyncio.gather(*map(self._as_plain_text, texts))
        answer = await self.compute("/v1/embeddings", {"input": inputs, "encoding_format": "base64"})
        with _in_shape():
            rows = answer["data"]
            if len(rows) != len(texts):
                raise EngineError(f"The engine answered {len(rows)} embeddings for {len(texts)} texts.")
            rows = sorted(rows, key=lambda row: row["index"])
            data = b"".join(base64.b64decode(row["embedding"]) for row in rows)
            return np.frombuffer(data, np.float32).reshape(len(texts), -1), answer["usage"]["prompt_tokens"]

    async def _as_plain_text(self, text: str) -> str | list[int]:
        # /v1/embeddings reads control tokens out of a string. Where one is spelled, send ids instead.
        return await self.tokenize(text, special=True) if self._control.search(text) else text


class JudgeEngine(LlamaEngine):
    """Causal rerankers: raw is the log-odds of the two label tokens after the prompt (scoring/prompt.py)."""

    _pieces: list[prompt.Piece]
    _labels: tuple[int, int]

    async def prepare(self) -> None:
        """Tokenise the fixed parts of the template. Raises Unscorable where a label is no single token."""
        relevant, irrelevant = [await self._label(text) for text in self.scoring.labels]
        self._labels = (relevant, irrelevant)
        self._pieces = []
        for piece in prompt.split(self.scoring.template, self._control_tokens):
            if isinstance(piece, str) and not prompt.placeholders(piece) and self._pieces:
                self._pieces += await self.tokenize(piece)
            else:
                self._pieces.append(piece)
        self._is_plain = not any(isinstance(piece, int) for piece in self._pieces)
        empty = await self._prompt("", "", "")
        words = [part for part in empty if isinstance(part, str)]
        # One more for the token that /completion wants to have room for.
        self.fixed_tokens = len(empty) - len(words) + sum(await self.count_tokens(words)) + _SLACK + 1

    async def _score(self, query: str, texts: Sequence[str], instruction: str) -> RawScores:
        prompts = await asyncio.gather(*(self._prompt(query, text, instruction) for text in texts))
        answer = await self.compute("/completion", prompt.completion_body(prompts, self._labels))
        with _in_shape():
            answers = answer if isinstance(answer, list) else [answer]
            found = {row["index"]: prompt.log_odds(row, self._labels) for row in answers}
            tokens = sum(row["tokens_evaluated"] for row in answers)
            return RawScores(_in_order(found, len(texts)), tokens)

    async def _label(self, text: str) -> int:
        ids = await self.tokenize(text)
        if len(ids) != 1:
            reason = f"{text!r} is {len(ids)} tokens in this model's vocabulary, and a label must be one"
            raise Refusal(reason, "set labels to two single tokens").error("The labels can't be asked for")
        return ids[0]

    async def _prompt(self, query: str, document: str, instruction: str) -> list[prompt.Piece]:
        filled: list[prompt.Piece] = []
        for position, piece in enumerate(self._pieces):
            if isinstance(piece, int):
                filled.append(piece)
                continue
            text = prompt.fill(piece, instruction=instruction, query=query, document=document)
            # /completion reads control tokens out of a string, and puts the vocabulary's first token before a
            # string that comes first. Where a text spells a control token, send ids instead; also where the
            # template has none, for a prompt of strings alone is not taken.
            if self._is_plain or self._control.search(text):
                filled += await self.tokenize(text, special=position == 0)
            else:
                filled.append(text)
        return filled


KINDS: dict[Method, type[LlamaEngine]] = {
    "cross_encoder": HeadEngine,
    "embedding": CosineEngine,
    "causal_lm": JudgeEngine,
}


def connect(spec: EngineSpec, socket: Path) -> LlamaEngine:
    """The engine behind a llama-server's socket."""
    return KINDS[spec.scoring.method](spec, socket)


@contextlib.contextmanager
def _in_shape() -> Iterator[None]:
    """What reading an answer raises where it is not what a llama-server sends is an EngineError."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise EngineError(
            f"The engine's answer can't be read ({error!r}); is it a llama-server of this time? See its log."
        ) from error


def _in_order(found: Mapping[int, float], count: int) -> list[float]:
    """The values of so many pairs by their places."""
    if found.keys() != set(range(count)):
        raise EngineError(f"The engine was asked about {count} pairs, and answered for {sorted(found)}.")
    return [float(found[at]) for at in range(count)]
