"""Load a model as a scorer: encoders and causal models have different graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rerankd.backends.openvino.causal import CausalModel, TokenModel
from rerankd.backends.openvino.encoder import Encoder
from rerankd.backends.openvino.precision import Precision
from rerankd.backends.token_vectors import TokenVectors
from rerankd.backends.worker.scorer import Network, Scorer, method_of
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
    token_vectors: TokenVectors | None = None,
    reads_blocks: bool = False,
) -> Scorer:
    """Load and compile a model. `labels` are a causal model's label ids, () if it has a rank head instead,
    None for an encoder. With `token_vectors`, the encoder scores by late interaction; with `reads_blocks` it
    is a listwise causal model.

    Raises ModelFileError if the file is damaged, and OpenVINO's errors.
    """
    network: Network
    if reads_blocks:
        network = TokenModel(path, (), threads=threads, precision=precision, compressed=compressed, why=why)
    elif labels is not None:
        network = CausalModel(
            path, labels, threads=threads, precision=precision, compressed=compressed, why=why
        )
    else:
        network = Encoder(path, pooling, threads=threads, precision=precision, compressed=compressed, why=why)
    returns_scores = labels is not None or pooling == "rank"
    method = method_of(token_vectors, returns_scores=returns_scores, reads_blocks=reads_blocks)
    return Scorer(network, max_length, method)
