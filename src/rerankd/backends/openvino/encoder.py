"""A loaded and compiled model: token ids in, one row of outputs per input out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rerankd.backends.openvino import graph, shapes
from rerankd.backends.openvino.architectures import ARCHITECTURES
from rerankd.backends.openvino.precision import Precision
from rerankd.backends.openvino.runtime import about, config, ov
from rerankd.backends.worker.embedder import embedder
from rerankd.backends.worker.passes import Integers, Padding
from rerankd.backends.worker.positions import MASKED
from rerankd.domain import Pooling
from rerankd.formats.weights import Weights


class Encoder(Padding):
    """The compiled model of one file (see scorer.Network). Raises ModelFileError if the file is damaged."""

    def __init__(
        self,
        path: Path,
        pooling: Pooling,
        *,
        threads: int,
        precision: Precision = "f32",
        compressed: bool = False,
        why: str = "",
    ) -> None:
        weights = Weights(path)
        self.tokens_a_pass = shapes.TOKENS_A_PASS[precision]
        self.about = about(threads, precision, why, compressed=compressed)
        model = graph.build(weights, pooling, compressed=compressed)
        self._request = (
            ov.Core().compile_model(model, "CPU", config(threads, precision)).create_infer_request()
        )
        self._embed = embedder(weights, has_positions=ARCHITECTURES[weights.architecture].has_positions)
        self.rows = len(self._embed.tokens)
        self._most: int = weights.key("context_length", 2**20)

    def whole(self, count: int, longest: int) -> int:
        """Return how many of `count` inputs go into one pass; `longest` is the largest length in tokens."""
        return shapes.whole(count, longest, self.tokens_a_pass // 4)

    def forward(self, ids: Integers, lengths: Integers, seconds: Integers) -> NDArray[np.float32]:
        """Run the model on ids [inputs, tokens], padded with any id, with the inputs' lengths and the
        positions where the second token type begins. Returns [inputs, values]. Not thread-safe."""
        count = len(ids)
        rows = shapes.inputs(count)
        ids = np.pad(ids, ((0, rows - count), (0, shapes.tokens(ids.shape[1], self._most) - ids.shape[1])))
        # Inputs that pad the batch have one token, so that their mean is defined.
        lengths, seconds = (np.pad(one, (0, rows - count), constant_values=1) for one in (lengths, seconds))
        padding = np.arange(ids.shape[1]) >= lengths[:, None]
        mask = np.where(padding, np.float32(MASKED), np.float32(0))[:, None, None, :]
        # Keep the arrays until the call has ended: a Tensor does not hold a reference to its array.
        embeddings = np.ascontiguousarray(self._embed(ids, seconds), np.float32)
        self._request.set_tensor("embeddings", ov.Tensor(embeddings))
        self._request.set_tensor("mask", ov.Tensor(np.ascontiguousarray(mask)))
        self._request.infer()
        return np.array(self._request.get_output_tensor(0).data[:count])
