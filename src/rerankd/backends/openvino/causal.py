"""A loaded and compiled causal model: token ids behind a shared prefix in, one raw score per text out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rerankd.backends.openvino import shapes
from rerankd.backends.openvino.architectures import DECODERS
from rerankd.backends.openvino.layers import MASKED
from rerankd.backends.openvino.output_row import output_row
from rerankd.backends.openvino.precision import Precision
from rerankd.backends.openvino.runtime import config, ov
from rerankd.backends.worker.passes import Integers
from rerankd.backends.worker.prefixes import Prefix, PrefixCache, Prefixing
from rerankd.formats.weights import Floats, Weights

# OpenVINO keeps memory for each shape it has seen, so prefixes are padded to a multiple of this length.
_PREFIX_STEP = 32


class CausalModel(Prefixing):
    """The compiled model of one file (see scorer.Network). `labels` are the ids of one or two tokens, () for
    its rank head. Not thread-safe. Raises ModelFileError if the file is damaged."""

    def __init__(
        self,
        path: Path,
        labels: Sequence[int],
        *,
        threads: int,
        precision: Precision = "f32",
        compressed: bool = False,
        why: str = "",
    ) -> None:
        weights = Weights(path)
        decoder = DECODERS[weights.architecture](weights, compressed=compressed)
        version = ov.get_version().partition("-")[0]
        kept = ", weights compressed" if compressed else ""
        because = f" ({why})" if why else ""
        self.about = f"OpenVINO {version}, {precision}{because}, {threads} threads{kept}"
        self.tokens_a_pass = shapes.TOKENS_A_PASS[precision]
        self.rows = weights.rows("token_embd.weight")
        self.prefixes = PrefixCache()
        self._embed = weights.table("token_embd.weight", self.rows, decoder.width)
        self._no_prefix = np.zeros((2 * decoder.layers, decoder.kv_heads, 0, decoder.head_size), np.float32)
        self._frequencies = decoder.frequencies()
        model = decoder.graph(output_row(weights, labels))
        self._request = (
            ov.Core().compile_model(model, "CPU", config(threads, precision)).create_infer_request()
        )

    def whole(self, count: int, longest: int) -> int:
        """Return how many of `count` texts go into one pass; `longest` is the largest length in tokens."""
        return shapes.whole(count, longest, self.tokens_a_pass // 4)

    def prefix(self, before: Prefix | None, ids: Integers) -> Prefix:
        """Return the keys and values of `before` and of the tokens `ids` [tokens] after it."""
        before = self._no_prefix if before is None else before
        self._infer(before, ids[None], np.array([len(ids)]))
        own = self._request.get_output_tensor(1).data[:, :, : len(ids)]
        return np.concatenate((before, own), 2)

    def forward(self, before: Prefix | None, ids: Integers, lengths: Integers) -> NDArray[np.float32]:
        """Return the raw scores [texts] of texts that begin with the prefix `before`. Their further ids
        [texts, tokens] are padded with any id."""
        self._infer(self._no_prefix if before is None else before, ids, lengths)
        return np.array(self._request.get_output_tensor(0).data[: len(ids)])

    def _infer(self, before: Prefix, ids: Integers, lengths: Integers) -> None:
        count, longest = ids.shape
        rows, columns = shapes.inputs(count), shapes.tokens(longest, 2**20)
        start, padded = before.shape[2], -(-before.shape[2] // _PREFIX_STEP) * _PREFIX_STEP
        ids = np.pad(ids, ((0, rows - count), (0, columns - longest)))
        angles = np.arange(start, start + columns)[:, None] * self._frequencies
        inputs: dict[str, NDArray[np.generic]] = {
            "embeddings": self._embed[ids.ravel()].reshape(*ids.shape, -1),
            "cos": np.cos(angles).astype(np.float32),
            "sin": np.sin(angles).astype(np.float32),
            "mask": mask(start, padded, columns),
            "last": np.pad(lengths - 1, (0, rows - count))[:, None],
            "prefix": np.pad(before, ((0, 0), (0, 0), (0, padded - start), (0, 0))),
        }
        # Keep the arrays until the call has ended: a Tensor does not hold a reference to its array.
        inputs = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        for name, value in inputs.items():
            self._request.set_tensor(name, ov.Tensor(value))
        self._request.infer()


def mask(start: int, padded: int, tokens: int) -> Floats:
    """Return the mask [tokens, padded + tokens] for a prefix of `start` tokens, padded to `padded`."""
    places = np.arange(padded + tokens)
    is_padding = (places >= start) & (places < padded)
    is_later = places[None] > padded + np.arange(tokens)[:, None]
    return np.where(is_padding[None] | is_later, np.float32(MASKED), np.float32(0))
