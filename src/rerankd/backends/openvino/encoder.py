"""A model file, loaded: texts' ids in, one row of values for each text out."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rerankd.backends.openvino import graph, shapes
from rerankd.backends.openvino.precision import Precision
from rerankd.backends.openvino.runtime import config, ov
from rerankd.backends.worker.runner import Integers
from rerankd.domain import Pooling
from rerankd.errors import ModelFileError
from rerankd.formats.tokenizer import Vocabulary, of_file, of_header
from rerankd.formats.weights import Weights

# What one call holds, padding included. In bf16 there is nothing to gain beyond (15 pairs/s of BERT-large's
# shape with 512 to 1,024 tokens a call, 11.6 one by one, 5.9 in one padded batch of 64; AMX). In f32 a call
# gains nothing from its size (2,700 tokens/s of MiniLM's shape in calls of 130 as of 1,040; AVX2).
_TOKENS_A_CALL: Mapping[Precision, int] = {"bf16": 1024, "f32": 512}


class Encoder:
    """The vocabulary and the compiled model of one file. Raises ModelFileError where it is damaged."""

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
        core = ov.Core()
        version = ov.get_version().partition("-")[0]
        self.tokens_a_call = _TOKENS_A_CALL[precision]
        kept = ", weights compressed" if compressed else ""
        because = f" ({why})" if why else ""
        self.about = f"OpenVINO {version}, {precision}{because}, {threads} threads{kept}"
        model = graph.build(weights, pooling, compressed=compressed)
        # A vocabulary of 250,000 pieces takes longer than anything else, and compiling needs no Python.
        with ThreadPoolExecutor(1) as other:
            building = other.submit(_vocabulary, weights)
            compiled = core.compile_model(model, "CPU", config(threads, precision))
            self._embed = graph.embedder(weights)
            self.vocabulary: Vocabulary = building.result()
        self._request = compiled.create_infer_request()
        self._most: int = weights.key("context_length", 2**20)

    def whole(self, count: int, longest: int) -> int:
        """How many of `count` texts go into one call, given the longest one's tokens."""
        return shapes.whole(count, longest, self.tokens_a_call // 4)

    def forward(self, ids: Integers, lengths: Integers, seconds: Integers) -> NDArray[np.float32]:
        """Ids [texts, tokens], padded with any, the texts' lengths, and where the second token type begins in
        each -> [texts, values]. One thread at a time."""
        count = len(ids)
        rows = shapes.texts(count)
        ids = np.pad(ids, ((0, rows - count), (0, shapes.tokens(ids.shape[1], self._most) - ids.shape[1])))
        # A text that nobody asked for has one token, so that it has a mean.
        lengths, seconds = (np.pad(one, (0, rows - count), constant_values=1) for one in (lengths, seconds))
        padding = np.arange(ids.shape[1]) >= lengths[:, None]
        mask = np.where(padding, np.float32(graph.MASKED), np.float32(0))[:, None, None, :]
        # The arrays live until the call has ended: a Tensor does not keep its own alive.
        embeddings = np.ascontiguousarray(self._embed(ids, seconds), np.float32)
        self._request.set_tensor("embeddings", ov.Tensor(embeddings))
        self._request.set_tensor("mask", ov.Tensor(np.ascontiguousarray(mask)))
        self._request.infer()
        return np.array(self._request.get_output_tensor(0).data[:count])


def _vocabulary(weights: Weights) -> Vocabulary:
    path = weights.tokenizer
    try:
        return of_header(weights.values) if path is None else of_file(path, weights.rows("token_embd.weight"))
    except KeyError as error:
        raise ModelFileError(
            f"{weights.path}: it has no key {error}: its vocabulary is not whole."
        ) from error
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path or weights.path}: its tokenizer can't be read: {error}.") from error
