"""Load a model as a scorer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from rerankd.backends.onnx import exact_sums
from rerankd.backends.onnx.causal import CausalModel
from rerankd.backends.onnx.encoder import Encoder
from rerankd.backends.onnx.graph import Precision
from rerankd.backends.worker.scorer import Scorer, method_of
from rerankd.domain import Pooling


def load(
    path: Path,
    pooling: Pooling,
    labels: Sequence[int] | None,
    max_length: int,
    *,
    threads: int,
    precision: Precision,
) -> Scorer:
    """Load a model. `labels` are a causal model's label ids, () if it has a rank head instead, None for an
    encoder.

    Raises ModelFileError if the file is damaged, InexactSums if this CPU can't compute int8, and ONNX
    Runtime's errors.
    """
    if precision == "int8":
        exact_sums.check()
    network: CausalModel | Encoder
    if labels is not None:
        network = CausalModel(path, labels, threads=threads, precision=precision)
    else:
        network = Encoder(path, pooling, threads=threads, precision=precision)
    network.about = f"ONNX Runtime {onnxruntime.__version__}, {precision}, {threads} threads"
    method = method_of(None, returns_scores=labels is not None or pooling == "rank")
    return Scorer(network, max_length, method)
