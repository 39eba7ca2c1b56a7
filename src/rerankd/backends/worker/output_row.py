"""The rows whose products with the last token's state are the raw score of a causal model.

logit(first label) - logit(second label) = state · (row of the first - row of the second), so one row is
enough, and no logit of another token is computed. If the model caps its logits (Gemma 2), both rows are
needed, because each logit is capped before the subtraction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rerankd.errors import ModelFileError
from rerankd.formats.weights import Floats, Weights


class Output(NamedTuple):
    """The score is the product of the state and one row, or the difference of two rows' products. `rows`
    [1 or 2, width]. With `cap`, each product becomes cap · tanh(product / cap)."""

    rows: Floats
    cap: float = 0.0

    def scores(self, states: Floats) -> Floats:
        """Return the scores [texts] of the states [texts, width] of each text's last token."""
        products = states @ self.rows.T
        if self.cap:
            products = self.cap * np.tanh(products / self.cap)
        found: Floats = products[:, 0] - products[:, 1] if len(self.rows) == 2 else products[:, 0]
        return found


def output_of(weights: Weights, labels: Sequence[int]) -> Output:
    """Return the output for one or two label ids, relevant first; for () that of the rank head.

    The rows are those of the output matrix, or of the embedding matrix if the model has no output matrix
    (tied embeddings). Raises ModelFileError if a tensor is missing, or if the rank head has another layer.
    """
    if weights.has("cls.weight"):
        raise ModelFileError(
            f"{weights.path}: it has the unknown tensor cls.weight ({weights.architecture})."
        )
    width: int = weights.key("embedding_length")
    if not labels:
        return Output(weights.array("cls.output.weight", (1, width)))
    name = "output.weight" if weights.has("output.weight") else "token_embd.weight"
    rows = weights.table(name, weights.rows(name), width)[np.array(labels)]
    cap: float = weights.key("final_logit_softcapping", 0.0)
    return Output(rows[:1] - rows[1:] if len(rows) == 2 and not cap else rows, cap)
