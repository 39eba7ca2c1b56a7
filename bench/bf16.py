"""Effect of bf16 on scores and ranking: python bench/bf16.py [--emulate]

Prints a table for the built-in model on the collection included in rerankd (each query's 20 best documents by
float32), and for the golden models on their golden pairs and on the queries of the trial at the first start
(see backends/openvino/trial.py). A swap is the largest difference of the float32 scores of two documents
whose order changes; rerankd uses bf16 if it is at most 0.01.

On a CPU with AMX or AVX512_BF16 the values are those of its arithmetic. On other CPUs, and with `--emulate`,
the graph rounds every input, weight and output of its products, normalizations and activations to bf16 (8
bits of mantissa) and sums in float32. Rounding is Veltkamp's (T. J. Dekker, 1971, "A floating-point technique
for extending the available precision"): with c = x (2^16 + 1), c - (c - x) is x with 24 - 16 bits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from rerankd import machine
from rerankd.backends.openvino import architecture, precision, trial
from rerankd.backends.openvino.encoder import Encoder
from rerankd.backends.openvino.precision import Precision
from rerankd.backends.openvino.runtime import op
from rerankd.backends.worker.methods import Cosines, Logits
from rerankd.backends.worker.passes import Reading, padded
from rerankd.backends.worker.scorer import Scorer
from rerankd.config import Settings
from rerankd.evaluation.collection import EVERYDAY, read
from rerankd.scoring import normalize
from rerankd.scoring.engine_input import Input
from rerankd.serving.prepare_model import Model, prepare
from support import GOLDEN, golden, golden_settings

_BEST = 20
_GOLDEN = ("xlmr-head", "roberta-head", "bert-pairs", "modernbert-head", "bert-embedder")
_THREADS = 2

Asked = Sequence[tuple[str, list[str]]]
Values = list[list[float]]


def rounded(x: Any) -> Any:
    """Round the values of an array or a node to 8 bits of mantissa."""
    stretched = x * np.array(2**16 + 1, np.float32)
    return stretched - (stretched - x)


@contextmanager
def rounding() -> Iterator[None]:
    """Make the graph compute as bf16 does."""
    encoder: Any = architecture.Architecture
    linear, norm, attention, gelu = encoder.linear, encoder.norm, encoder.attention, op.gelu

    def product(self: Any, x: Any, name: str, rows: int, columns: int) -> Any:
        whole = self.weights.array
        self.weights.array = lambda *shape: rounded(whole(*shape))
        try:
            return rounded(linear(self, rounded(x), name, rows, columns))
        finally:
            self.weights.array = whole

    encoder.linear = product
    encoder.norm = lambda self, x, name: rounded(norm(self, rounded(x), name))
    encoder.attention = lambda self, *parts: rounded(attention(self, *parts))
    op.gelu = lambda *arguments: rounded(gelu(*arguments))
    yield
    encoder.linear, encoder.norm, encoder.attention, op.gelu = linear, norm, attention, gelu


def both(model: Model, values: Callable[[Encoder], Values], *, emulate: bool) -> tuple[Values, Values]:
    """Return a model's values in float32 and in bf16."""

    def encoder(kind: Precision) -> Encoder:
        return Encoder(model.path, model.recipe.pooling, threads=_THREADS, precision=kind)

    exact = values(encoder("f32"))
    if not emulate:
        return exact, values(encoder("bf16"))
    with rounding():
        return exact, values(encoder("f32"))


def best(exact: Values, rough: Values) -> tuple[Values, Values]:
    """Return the values of each query's best documents by float32."""
    tops = [np.argsort(-np.array(row), kind="stable")[:_BEST] for row in exact]

    def taken(rows: Values) -> Values:
        return [[row[at] for at in top] for row, top in zip(rows, tops, strict=True)]

    return taken(exact), taken(rough)


