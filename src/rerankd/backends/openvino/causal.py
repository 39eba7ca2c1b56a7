"""A loaded and compiled causal model: token ids behind a shared prefix in, one raw score per text out, or the
vectors of some of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rerankd import processes
from rerankd.backends.openvino import module_head, shapes
from rerankd.backends.openvino.architectures import DECODERS
from rerankd.backends.openvino.layers import Node, score_of
from rerankd.backends.openvino.precision import Precision
from rerankd.backends.openvino.runtime import about, config, ov
from rerankd.backends.worker import positions
from rerankd.backends.worker.output_row import output_of
from rerankd.backends.worker.passes import Integers, Pause, Pending, Reading, Vectors, never
from rerankd.backends.worker.prefixes import Prefix, PrefixCache, Prefixing, part
from rerankd.formats.module_head import STEPS, Step
from rerankd.formats.weights import Weights

Head = Callable[[Node], Node]
"""Makes the output of the states that are read [texts, read, width]."""

# OpenVINO keeps memory for each shape it has seen, so prefixes are padded to a multiple of this length.
_PREFIX_STEP = 32
# After a text behind a longer prefix, the request is replaced, because it keeps the memory of its largest
# call: 0.04 MB for each token of Qwen3-0.6B, besides the keys and values themselves (0.23 MB).
_LONG = 2048


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
        head = self.head(weights, labels)
        self.about = about(threads, precision, why, compressed=compressed)
        self.tokens_a_pass = shapes.TOKENS_A_PASS[precision]
        self.rows = weights.rows("token_embd.weight")
        self.prefixes = PrefixCache()
        self._embed = weights.table("token_embd.weight", self.rows, decoder.width)
        self._kept = (2 * decoder.layers, decoder.kv_heads, decoder.head_size)
        self._kinds = decoder.kinds
        self._compiled = ov.Core().compile_model(decoder.graph(head), "CPU", config(threads, precision))
        self._request = self._compiled.create_infer_request()

    def head(self, weights: Weights, labels: Sequence[int]) -> Head:
        """Return what makes the output of the states that are read."""
        return partial(score_of, output_of(weights, labels))

    def whole(self, count: int, longest: int) -> int:
        """Return how many of `count` texts go into one pass; `longest` is the largest length in tokens."""
        return shapes.whole(count, longest, self.tokens_a_pass // 4)

    def empty(self, tokens: int) -> Prefix:
        return Prefix(np.zeros((self._kept[0], _rounded(tokens), *self._kept[1:]), np.float32), 0)

    def extend(self, prefix: Prefix, ids: Integers) -> Prefix:
        return self._extended(prefix, ids, np.array([len(ids) - 1]))

    def _extended(self, prefix: Prefix, ids: Integers, read: Integers) -> Prefix:
        """Add the tokens `ids` [tokens] to a prefix, in place, and read the states at the indexes `read`."""
        self._infer(prefix, ids[None], read[None])
        end = prefix.tokens + len(ids)
        for at, rows in enumerate(prefix.held):
            rows[prefix.tokens : end] = self._request.get_output_tensor(at).data[: len(ids)]
        return Prefix(prefix.held, end)

    def forward(self, prefix: Prefix, ids: Integers, lengths: Integers) -> Vectors:
        """Return the raw scores [texts] of texts that begin with `prefix`. Their further ids [texts, tokens]
        are padded with any id."""
        self._infer(prefix, ids, lengths[:, None] - 1)
        scores = np.array(self._request.get_output_tensor(self._kept[0]).data[: len(ids)])
        self._forget(prefix.tokens)
        return scores

    def _forget(self, tokens: int) -> None:
        """After a pass behind `tokens` tokens, replace the inference request if they are many: it keeps the
        memory of its largest pass."""
        if tokens > _LONG:
            self._request = self._compiled.create_infer_request()

    def _infer(self, prefix: Prefix, ids: Integers, read: Integers) -> None:
        """Compute texts [texts, tokens], and read the states at these indexes of each [texts, read]."""
        count, longest = ids.shape
        rows, columns = shapes.inputs(count), shapes.tokens(longest, 2**20)
        start, padded = prefix.tokens, _rounded(prefix.tokens)
        ids = np.pad(ids, ((0, rows - count), (0, columns - longest)))
        inputs: dict[str, NDArray[np.generic]] = {
            "embeddings": self._embed[ids.ravel()].reshape(*ids.shape, -1),
            **positions.tables(self._kinds, start, padded, columns),
            "last": np.pad(read, ((0, rows - count), (0, 0))),
        }
        inputs |= {f"prefix.{at}": rows[:padded] for at, rows in enumerate(prefix.held)}
        # Keep the arrays until the call has ended: a Tensor does not hold a reference to its array. Copies of
        # the keys and values of a long prefix would take as much memory again.
        inputs = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        for name, value in inputs.items():
            self._request.set_tensor(name, ov.Tensor(value, shared_memory=True))
        self._request.infer()


class TokenModel(CausalModel):
    """A causal model that reads one text in a pass, in parts, and returns the vectors of the tokens that the
    reading wants (see passes.Reading): the steps that the file declares make them of the tokens' states."""

    def head(self, weights: Weights, labels: Sequence[int]) -> Head:
        width: int = weights.key("embedding_length")
        steps: Sequence[Step] = weights.key(STEPS, ())
        return lambda states: module_head.graph(states, weights, width, steps)

    def passes(self, readings: Sequence[Reading]) -> list[list[int]]:
        return [[at] for at in range(len(readings))]

    def start(self, readings: Sequence[Reading], pause: Pause = never) -> Pending:
        (reading,) = readings
        rows = self._vectors(reading, pause)
        return lambda: [rows]

    def _vectors(self, reading: Reading, pause: Pause) -> Vectors:
        ids = reading.ids.astype(np.int64)
        wanted = np.arange(len(ids)) if reading.wanted is None else reading.wanted.astype(np.int64)
        prefix = self.empty(len(ids))
        found: dict[int, Vectors] = {}
        while prefix.tokens < len(ids):
            start = prefix.tokens
            own = ids[start : start + part(self.tokens_a_pass, start)]
            here = np.unique(wanted[(wanted >= start) & (wanted < start + len(own))])
            # Few different numbers of tokens, for the same reason as in shapes.py.
            read = np.zeros(shapes.inputs(max(len(here), 1)), np.int64)
            read[: len(here)] = here - start
            prefix = self._extended(prefix, own, read)
            rows = self._request.get_output_tensor(self._kept[0]).data[0]
            found |= {int(at): row.copy() for at, row in zip(here, rows, strict=False)}
            if start > _LONG:
                processes.give_back()  # each part has another shape, and leaves its memory behind
            pause()
        self._forget(prefix.tokens)
        return np.stack([found[int(at)] for at in wanted])


def _rounded(tokens: int) -> int:
    """Return the number of rows of a prefix, padded to whole steps."""
    return -(-tokens // _PREFIX_STEP) * _PREFIX_STEP
