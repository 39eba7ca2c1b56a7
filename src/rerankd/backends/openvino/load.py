"""Load a model as a scorer: encoders and causal models have different graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rerankd.backends.openvino.causal import CausalModel
from rerankd.backends.openvino.encoder import Encoder
from rerankd.backends.openvino.precision import Precision
from rerankd.backends.worker.methods import Cosines, Logits
from rerankd.backends.worker.scorer import Network, Scorer
from rerankd.domain import Pooling


def load(
    path: Path,
    pooling: Pooling,
    labels: Sequence[int] | None,
    max_length: int,
    *,
    threads: int,
    precision: Precision = "f32",
    compressed: bool = False,
    why: str = "",
) -> Scorer:
    """Load and compile a model. `labels` are a causal model's label ids, () if it has a rank head instead,
    None for an encoder.

    Raises ModelFileError if the file is damaged, and OpenVINO's errors.
    """
    network: Network
    if labels is not None:
        network = CausalModel(
            path, labels, threads=threads, precision=precision, compressed=compressed, why=why
        )
    else:
        network = Encoder(path, pooling, threads=threads, precision=precision, compressed=compressed, why=why)
    is_vector = labels is None and pooling != "rank"
    return Scorer(network, max_length, Cosines() if is_vector else Logits())
