"""A tiny quantised model for the smoke test, with pseudo-random weights and its known scores.

It exercises the kernels that quantised rerankers use: Q8_0, Q4_K and Q6_K matrices, a prompt processed in one
batch, and a KV cache reused for the next prompt. The scores have no meaning, but every correct llama.cpp
returns the same ones. `ANSWERS` were computed in float32 from the same weights, without llama.cpp
(tests/test_smoke.py repeats this).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a model. `kinds` are the types of its matrices: two that layers have in turns, and one
    that some matrices have in each layer."""

    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    layers: int
    window: int
    kinds: tuple[str, str, str]


SMOKE = Sizes(256, 4, 2, 512, 2, 256, ("Q4_K", "Q8_0", "Q6_K"))
WIDTH, HEADS, KV_HEADS, LAYERS, WINDOW = SMOKE.width, SMOKE.heads, SMOKE.kv_heads, SMOKE.layers, SMOKE.window
VOCABULARY = 320
EPSILON, ROPE_BASE = 1e-5, 10000.0
LABELS = (300, 301)
_PREFIX = [(7 * at) % 256 for at in range(48)]
PROMPTS = (
    [*_PREFIX, *((13 * at + 5) % 256 for at in range(40))],
    [*_PREFIX, *((29 * at + 11) % 256 for at in range(64))],
)
"""Two prompts with a common prefix, as those of a causal-LM reranker."""
ANSWERS = (0.337170, 1.669552)
"""For each prompt, logit(LABELS[0]) - logit(LABELS[1]) after its last token."""
# llama.cpp rounds activations to 8 bits for products with quantised weights: errors up to 0.012 were seen.
# With the same weights unpacked to F32, it is within 0.001.
TOLERANCE = 0.05

Bytes = NDArray[np.uint8]
# Per type: bytes per block, weights per block, and scales with fixed values (offset, F16). Other bytes are
# pseudo-random. In F16 all weights are equal.
_BLOCKS: dict[str, tuple[int, int, tuple[tuple[int, float], ...]]] = {
    "F16": (2, 1, ((0, 0.0006),)),
    "Q8_0": (34, 32, ((0, 0.0006),)),
    "Q6_K": (210, 256, ((208, 0.000035),)),
    "Q5_K": (176, 256, ((0, 0.00015), (2, 0.001125))),
    "Q4_K": (144, 256, ((0, 0.00015), (2, 0.001125))),
    "Q4_0": (18, 32, ((0, 0.0006),)),
}
KINDS = frozenset(_BLOCKS)
"""The types of matrices that a model can have."""


def tensors(sizes: Sizes = SMOKE) -> Iterator[tuple[str, str, Bytes]]:
    """Yield each quantised matrix: name, type, and bytes in shape (rows, bytes per row)."""
    width, hidden = sizes.width, sizes.feed_forward
    kv = width // sizes.heads * sizes.kv_heads
    yield matrix("token_embd", "Q8_0", VOCABULARY, width)
    yield matrix("output", sizes.kinds[2], VOCABULARY, width)
    for layer in range(sizes.layers):
        kind, other = sizes.kinds[layer % 2], sizes.kinds[2]
        yield matrix(f"blk.{layer}.attn_q", kind, width, width)
        yield matrix(f"blk.{layer}.attn_k", kind, kv, width)
        yield matrix(f"blk.{layer}.attn_v", other, kv, width)
        yield matrix(f"blk.{layer}.attn_output", kind, width, width)
        yield matrix(f"blk.{layer}.ffn_gate", kind, hidden, width)
        yield matrix(f"blk.{layer}.ffn_up", kind, hidden, width)
        yield matrix(f"blk.{layer}.ffn_down", other, width, hidden)


def norms(sizes: Sizes = SMOKE) -> Iterator[str]:
    """Yield the names of the norms; all their weights are 1."""
    yield "output_norm.weight"
    for layer in range(sizes.layers):
        yield from (f"blk.{layer}.attn_norm.weight", f"blk.{layer}.ffn_norm.weight")


def write(path: Path, sizes: Sizes = SMOKE) -> None:
    """Write the model as a GGUF file of architecture llama. Raises OSError."""
    import gguf  # deferred: slow to import, and only smoke tests need it

    out: Any = gguf.GGUFWriter(path, "llama")
    out.add_name("rerankd smoke test")
    out.add_context_length(sizes.window)
    out.add_embedding_length(sizes.width)
    out.add_block_count(sizes.layers)
    out.add_feed_forward_length(sizes.feed_forward)
    out.add_head_count(sizes.heads)
    out.add_head_count_kv(sizes.kv_heads)
    out.add_layer_norm_rms_eps(EPSILON)
    out.add_rope_freq_base(ROPE_BASE)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("default")
    out.add_token_list([chr(0x100 + at) for at in range(VOCABULARY)])
    out.add_token_types([gguf.TokenType.NORMAL] * VOCABULARY)
    out.add_token_merges([f"{chr(0x100)} {chr(0x101)}"])
    out.add_eos_token_id(VOCABULARY - 1)
    out.add_add_bos_token(False)
    for name in norms(sizes):
        out.add_tensor(name, np.ones(sizes.width, np.float32))
    for name, kind, rows in tensors(sizes):
        out.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType[kind])
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def matrix(name: str, kind: str, rows: int, columns: int) -> tuple[str, str, Bytes]:
    """Return the name, type and bytes [rows, bytes per row] of a matrix with pseudo-random weights."""
    block_bytes, block_weights, scales = _BLOCKS[kind]
    blocks = rows * columns // block_weights
    drawn = hashlib.shake_256(name.encode()).digest(blocks * block_bytes)
    data: Bytes = np.frombuffer(drawn, np.uint8).reshape(blocks, block_bytes).copy()
    for offset, value in scales:
        data[:, offset : offset + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
    return f"{name}.weight", kind, data.reshape(rows, -1)