def line(name: str, model: Model, exact: Values, rough: Values) -> float:
    """Print a row of the table; returns the largest swap."""
    normalization = model.recipe.normalization

    def moved(change: Callable[[float], float]) -> float:
        pairs = zip((v for row in exact for v in row), (v for row in rough for v in row), strict=True)
        return max(abs(change(one) - change(other)) for one, other in pairs)

    flat = [value for row in exact for value in row]
    raw = moved(float)
    score = moved(lambda value: normalize.score(value, normalization))
    whole = [(one, other) for one, other in zip(exact, rough, strict=True) if len(one) > 1]
    taus = [float(kendalltau(one, other).statistic) for one, other in whole]
    swap = max(precision.largest_swap(one, other, normalization) for one, other in whole)
    span = max(flat) - min(flat)
    print(
        f"| {name} | {len(whole)} × {len(whole[0][0])} | {raw:.2g} ({100 * raw / span:.2g} %) | {score:.2g} "
        f"| {statistics.fmean(taus):.4f} ({min(taus):.3f}) | {swap:.2g} "
        f"| {'bf16' if swap <= precision.LARGEST_GAP else 'f32'} |",
        flush=True,
    )
    return swap


def golden_pairs(name: str) -> Asked:
    """Return the golden pairs that fit a model, by query."""
    pairs = {pair["id"]: pair for pair in json.loads((GOLDEN / "pairs.json").read_text(encoding="utf-8"))}
    asked: dict[str, list[str]] = {}
    for case in golden(name)["cases"]:
        if case.get("fits", True):
            pair = pairs[case["id"]]
            asked.setdefault(pair["query"], []).append(pair["document"])
    return [(query, texts) for query, texts in asked.items() if len(texts) > 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emulate", action="store_true", help="emulate bf16 even if this CPU has it")
    have = {"amx_bf16", "avx512_bf16"} & set(machine.instructions())
    emulate = parser.parse_args().emulate or not have
    arithmetic = "bf16 emulated" if emulate else f"bf16 by {' and '.join(sorted(have))}"
    print(f"{machine.cpu_name()}: {arithmetic}\n")
    print("| model | queries × documents | raw moves by (of its range) | score moves by "
          "| Kendall's tau, mean (least) | largest swap | taken |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    model = prepare(Settings(model="builtin:e5"))
    collection = read(EVERYDAY)
    texts = list(collection.documents.values())
    asked = [(query, texts) for query in collection.queries.values()]
    inputs = trial.inputs(model.metadata, model.recipe, asked)
    exact, rough = both(model, lambda one: cosines(one, inputs), emulate=emulate)
    line("built-in, the 20 best of each query", model, *best(exact, rough))
    with tempfile.TemporaryDirectory() as home:
        for name in _GOLDEN:
            model = prepare(golden_settings(name, Path(home)))
            for asked, what in (
                (golden_pairs(name), "golden pairs"),
                (trial.questions(4, 20), "queries of the trial"),
            ):
                line(f"{name}, {what}", model, *both(model, values(model, asked), emulate=emulate))


def values(model: Model, asked: Asked) -> Callable[[Encoder], Values]:
    """Return a function that computes an encoder's raw values."""
    inputs = trial.inputs(model.metadata, model.recipe, asked)
    is_head = model.recipe.method == "cross_encoder"

    def scored(encoder: Encoder) -> Values:
        scorer = Scorer(encoder, model.recipe.max_length, Logits() if is_head else Cosines())
        return [scorer.score(batch) for batch in inputs]

    return scored


def cosines(encoder: Encoder, asked: Sequence[Sequence[Input]]) -> Values:
    """Return the cosines of all queries with all documents; each text is encoded once."""
    queries = len(asked)
    texts = [own[0].question.ids for own in asked] + [one.whole for one in asked[0]]
    rows = np.stack([encoder.forward(*padded([Reading(ids, len(ids))]))[0] for ids in texts])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found: Values = (rows[:queries] @ rows[queries:].T).tolist()
    return found


if __name__ == "__main__":
    main()
