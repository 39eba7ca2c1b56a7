"""What bf16 would do to the built-in model's order, on any CPU: python bench/bf16.py

The graph is built once as it is and once with every input, weight and output of its products, normalisations
and activations rounded to bf16 (8 bits of mantissa), the sums in float32: that is what a CPU with AMX or
AVX512_BF16 computes. It takes such a CPU to measure its speed; its rounding can be had anywhere. Both score
the candidates that BM25 finds in the collection that comes with rerankd, and Kendall's tau compares the
orders.

Rounding is Veltkamp's (T. J. Dekker, 1971, "A floating-point technique for extending the available
precision"): with c = x (2^16 + 1), c - (c - x) is x with 24 - 16 bits.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from rerankd.config import Settings
from rerankd.engine.openvino import graph
from rerankd.engine.openvino.encoder import Encoder
from rerankd.engine.openvino.runner import padded
from rerankd.engine.openvino.runtime import op
from rerankd.evaluation import bm25
from rerankd.evaluation.collection import EVERYDAY, read
from rerankd.prepare import prepare

_CANDIDATES = 50


def rounded(x: Any) -> Any:
    """The values of an array, or of a node, with 8 bits of mantissa."""
    stretched = x * np.array(2**16 + 1, np.float32)
    return stretched - (stretched - x)


def round_everything() -> None:
    """Have `graph` build what bf16 computes, from now on."""
    bert: Any = graph._Bert
    linear, norm, attention, gelu = bert.linear, bert.norm, bert.attention, op.gelu

    def product(self: Any, x: Any, name: str, rows: int, columns: int) -> Any:
        whole = self.weights.array
        self.weights.array = lambda *shape: rounded(whole(*shape))
        try:
            return rounded(linear(self, rounded(x), name, rows, columns))
        finally:
            self.weights.array = whole

    bert.linear = product
    bert.norm = lambda self, x, name: rounded(norm(self, rounded(x), name))
    bert.attention = lambda self, *parts: rounded(attention(self, *parts))
    op.gelu = lambda *arguments: rounded(gelu(*arguments))


def vectors(path: Path, texts: list[str]) -> Any:
    """Unit vectors of texts, one by one."""
    encoder = Encoder(path, "mean", threads=2, wanted="f32")
    found = [
        encoder.forward(*padded([encoder.vocabulary.text(ids)]))[0] for ids in encoder.vocabulary.ids(texts)
    ]
    return np.stack([row / np.linalg.norm(row) for row in found])


def main() -> None:
    model = prepare(Settings(model="builtin:e5"))
    collection = read(EVERYDAY)
    first = bm25.rank(collection, _CANDIDATES, lambda *_: None)
    queries, documents = list(collection.queries), list(collection.documents)
    scoring = model.scoring
    texts = [scoring.query_prefix + collection.queries[one] for one in queries]
    texts += [scoring.document_prefix + collection.documents[one] for one in documents]
    exact = vectors(model.path, texts)
    round_everything()
    rough = vectors(model.path, texts)
    place = {one: len(queries) + at for at, one in enumerate(documents)}
    taus, moved = [], []
    for at, query in enumerate(queries):
        rows = [place[one] for one in first[query]]
        right, other = exact[rows] @ exact[at], rough[rows] @ rough[at]
        taus.append(float(kendalltau(right, other).statistic))
        moved.append(float(np.abs(right - other).max()))
    low, high = scoring.transform.low, scoring.transform.high
    each = statistics.fmean(len(first[one]) for one in queries)
    print(f"{len(queries)} queries, {each:.0f} candidates each")
    print(f"Kendall's tau: mean {statistics.fmean(taus):.4f}, least {min(taus):.4f}")
    print(f"largest change of a cosine {max(moved):.4f}, of a score {max(moved) / (high - low):.4f}")


if __name__ == "__main__":
    main()
