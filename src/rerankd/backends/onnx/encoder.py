"""A loaded encoder: token ids in, one row of outputs per text out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rerankd.backends.onnx.bert import Bert
from rerankd.backends.onnx.graph import Graph, Precision
from rerankd.backends.worker.embedder import embedder
from rerankd.backends.worker.passes import Integers, Padding, Vectors
from rerankd.backends.worker.positions import MASKED
from rerankd.domain import Pooling
from rerankd.formats.weights import Weights


class Encoder(Padding):
    """The model of one file (see scorer.Network). See Bert for `pooling`. Raises ModelFileError
    if the file is damaged."""

    tokens_a_pass = 512

    def __init__(self, path: Path, pooling: Pooling, *, threads: int, precision: Precision) -> None:
        self.about = ""
        weights = Weights(path)
        self._embed = embedder(weights, has_positions=True)
        self.rows = len(self._embed.tokens)
        self._run = Bert(weights, pooling).session(Graph(precision, threads))

    def whole(self, count: int, longest: int) -> int:
        """Return how many of `count` inputs go into one pass: all."""
        return count

    def forward(self, ids: Integers, lengths: Integers, seconds: Integers) -> Vectors:
        """Run the model on ids [inputs, tokens], padded with any id, with the inputs' lengths and the
        positions where the second token type begins. Returns [inputs, values]."""
        padding = np.arange(ids.shape[1]) >= lengths[:, None]
        mask = np.where(padding, np.float32(MASKED), np.float32(0))[:, None, None, :]
        found: Vectors
        (found,) = self._run({"embeddings": self._embed(ids, seconds), "mask": mask})
        return found
