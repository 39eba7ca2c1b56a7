"""BERT, also XLM-R and DistilBERT, as BertModel and XLMRobertaForSequenceClassification of transformers
compute them.

Inputs: `embeddings` f32 [texts, tokens, width], before the embedding norm, and `mask` f32 [texts, 1, 1,
tokens], MASKED for padding, else 0. Output: f32 [texts, 1], the rank head's logit, or [texts, width], the
pooled states.

Its states contain gains and biases of norms, so what reads them is rotated at run time (see folding.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from onnx import TensorProto

from rerankd.backends.onnx import folding, module_head
from rerankd.backends.onnx.attention import Attention, of_each_text
from rerankd.backends.onnx.graph import Graph, Matrix, Session
from rerankd.backends.onnx.rotation import Rotation
from rerankd.backends.worker.embedder import embedding_width
from rerankd.backends.worker.positions import MASKED
from rerankd.domain import Pooling
from rerankd.formats.module_head import STEPS, Step
from rerankd.formats.weights import Floats, Weights


class Bert:
    """The forward pass of one encoder. `pooling` "rank" selects the rank head, other values an embedding.
    Raises ModelFileError if the file is damaged."""

    def __init__(self, weights: Weights, pooling: Pooling) -> None:
        self._weights = weights
        self._has_head = pooling == "rank"
        of_head: Mapping[int, Pooling] = {1: "mean"}
        self._pooling = (
            of_head.get(weights.key("classifier.pooling_type", 0), "cls") if self._has_head else pooling
        )
        self.width: int = weights.key("embedding_length")
        self.layers: int = weights.key("block_count")
        self.hidden: int = weights.key("feed_forward_length")
        self.epsilon: float = weights.key("attention.layer_norm_epsilon")
        heads: int = weights.key("attention.head_count")
        size = self.width // heads
        self._attention = Attention(heads, heads, size, size**-0.5)

    def session(self, g: Graph) -> Session:
        """Build the graph and compile it."""
        narrow = embedding_width(self._weights)
        embeddings = g.input("embeddings", "texts", "tokens", narrow)
        mask = g.input("mask", "texts", 1, 1, "tokens")
        texts = g.op("Shape", embeddings, start=0, end=1)
        x = self._norm(g, g.reshape(embeddings, -1, narrow), "token_embd_norm", narrow)
        if narrow != self.width:
            x = self._exact(g, x, "token_embd_project", self.width, narrow)
        for layer in range(self.layers):
            x = self._layer(g, x, layer, texts, mask)
        row = x if self._pooling == "cls" else self._mean(g, x, texts, mask)
        return g.session({"result": self._head(g, row) if self._has_head else row})

    def _mean(self, g: Graph, x: str, texts: str, mask: str) -> str:
        """The mean state of each text [texts, width], without padding."""
        states = g.op("Reshape", x, of_each_text(g, texts, -1, self.width))
        real = g.op("Cast", g.op("Greater", mask, g.const(MASKED / 2)), to=TensorProto.FLOAT)
        real = g.op("Reshape", real, of_each_text(g, texts, -1, 1))
        total = g.op("ReduceSum", g.op("Mul", states, real), g.ints(1), keepdims=0)
        return g.op("Div", total, g.op("ReduceSum", real, g.ints(1), keepdims=0))

    def _layer(self, g: Graph, x: str, layer: int, texts: str, mask: str) -> str:
        name, is_last = f"blk.{layer}", layer == self.layers - 1
        turned = self._turned(g, x, self.width)
        parts = {part: self._projection(name, part) for part in "qkv"}
        asking, asking_turned = x, turned
        if is_last and self._pooling == "cls":  # only the first token's query is needed
            asking, asking_turned = self._first(g, x, texts), self._first(g, turned, texts)
            products = [
                *g.linear(asking_turned, self.width, [(self.width, parts["q"])]),
                *g.linear(turned, self.width, [(self.width, parts[part]) for part in "kv"]),
            ]
        else:
            products = g.linear(turned, self.width, [(self.width, read) for read in parts.values()])
        query, key, value = (
            self._heads(g, product, name, part, texts) for part, product in zip("qkv", products, strict=True)
        )
        mixed = self._attention(g, texts, query, key, value, mask)
        output = f"{name}.attn_output"
        (mixed,) = g.linear(mixed, self.width, [(self.width, partial(self._reading_values, output))])
        x = self._norm(g, g.op("Add", asking, self._biased(g, mixed, output, self.width)), f"{output}_norm")
        inner = self._linear(g, x, f"{name}.ffn_up", self.hidden, self.width)
        inner = self._linear(g, g.op("Gelu", inner), f"{name}.ffn_down", self.width, self.hidden)
        return self._norm(g, g.op("Add", x, inner), f"{name}.layer_output_norm")

    def _head(self, g: Graph, x: str) -> str:
        """The logit [texts, 1] of the rank head, of its label; with two labels, the logit of the second minus
        that of the first."""
        weights, name = self._weights, "cls.output"
        steps: Sequence[Step] = weights.key(STEPS, ())
        if steps:
            return module_head.graph(g, x, weights, self.width, steps)
        if weights.has("cls.weight"):
            x = self._exact(g, x, "cls", self.width, self.width)
            x = module_head.activated(g, x, weights.key("classifier.activation", "tanh"))
        if weights.rows(f"{name}.weight") != 2:
            return self._exact(g, x, name, 1, self.width)
        both = self._exact(g, x, name, 2, self.width)
        first, second = (g.op("Gather", both, g.ints(at), axis=1) for at in (0, 1))
        return g.op("Sub", second, first)

    def _linear(self, g: Graph, x: str, name: str, rows: int, columns: int) -> str:
        """x · weightᵀ + bias, rotated at run time."""
        turn = Rotation.of_blocks(columns).turned
        read = partial(_folded, partial(self._weights.array, f"{name}.weight", (rows, columns)), turn)
        (product,) = g.linear(self._turned(g, x, columns), columns, [(rows, read)])
        return self._biased(g, product, name, rows)

    def _turned(self, g: Graph, x: str, columns: int) -> str:
        return g.rotate(x, Rotation.of_blocks(columns))

    def _projection(self, layer: str, part: str) -> Matrix:
        """The matrix of queries (q), keys (k) or values (v), for rotated states."""
        fold = Rotation.of_blocks(self.width).turned
        return partial(_folded, partial(self._of_part, layer, part, "weight", self.width), fold)

    def _of_part(self, layer: str, part: str, kind: str, columns: int) -> Floats:
        """The weight or the bias of queries, keys or values. Files of jina-reranker-v2 hold the three
        joined."""
        merged = f"{layer}.attn_qkv"
        if self._weights.has(f"{merged}.weight"):
            start = "qkv".index(part) * self.width
            whole = self._weights.array(f"{merged}.{kind}", (3 * self.width, columns))
            found = whole[start : start + self.width]
        else:
            found = self._weights.array(f"{layer}.attn_{part}.{kind}", (self.width, columns))
        return folding.values(found, self._attention.size) if part == "v" else found

    def _reading_values(self, name: str) -> Floats:
        matrix = self._weights.array(f"{name}.weight", (self.width, self.width))
        return folding.reading_values(matrix, self._attention.size)

    def _heads(self, g: Graph, x: str, layer: str, part: str, texts: str) -> str:
        x = g.op("Add", x, g.const(self._of_part(layer, part, "bias", 1)[:, 0]))
        parts = g.op("Reshape", x, of_each_text(g, texts, -1, self._attention.heads, self._attention.size))
        return g.op("Transpose", parts, perm=[0, 2, 1, 3])

    def _first(self, g: Graph, x: str, texts: str) -> str:
        """The first token's state of each text: [texts · tokens, width] -> [texts, width]."""
        apart = g.op("Reshape", x, of_each_text(g, texts, -1, self.width))
        return g.op("Gather", apart, g.const(0, "int64"), axis=1)

    def _exact(self, g: Graph, x: str, name: str, rows: int, columns: int) -> str:
        read = partial(self._weights.array, f"{name}.weight", (rows, columns))
        return self._biased(g, g.exact(x, rows, columns, read), name, rows)

    def _biased(self, g: Graph, x: str, name: str, rows: int) -> str:
        return g.op("Add", x, g.const(self._weights.array(f"{name}.bias", (rows,))))

    def _norm(self, g: Graph, x: str, name: str, width: int = 0) -> str:
        both = (
            g.const(self._weights.array(f"{name}.{part}", (width or self.width,)))
            for part in ("weight", "bias")
        )
        return g.op("LayerNormalization", x, *both, axis=-1, epsilon=self.epsilon)


def _folded(read: Matrix, fold: Callable[[Floats], Floats]) -> Floats:
    return fold(read())
