"""(pure) What a model has to compute, and which share of the machine's peak that is.

A matrix of r x c weights takes 2rc floating-point operations a token: a multiplication and an addition for
each weight. Attention adds, in each block and for each token, a product with the keys and one with the values
of all n tokens: 2 * 2 * n * (heads x width of a head). A causal model looks at half of them on average.

    FLOPs a token = 2 * (weights of the matrices in the blocks) + 4 * blocks * n * attention width [/ 2]

Embeddings are looked up and not multiplied; heads, norms and activations are below one per cent, and are left
out. Where attention is local in some blocks (ModernBERT), that term is an upper bound.
"""

from __future__ import annotations

from rerankd.formats.metadata import ModelMetadata


def per_token(metadata: ModelMetadata, tokens: float, *, causal: bool) -> float:
    """FLOPs for one token of a text of `tokens` tokens; 0 where the file does not tell."""
    if not metadata.block_weights:
        return 0.0
    attention = 4 * metadata.block_count * metadata.attention_width * tokens
    return 2 * metadata.block_weights + (attention / 2 if causal else attention)


def share(
    metadata: ModelMetadata, *, causal: bool, pairs_per_s: float, tokens_per_pair: float, peak_flops: float
) -> float | None:
    """The share of the peak that so many pairs a second take; None where it can't be told.

    `tokens_per_pair` is what the model reads for a pair. Tokens that are read once for several pairs (a
    judge's prompt, an embedder's query) count as far as the server counts them.
    """
    work = per_token(metadata, tokens_per_pair, causal=causal) * tokens_per_pair * pairs_per_s
    return work / peak_flops if work and peak_flops else None
