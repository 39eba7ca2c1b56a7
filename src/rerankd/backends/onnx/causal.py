"""A loaded causal model: token ids behind a shared prefix in, one raw score per text out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rerankd.backends.onnx.decoder import Decoder
from rerankd.backends.onnx.graph import Array, Graph, Precision
from rerankd.backends.worker import positions
from rerankd.backends.worker.output_row import output_of
from rerankd.backends.worker.passes import Integers, Vectors
from rerankd.backends.worker.prefixes import Prefix, PrefixCache, Prefixing
from rerankd.formats.weights import Weights


class CausalModel(Prefixing):
    """The model of one file (see scorer.Network). `labels` are the ids of one or two tokens, () for its rank
    head. Raises ModelFileError if the file is damaged."""

    tokens_a_pass = 512

    def __init__(self, path: Path, labels: Sequence[int], *, threads: int, precision: Precision) -> None:
        self.about = ""
        weights = Weights(path)
        decoder = Decoder(weights)
        output = output_of(weights, labels)
        self._output = output._replace(rows=decoder.output_rows(output.rows))
        self.rows = weights.rows("token_embd.weight")
        self.prefixes = PrefixCache()
        self._embed = weights.table("token_embd.weight", self.rows, decoder.width)
        self._kept = (2 * decoder.layers, decoder.kv_heads, decoder.head_size)
        self._kinds = decoder.kinds
        self._run = decoder.session(Graph(precision, threads))

    def whole(self, count: int, longest: int) -> int:
        """Return how many of `count` texts go into one pass: all."""
        return count

    def empty(self, tokens: int) -> Prefix:
        return Prefix(np.zeros((self._kept[0], tokens, *self._kept[1:]), np.float32), 0)

    def extend(self, prefix: Prefix, ids: Integers) -> Prefix:
        *own, _ = self._compute(prefix, ids[None], np.array([len(ids) - 1]))
        end = prefix.tokens + len(ids)
        for rows, added in zip(prefix.held, own, strict=True):
            rows[prefix.tokens : end] = added
        return Prefix(prefix.held, end)

    def forward(self, prefix: Prefix, ids: Integers, lengths: Integers) -> Vectors:
        """Return the raw scores [texts] of texts that begin with `prefix`. Their further ids [texts, tokens]
        are padded with any id."""
        states: Vectors = self._compute(prefix, ids, lengths - 1)[-1]
        return self._output.scores(states)

    def _compute(self, prefix: Prefix, ids: Integers, last: Integers) -> list[Array]:
        before = prefix.tokens
        return self._run(
            {
                "embeddings": self._embed[ids.ravel()].reshape(*ids.shape, -1),
                **positions.tables(self._kinds, before, before, ids.shape[1]),
                "last": last,
                **{f"prefix.{at}": rows[:before] for at, rows in enumerate(prefix.held)},
            }
        )
