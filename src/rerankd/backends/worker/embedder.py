"""The embeddings of an encoder: tokens, positions and token types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rerankd.formats.weights import Floats, Table, Weights


def embedding_width(weights: Weights) -> int:
    """The width of the embedding tables. It is the model's width, except for ELECTRA's small models."""
    width: int = weights.key("embedding_length")
    narrow: int = weights.key("token_embedding_length", width)
    return narrow


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


def embedder(weights: Weights, *, has_positions: bool) -> Embedder:
    """Return the embedding tables; `has_positions`: the architecture has a table of positions. For a GGUF
    file all tokens get the first token type, as in llama.cpp; that is correct for the supported models."""
    width = embedding_width(weights)
    tokens = weights.table("token_embd.weight", weights.rows("token_embd.weight"), width)
    positions = None
    if has_positions:
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
