"""A model's weights as an OpenVINO graph of its forward pass.

Inputs: `embeddings` f32 [texts, tokens, width], what the first layer's normalisation reads, and `mask` f32
[texts, 1, 1, tokens], 0 for a token and a large negative number for padding. Output: f32 [texts, 1], the rank
head's logit, or [texts, width], the pooled embedding (not normalised).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rerankd.backends.openvino.architectures import ARCHITECTURES
from rerankd.backends.openvino.runtime import op, ov
from rerankd.domain import Pooling
from rerankd.formats.weights import Floats, Table, Weights


@dataclass(frozen=True, slots=True)
class Embedder:
    """What stands before the graph: rows of tables, looked up for the tokens of a call only."""

    tokens: Table
    positions: Floats | None
    """[window, width]; the first token type is added to it. None where the model has rotary positions."""
    second: Floats | None = None
    """[width]: what the second token type has more than the first. None where there is one only."""

    def __call__(self, ids: np.ndarray[Any, Any], seconds: np.ndarray[Any, Any]) -> Floats:
        """Ids [texts, tokens], and where the second type begins in each -> [texts, tokens, width]."""
        found = self.tokens[ids.ravel()].reshape(*ids.shape, -1)
        if self.positions is not None:
            found = found + self.positions[: ids.shape[1]]
        if self.second is not None:
            found[np.arange(ids.shape[1]) >= seconds[:, None]] += self.second
        return found


def embedder(weights: Weights) -> Embedder:
    """The embedding tables. Of a GGUF file all tokens have the first token type, as llama.cpp has it; that is
    right for what is served from one."""
    width = weights.key("embedding_length")
    tokens = weights.table("token_embd.weight", weights.rows("token_embd.weight"), width)
    if weights.architecture == "modern-bert":
        return Embedder(tokens, None)
    positions = weights.array("position_embd.weight", (weights.key("context_length"), width))
    # DistilBERT has none, and a vocabulary of word pieces.
    if weights.has("token_types.weight") or weights.values.get("tokenizer.ggml.model") != "bert":
        count = weights.rows("token_types.weight")
        types = weights.array("token_types.weight", (count, width))
        return Embedder(tokens, positions + types[0], types[1] - types[0] if count > 1 else None)
    return Embedder(tokens, positions)


def build(weights: Weights, pooling: Pooling, *, compressed: bool = False) -> ov.Model:
    """The graph of a model file; `pooling` is `rank` for its head, else how an embedding is pooled.

    `compressed` keeps matrices in 8 bits and a scale for each 32 of them, as Q8_0 does: 0.8 GB instead of 2.5
    for BERT-large's shape, at about the same speed with AVX2, and raw scores that move by some hundredths.

    Raises ModelFileError where a tensor or a key is missing.
    """
    width = weights.key("embedding_length")
    embeddings = op.parameter([-1, -1, width], np.float32, name="embeddings")
    mask = op.parameter([-1, 1, 1, -1], np.float32, name="mask")
    model = ARCHITECTURES[weights.architecture](weights, pooling, compressed=compressed)
    result = model.pooled(model.body(embeddings, mask), mask)
    result.output(0).get_tensor().set_names({"result"})
    return ov.Model([result], [embeddings, mask], weights.architecture)
