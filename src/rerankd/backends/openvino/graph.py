"""Build the OpenVINO graph of a model's forward pass from its weights.

Inputs: `embeddings` f32 [texts, tokens, width], before the embedding norm, and `mask` f32 [texts, 1, 1,
tokens], 0 for a token and a large negative number for padding. Output: f32 [texts, 1], the rank head's logit,
[texts, width], the pooled embedding, or [texts, tokens, width], a vector for each token (neither normalised).
"""

from __future__ import annotations

import numpy as np

from rerankd.backends.openvino.architectures import ARCHITECTURES
from rerankd.backends.openvino.runtime import op, ov
from rerankd.backends.worker.embedder import embedding_width
from rerankd.domain import Pooling
from rerankd.formats.weights import Weights


def build(weights: Weights, pooling: Pooling, *, compressed: bool = False) -> ov.Model:
    """Build the graph of a model file. `pooling` is `rank` for the rank head, else how an embedding is
    pooled.

    `compressed` stores matrices as 8-bit integers with a scale per 32 weights, like Q8_0: 0.8 GB instead of
    2.5 GB for BERT-large's shape, at about the same speed with AVX2. Raw scores change by some hundredths.

    Raises ModelFileError if a tensor or a key is missing.
    """
    width = embedding_width(weights)
    embeddings = op.parameter([-1, -1, width], np.float32, name="embeddings")
    mask = op.parameter([-1, 1, 1, -1], np.float32, name="mask")
    model = ARCHITECTURES[weights.architecture](weights, pooling, compressed=compressed)
    result = model.pooled(model.body(embeddings, mask), mask)
    result.output(0).get_tensor().set_names({"result"})
    return ov.Model([result], [embeddings, mask], weights.architecture)
