"""The row whose product with the last token's state is the raw score of a causal model.

logit(first label) - logit(second label) = state · (row of the first - row of the second), so one row is
enough, and no logit of another token is computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rerankd.formats.weights import Floats, Weights


def output_row(weights: Weights, labels: Sequence[int]) -> Floats:
    """Return the row [width] for one or two label ids, relevant first; for () that of the rank head.

    The rows are those of the output matrix, or of the embedding matrix if the model has no output matrix
    (tied embeddings). Raises ModelFileError if a tensor is missing.
    """
    width: int = weights.key("embedding_length")
    if not labels:
        return weights.array("cls.output.weight", (1, width)).reshape(width)
    name = "output.weight" if weights.has("output.weight") else "token_embd.weight"
    found = weights.table(name, weights.rows(name), width)[np.array(labels)]
    row: Floats = found[0] - found[1] if len(found) == 2 else found[0]
    return row
