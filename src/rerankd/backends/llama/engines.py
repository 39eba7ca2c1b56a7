"""The llama.cpp engine for each scoring method: cross_encoder, embedding and causal_lm.

Embedding models and causal LMs receive token ids. For a cross-encoder llama.cpp tokenizes the texts itself,
because `/v1/rerank` accepts only texts.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rerankd.backends.base import Batch, Engine, EngineSpec, RawScores
from rerankd.backends.llama import alignment, completion
from rerankd.backends.llama.client import LlamaClient, in_shape
from rerankd.domain import Method, Refusal
from rerankd.errors import EngineError
from rerankd.ids import Frame, Ids
from rerankd.scoring.cache import QueryVectors

Vector = NDArray[np.float32]


class LlamaEngine(LlamaClient, Engine):
    """The base class: llama.cpp's own tokenizer, for vocabularies that the service can't read."""

    about = ""

    def __init__(self, spec: EngineSpec, socket: Path) -> None:
        super().__init__(socket)
        self.recipe = spec.recipe
        self.frame = Frame()
        # An id that plain text never produces.
        self._separator = next(iter(spec.control_tokens.values()), None)

    async def prepare(self) -> None:
        """Determine the special tokens that the vocabulary adds around a text."""
        text = "x"
        own, whole = await self.tokenize(text), await self.tokenize(text, special=True)
        start = next((at for at in range(len(whole)) if whole[at : at + len(own)] == own), 0)
        before, after = whole[:start], whole[start + len(own) :]
        self.frame = Frame(start=np.array(before, np.int32), alone=np.array(after, np.int32))

    async def encode(self, texts: Sequence[str]) -> list[Ids]:
        return [np.array(ids, np.int32) for ids in await self.tokenize_all(texts, self._separator)]

    async def ends(self, texts: Sequence[str]) -> list[Ids]:
        pieces = await self.pieces_of(texts, self._separator)
        return await asyncio.to_thread(lambda: list(map(alignment.ends, texts, pieces)))


class CrossEncoderEngine(LlamaEngine):
    """Cross-encoders: the raw score is the logit of the rank head. A batch belongs to one query."""

    async def prepare(self) -> None:
        """Determine how many special tokens llama.cpp adds to a pair, as in <s> q </s></s> d </s> or
        [CLS] q [SEP] d [SEP]. Only their number matters, because llama.cpp adds them itself."""
        text = "x"
        (own,) = await self.encode([text])
        answer = await self._rerank(text, [text])
        with in_shape():
            around = answer["usage"]["prompt_tokens"] - 2 * len(own)
            self.frame = Frame(start=np.zeros(around, np.int32))

    async def score(self, batch: Batch) -> RawScores:
        inputs = batch.inputs
        answer = await self._rerank(inputs[0].question.query, [one.text for one in inputs])
        with in_shape():
            found = {row["index"]: row["relevance_score"] for row in answer["results"]}
            return RawScores(_in_order(found, len(inputs)))

    async def _rerank(self, query: str, documents: list[str]) -> Any:
        # Send no other keys: `texts`, for one, would change the form of the response.
        return await self.compute("/v1/rerank", {"query": query, "documents": documents})


class EmbeddingEngine(LlamaEngine):
    """Embedding models: the raw score is the cosine similarity of the query's and the document's vectors."""

    def __init__(self, spec: EngineSpec, socket: Path) -> None:
        super().__init__(spec, socket)
        self._queries = QueryVectors[Vector]()

    async def score(self, batch: Batch) -> RawScores:
        keys = [one.question.ids.tobytes() for one in batch.inputs]
        asked = {key: one.question.ids for key, one in zip(keys, batch.inputs, strict=True)}
        known = {key: vector for key in asked if (vector := self._queries.get(key)) is not None}
        new = [key for key in asked if key not in known]
        vectors = await self._embed([*(asked[key] for key in new), *(one.whole for one in batch.inputs)])
        for key, vector in zip(new, vectors, strict=False):
            known[key] = vector.copy()  # a view would keep the whole batch in memory
            self._queries.put(key, known[key])
        # One sum per row, because the result of a matrix product depends on the number of rows.
        values = (vectors[len(new) :] * np.stack([known[key] for key in keys])).sum(axis=1)
        return RawScores(values.tolist())

    async def embed(self, batch: Batch) -> Vector:
        return await self._embed([one.whole for one in batch.inputs], embd_normalize=-1)

    async def _embed(self, inputs: Sequence[Ids], **how: int) -> Vector:
        body = {"input": [ids.tolist() for ids in inputs], "encoding_format": "base64", **how}
        answer = await self.compute("/v1/embeddings", body)
        with in_shape():
            rows = {row["index"]: row["embedding"] for row in answer["data"]}
            data = b"".join(base64.b64decode(rows[at]) for at in range(len(inputs)))
            return np.frombuffer(data, np.float32).reshape(len(inputs), -1)


class CausalLMEngine(LlamaEngine):
    """Causal LMs: the raw score is the log-odds of the two labels after the prompt (see completion.py).

    If there is a single label, `zero_token` takes the place of the second one: its logit is 0, so the
    log-odds are the logit of the label (see zero_row.py)."""

    _labels: tuple[int, int]

    def __init__(self, spec: EngineSpec, socket: Path, zero_token: int | None = None) -> None:
        super().__init__(spec, socket)
        self._zero_token = zero_token

    async def prepare(self) -> None:
        """Look up the token ids of the labels. Raises Unscorable if a label is not a single token."""
        await super().prepare()
        relevant, *others = [await self._label(text) for text in self.recipe.labels]
        irrelevant = others[0] if others else self._zero_token
        assert irrelevant is not None, "the offer for a single label names a token whose logit is 0"
        self._labels = (relevant, irrelevant)

    async def score(self, batch: Batch) -> RawScores:
        prompts = [one.whole.tolist() for one in batch.inputs]
        answer = await self.compute("/completion", completion.body(prompts, self._labels))
        with in_shape():
            rows = completion.rows(answer)
            found = {row["index"]: completion.log_odds(row, self._labels) for row in rows}
            return RawScores(_in_order(found, len(prompts)))

    async def _label(self, text: str) -> int:
        ids = await self.tokenize(text)
        if len(ids) != 1:
            reason = (
                f"{text!r} is {len(ids)} tokens in this model's vocabulary, but a label must be one token"
            )
            raise Refusal(reason, "set labels to two single tokens").error("The labels can't be used")
        return ids[0]


KINDS: dict[Method, type[LlamaEngine]] = {
    "cross_encoder": CrossEncoderEngine,
    "embedding": EmbeddingEngine,
    "causal_lm": CausalLMEngine,
}


def connect(spec: EngineSpec, socket: Path, zero_token: int | None = None) -> LlamaEngine:
    """Return the client for a llama-server's socket. `zero_token`: see CausalLMEngine."""
    if spec.recipe.method == "causal_lm":
        return CausalLMEngine(spec, socket, zero_token)
    return KINDS[spec.recipe.method](spec, socket)


def _in_order(found: Mapping[int, float], count: int) -> list[float]:
    """Return the scores of `count` inputs in order. Raises EngineError if the indexes don't match."""
    if found.keys() != set(range(count)):
        raise EngineError(f"The engine received {count} inputs but returned scores for {sorted(found)}.")
    return [float(found[at]) for at in range(count)]
