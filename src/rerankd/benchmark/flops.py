"""(pure) FLOPs of a model per token, and the share of the machine's peak FLOPS that a throughput reaches.

A matrix of r x c weights takes 2rc floating-point operations per token: one multiplication and one addition
per weight. Attention adds, in each block and for each token, a product with the keys and one with the values
of all n tokens: 2 * 2 * n * (heads x head width). A causal model attends to half of them on average.

    FLOPs per token = 2 * (weights of the matrices in the blocks) + 4 * blocks * n * attention width [/ 2]

Embeddings are looked up, not multiplied. The classifier, norms and activations are below 1 % and ignored. For
models with local attention in some blocks (ModernBERT), the attention term is an upper bound.
"""

from __future__ import annotations

from rerankd.formats.metadata import ModelMetadata


def per_token(metadata: ModelMetadata, tokens: float, *, causal: bool) -> float:
    """Return the FLOPs for one token of a text of `tokens` tokens; 0 if the file does not have the sizes."""
    if not metadata.block_weights:
        return 0.0
    attention = 4 * metadata.block_count * metadata.attention_width * tokens
    return 2 * metadata.block_weights + (attention / 2 if causal else attention)


def share(
    metadata: ModelMetadata, *, causal: bool, pairs_per_s: float, tokens_per_pair: float, peak_flops: float
) -> float | None:
    """Return the share of the peak FLOPS that a throughput of `pairs_per_s` reaches; None: unknown.

    `tokens_per_pair` are the tokens that the model processes per pair. Tokens processed once for several
    pairs (a causal LM's prompt prefix, an embedding model's query) count as the server reports them.
    """
    work = per_token(metadata, tokens_per_pair, causal=causal) * tokens_per_pair * pairs_per_s
    return work / peak_flops if work and peak_flops else None
