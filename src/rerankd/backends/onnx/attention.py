"""Attention as nodes of a graph. `G` query heads may share a key and a value head: their queries are put
behind each other on the token axis, so no key is copied."""

from __future__ import annotations

from typing import NamedTuple

from rerankd.backends.onnx.graph import MICROSOFT, Graph


class Attention(NamedTuple):
    """The attention of a model: products of queries and keys of `size` numbers times `scale`, between -cap
    and cap if there is a cap."""

    heads: int
    kv_heads: int
    size: int
    scale: float
    cap: float = 0.0

    def __call__(self, g: Graph, texts: str, query: str, key: str, value: str, mask: str) -> str:
        """Return [texts · tokens, heads · n] for queries, keys and values [texts, heads, tokens, n]. `mask`
        [·, 1, T, S] is added for T queries, S keys and values; `texts` is their number."""
        queries = g.op("Reshape", query, of_each_text(g, texts, self.kv_heads, -1, self.size))
        products = g.op("FusedMatMul", queries, key, of=MICROSOFT, transB=1, alpha=self.scale)
        rows = g.op("Shape", query, start=0, end=3)  # texts, heads, tokens
        columns = g.op("Shape", key, start=2, end=3)
        apart = g.op("Reshape", products, g.op("Concat", rows, columns, axis=0))
        if self.cap:
            capped = g.op("Tanh", g.op("Mul", apart, g.const(1 / self.cap)))
            apart = g.op("Mul", capped, g.const(self.cap))
        weights = g.op("Softmax", g.op("Add", apart, mask), axis=-1)
        mixed = g.op("MatMul", g.op("Reshape", weights, g.op("Shape", products)), value)
        apart = g.op("Reshape", mixed, of_each_text(g, texts, self.heads, -1, self.size))
        return g.reshape(g.op("Transpose", apart, perm=[0, 2, 1, 3]), -1, self.heads * self.size)


def of_each_text(g: Graph, texts: str, *sizes: int) -> str:
    """The shape [texts, *sizes]."""
    return g.op("Concat", texts, g.ints(*sizes), axis=0)
