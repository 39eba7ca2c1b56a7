"""Load a model as a scorer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from rerankd.backends.onnx import exact_sums
from rerankd.backends.onnx.causal import CausalModel
from rerankd.backends.onnx.graph import Precision
from rerankd.backends.worker.methods import Logits
from rerankd.backends.worker.scorer import Scorer


def load(path: Path, labels: Sequence[int], max_length: int, *, threads: int, precision: Precision) -> Scorer:
    """Load a causal model. `labels` are its label ids, () if it has a rank head instead.

    Raises ModelFileError if the file is damaged, InexactSums if this CPU can't compute int8, and ONNX
    Runtime's errors.
    """
    if precision == "int8":
        exact_sums.check()
    network = CausalModel(path, labels, threads=threads, precision=precision)
    network.about = f"ONNX Runtime {onnxruntime.__version__}, {precision}, {threads} threads"
    return Scorer(network, max_length, Logits())
