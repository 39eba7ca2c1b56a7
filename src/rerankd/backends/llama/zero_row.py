"""(pure) The logit of a single token from llama.cpp: zero the row of an unused token in the output matrix.

llama-server returns probabilities, from which only differences of logits follow. If the output matrix has a
row of zeros, the logit of that row's token is 0 (final soft caps and scales keep it 0), so the difference of
the other label's logit and this one is the other label's logit itself. Zero bytes are the number 0 in every
ggml type. The engine therefore loads a copy of the model's file in which one row is zero; prefix cache and
batches work as for two labels.

The token must be unused: no text is tokenized to it, and the template does not contain it. Up to 4B, most
models use the output matrix as their embedding matrix too, so that the row is also the token's embedding.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerankd.domain import Recipe, Refusal
from rerankd.formats.patch import Patch

if TYPE_CHECKING:
    from rerankd.formats.metadata import ModelMetadata

# Tokens that llama.cpp takes for the end of an answer, or whose name means "unknown": with these it may treat
# a prompt or its answer differently. All others are only ids to it.
_MEANINGFUL = re.compile(
    r"eos|eot|end|eom|fim|im_end|return|call|turn\||unk|<EOT>|\[SEP\]|</s>", re.IGNORECASE
)
_OTHER_FILE = "use another conversion of the model"


@dataclass(frozen=True, slots=True)
class ZeroRow:
    """The token whose row is zero, and the change of the file that makes it so."""

    token: int
    patch: Patch


def plan(metadata: ModelMetadata, recipe: Recipe) -> ZeroRow | Refusal | None:
    """The row to zero for a recipe with a single label, or why there is none; None for other recipes."""
    if recipe.method != "causal_lm" or len(recipe.labels) != 1:
        return None
    matrix = metadata.output_matrix
    if matrix is None:
        return Refusal(
            "its output matrix (output.weight or token_embd.weight) has an unknown form", _OTHER_FILE
        )
    if metadata.has_output_bias:
        return Refusal(
            "it adds a bias to each logit (output.bias), so no row of its output matrix yields the logit 0",
            _OTHER_FILE,
        )
    token = unused_token(metadata, recipe)
    if token is None or token >= matrix.rows:
        return Refusal(
            "its score is the logit of a single token, which llama.cpp yields only if the vocabulary has an "
            "unused token, and it has none",
            _OTHER_FILE,
        )
    words = f"the row of the unused token {token} is zero in the output matrix"
    offset = matrix.offset + token * matrix.row_bytes
    return ZeroRow(token, Patch(f"zero-{token}", matrix.part, offset, matrix.row_bytes, words))


def unused_token(metadata: ModelMetadata, recipe: Recipe) -> int | None:
    """The id of a token that is in no prompt: padding of the vocabulary, or else a control token; None if
    there is none."""
    labels = {metadata.token_id(label) for label in recipe.labels}
    if metadata.unused_token is not None and metadata.unused_token not in labels:
        return metadata.unused_token
    # The tokens that are put around a text, and the ends of an answer.
    added = {metadata.bos_id, metadata.eos_id, metadata.sep_id, metadata.unknown_id}
    return max(
        (
            token
            for text, token in metadata.control_tokens.items()
            if token not in added | labels and text not in recipe.template and not _MEANINGFUL.search(text)
        ),
        default=None,
    )
