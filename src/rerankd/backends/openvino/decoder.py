"""The base class of causal architectures: a graph whose input includes the keys and values of earlier tokens.

One compiled graph both scores texts and computes prefixes. A text is `prefix` plus its own tokens; the graph
reads the keys and values of the prefix as an input, and returns those of the first text's own tokens as an
output. So the tokens that many texts share (system message, instruction, query) are computed once.

Inputs, with B texts, T own tokens each (padded on the right), P tokens of the prefix (the same for all
texts), and head size n:

    embeddings  f32 [B, T, width]
    cos, sin    f32 [K, T, n / 2]           of positions P, P + 1, … for each of K kinds of layers
    mask        f32 [K, T, P + T]           0 for tokens that a token sees, MASKED for others
    last        i64 [B, R]                  indexes of the R tokens of each text whose states are read
    prefix.N    f32 [P, kv heads, n]        keys and values in turns, N from 0 to 2 · layers - 1

Outputs: the keys and values of text 0, likewise [T, kv heads, n], then what the head makes of the
states that are read, such as a score f32 [B].

Each layer has inputs and outputs of its own, and the head comes last, because of OpenVINO's memory: it gives
tensors whose lifetimes do not overlap the same block. A block that a key keeps to the end is lost for the
large tensors of later layers, which then get new blocks. With one input and one output for all layers, and
the head first, a call took 13 to 20 kB for each token and layer of Qwen3-0.6B.

To add an architecture: subclass Decoder in architectures/, add it to DECODERS there, its name to
`CAUSAL` in worker/supported.py, and a golden model to tests/backends/cases.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from rerankd.backends.openvino.layers import GROUP, Node, grouped, ints, quantised, rms_norm
from rerankd.backends.openvino.runtime import op, ov
from rerankd.backends.worker import decoder_tensors, positions
from rerankd.formats.weights import FLOATS, Floats, Weights


class View(NamedTuple):
    """What a kind of layers sees: cos and sin [·, 1, tokens, n / 2], and the mask [·, 1, tokens, columns]."""

    rotation: tuple[Node, Node]
    mask: Node


class Seen(Protocol):
    """What attention sees besides the states of a layer. `views` are those of all tokens, and of the tokens
    whose states the last layer returns, for each kind of layers."""

    views: list[tuple[View, View]]

    def last(self, x: Node) -> Node:
        """Return the states that the last layer returns: [texts, tokens, width] -> [texts, ·, width]."""

    def with_prefix(self, own: Node, at: int) -> Node:
        """Put earlier tokens' keys or values before the own ones of each text [texts, kv heads, tokens, n].
        Those of layer l have the numbers 2 · l and 2 · l + 1."""


class SeenAfterPrefix(Seen):
    """What texts see behind a prefix: the inputs of the graph. The last layer returns the tokens
    that are read."""

    def __init__(self, kv_heads: int, head_size: int, layers: int, width: int, kinds: int) -> None:
        def floats(name: str, *shape: int) -> Node:
            return op.parameter([*shape], np.float32, name=name)

        self.embeddings = floats("embeddings", -1, -1, width)
        self._cos, self._sin = (floats(name, kinds, -1, head_size // 2) for name in ("cos", "sin"))
        self._mask = floats("mask", kinds, -1, -1)
        self._last = op.parameter([-1, -1], np.int64, name="last")
        self._prefix = [floats(f"prefix.{at}", -1, kv_heads, head_size) for at in range(2 * layers)]
        self.views = [self._views(kind) for kind in range(kinds)]
        texts = op.gather(op.shape_of(self.embeddings), ints(0), ints(0, scalar=True))
        self._each_text = op.concat([texts, ints(1, 1, 1)], 0)

    @property
    def parameters(self) -> list[Node]:
        return [self.embeddings, self._cos, self._sin, self._mask, self._last, *self._prefix]

    def last(self, x: Node) -> Node:
        return op.gather(x, self._last, ints(1, scalar=True), 1)

    def with_prefix(self, own: Node, at: int) -> Node:
        shared = op.unsqueeze(op.transpose(self._prefix[at], ints(1, 0, 2)), ints(0))
        return op.concat([op.broadcast(shared, self._each_text, broadcast_spec="BIDIRECTIONAL"), own], 2)

    def _views(self, kind: int) -> tuple[View, View]:
        tables = (self._cos, self._sin, self._mask)
        own = [op.gather(table, ints(kind, scalar=True), ints(0, scalar=True)) for table in tables]
        (cos, sin, mask), lasts = map(self._of_all, own), list(map(self._of_last, own))
        return View((cos, sin), mask), View((lasts[0], lasts[1]), lasts[2])

    def _of_all(self, table: Node) -> Node:
        return op.unsqueeze(table, ints(0, 1))

    def _of_last(self, table: Node) -> Node:
        """Return the rows of the tokens that are read [texts, 1, read, columns]."""
        return op.unsqueeze(op.gather(table, self._last, ints(0, scalar=True)), ints(1))


class Decoder:
    """The forward pass of one causal model as an OpenVINO graph.

    With `compressed`, matrices are stored in 8 bits with a scale per 32 weights. Matrices that are quantised
    in the file always are. Those in Q8_0 keep their numbers, so nothing is lost; the error of others is small
    against that of their own type.
    """

    tensors: ClassVar[tuple[str, ...]]
    """All tensors of a layer. The model of a file with more or fewer would compute something else."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Tensors outside of layers that a file may have, and that are read outside of the graph."""

    def __init__(self, weights: Weights, *, compressed: bool) -> None:
        self.weights = weights
        self.compressed = compressed
        self.width: int = weights.key("embedding_length")
        self.layers: int = weights.key("block_count")
        self.heads: int = weights.key("attention.head_count")
        self.kv_heads: int = weights.key("attention.head_count_kv", self.heads)
        self.head_size: int = weights.key("attention.key_length", self.width // self.heads)
        self.epsilon: float = weights.key("attention.layer_norm_rms_epsilon")
        self.kinds, self.kind_of = positions.kinds(weights, self.head_size)
        """The kinds of layers, and the index of each layer's kind."""
        decoder_tensors.check(weights, self.tensors, self.optional)

    def layer(self, x: Node, at: int, seen: Seen) -> tuple[Node, Node, Node]:
        """Return the states after layer `at`, and its own keys and values [texts, kv heads, tokens, n]. The
        last layer returns the states that are read only [texts, read, width]."""
        raise NotImplementedError

    def embedded(self, embeddings: Node) -> Node:
        """Return the states before the first layer."""
        return embeddings

    def graph(self, head: Callable[[Node], Node]) -> ov.Model:
        """Build the graph, which ends with what `head` makes of the states that are read [texts, read,
        width]."""
        seen = SeenAfterPrefix(self.kv_heads, self.head_size, self.layers, self.width, len(self.kinds))
        x, own = self.embedded(seen.embeddings), []
        for at in range(self.layers):
            x, *added = self.layer(x, at, seen)
            firsts = [op.gather(one, ints(0, scalar=True), ints(0, scalar=True)) for one in added]
            own += [op.result(op.transpose(one, ints(1, 0, 2))) for one in firsts]
        state = self.norm(x, "output_norm")
        return ov.Model([*own, op.result(head(state))], seen.parameters, self.weights.architecture)

    def norm(self, x: Node, name: str) -> Node:
        """Apply RMS normalisation over the width of the model."""
        return rms_norm(x, self.gain(name, self.width), self.epsilon)

    def gain(self, name: str, size: int) -> Floats:
        """Return the factors [size] of a norm."""
        return self.weights.array(f"{name}.weight", (size,))

    def linear(self, x: Node, name: str, rows: int, columns: int) -> Node:
        """Return x · weightᵀ, plus the bias if the architecture has one."""
        product = op.matmul(x, self._matrix(f"{name}.weight", rows, columns), False, True)
        if f"{name.rpartition('.')[2]}.bias" not in self.tensors:
            return product
        return op.add(product, op.constant(self.weights.array(f"{name}.bias", (rows,))))

    def _matrix(self, name: str, rows: int, columns: int) -> Node:
        if (groups := self.weights.groups(name, rows, columns)) is not None:
            return grouped(*groups)
        matrix = self.weights.array(name, (rows, columns))
        _, kind = self.weights.stored(name, (rows, columns))
        is_compressed = self.compressed or kind not in FLOATS
        return quantised(matrix) if is_compressed and columns % GROUP == 0 else op.constant(matrix)
