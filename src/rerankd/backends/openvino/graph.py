"""Build the OpenVINO graph of a model's forward pass from its weights.

Inputs: `embeddings` f32 [texts, tokens, width], before the embedding norm, and `mask` f32 [texts, 1, 1,
tokens], 0 for a token and a large negative number for padding. Output: f32 [texts, 1], the rank head's logit,
[texts, width], the pooled embedding, or [texts, tokens, width], a vector for each token (neither normalised).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rerankd.backends.openvino.architecture import embedding_width
from rerankd.backends.openvino.architectures import ARCHITECTURES
from rerankd.backends.openvino.runtime import op, ov
from rerankd.domain import Pooling
from rerankd.formats.weights import Floats, Table, Weights


@dataclass(frozen=True, slots=True)
class Embedder:
    """The embedding lookup, which runs before the graph and reads only the table rows of the tokens in a
    call."""

    tokens: Table
    positions: Floats | None
    """[context length, width]; includes the first token type. [1, width] if the model has token types but no
    table of positions, None if it has neither."""
    second: Floats | None = None
    """[width]: the second token type minus the first. None if the model has only one."""

    def __call__(self, ids: np.ndarray[Any, Any], seconds: np.ndarray[Any, Any]) -> Floats:
        """Return the embeddings [texts, tokens, width] of ids [texts, tokens]. `seconds` holds the position
        in each text where the second token type begins."""
        found = self.tokens[ids.ravel()].reshape(*ids.shape, -1)
        if self.positions is not None:
            found = found + self.positions[: ids.shape[1]]
        if self.second is not None:
            found[np.arange(ids.shape[1]) >= seconds[:, None]] += self.second
        return found


def embedder(weights: Weights) -> Embedder:
    """Return the embedding tables. For a GGUF file all tokens get the first token type, as in llama.cpp; that
    is correct for the supported models."""
    width = embedding_width(weights)
    tokens = weights.table("token_embd.weight", weights.rows("token_embd.weight"), width)
    positions = None
    if ARCHITECTURES[weights.architecture].has_positions:
        positions = weights.array("position_embd.weight", (weights.key("context_length"), width))
    # XLM-R has token types. DistilBERT, which GGUF files name BERT too and whose vocabulary is WordPiece, has
    # none.
    needed = positions is not None and weights.values.get("tokenizer.ggml.model", "bert") != "bert"
    if not needed and not weights.has("token_types.weight"):
        return Embedder(tokens, positions)
    count = weights.rows("token_types.weight")
    types = weights.array("token_types.weight", (count, width))
    same = types[:1] if positions is None else positions + types[0]
    return Embedder(tokens, same, types[1] - types[0] if count > 1 else None)


def build(weights: Weights, pooling: Pooling, *, compressed: bool = False) -> ov.Model:
    """Build the graph of a model file. `pooling` is `rank` for the rank head, else how an embedding is
    pooled.

    `compressed` stores matrices as 8-bit integers with a scale per 32 weights, like Q8_0: 0.8 GB instead of
    2.5 GB for BERT-large's shape, at about the same speed with AVX2. Raw scores change by some hundredths.

    Raises ModelFileError if a tensor or a key is missing.
    """
    width = embedding_width(weights)
    embeddings = op.parameter([-1, -1, width], np.float32, name="embeddings")
    mask = op.parameter([-1, 1, 1, -1], np.float32, name="mask")
    model = ARCHITECTURES[weights.architecture](weights, pooling, compressed=compressed)
    result = model.pooled(model.body(embeddings, mask), mask)
    result.output(0).get_tensor().set_names({"result"})
    return ov.Model([result], [embeddings, mask], weights.architecture)
