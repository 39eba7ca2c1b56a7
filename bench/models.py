"""Creates random causal LMs of real shapes for speed measurements: python bench/models.py FOLDER

They have the shape of Qwen3-Reranker-0.6B in Q8_0 (or another type), with and without the rank head that
llama.cpp's converter writes. The tokenizer and metadata are those of the golden models (tests/golden); the
vocabulary is padded to its real size.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from rerankd.backends.llama.build import tiny

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
LAYERS, WIDTH, FEED_FORWARD, HEADS, KV_HEADS, HEAD_WIDTH, VOCABULARY = 28, 1024, 3072, 16, 8, 128, 151_936
_F16, _Q8_0 = gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q8_0
_FILE_TYPES = {"Q4_K": gguf.LlamaFileType.MOSTLY_Q4_K_M}
_SIZES = {
    "block_count": LAYERS,
    "embedding_length": WIDTH,
    "feed_forward_length": FEED_FORWARD,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.key_length": HEAD_WIDTH,
    "attention.value_length": HEAD_WIDTH,
    "context_length": 8192,
}


def qwen3(folder: Path, *, headed: bool, kind: gguf.GGMLQuantizationType = _Q8_0) -> Path:
    """Return the path of the file; create it if it is missing (640 MB, a few seconds). In F16 its weights are
    normally distributed, so that 8 bits lose something."""
    name = "qwen3-headed" if headed else "qwen3-headless"
    target = folder / f"{name}-0.6b-{kind.name.lower()}.gguf"
    if target.exists():
        return target
    reader = gguf.GGUFReader(GOLDEN / f"{name}.gguf")
    part = target.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "qwen3")
    for field in reader.fields.values():
        _copy(writer, field, kind)
    random = np.random.default_rng(1)
    _add(writer, "token_embd.weight", random, VOCABULARY, WIDTH, kind)
    for layer in range(LAYERS):
        _add_layer(writer, f"blk.{layer}", random, kind)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    if headed:
        writer.add_tensor("cls.output.weight", random.normal(0, 0.02, (2, WIDTH)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return part.rename(target)


def _copy(writer: Any, field: Any, kind: gguf.GGMLQuantizationType) -> None:
    key = field.name
    if key.startswith("GGUF.") or key == "general.architecture":
        return
    value = field.contents()
    short = key.removeprefix("qwen3.")
    if short in _SIZES:
        value = _SIZES[short]
    elif key == "general.file_type":
        value = int(_FILE_TYPES.get(kind.name) or gguf.LlamaFileType[f"MOSTLY_{kind.name}"])
    elif key == "tokenizer.ggml.tokens":
        value = value + [f"<unused{at}>" for at in range(len(value), VOCABULARY)]
    elif key == "tokenizer.ggml.token_type":
        value = value + [int(gguf.TokenType.UNUSED)] * (VOCABULARY - len(value))
    of = field.types[0]
    writer.add_key_value(key, value, of, field.types[-1] if of == gguf.GGUFValueType.ARRAY else None)


def _add_layer(writer: Any, name: str, random: np.random.Generator, kind: gguf.GGMLQuantizationType) -> None:
    query, key = HEADS * HEAD_WIDTH, KV_HEADS * HEAD_WIDTH
    for part, rows, columns in (
        ("attn_q", query, WIDTH),
        ("attn_k", key, WIDTH),
        ("attn_v", key, WIDTH),
        ("attn_output", WIDTH, query),
        ("ffn_gate", FEED_FORWARD, WIDTH),
        ("ffn_up", FEED_FORWARD, WIDTH),
        ("ffn_down", WIDTH, FEED_FORWARD),
    ):
        _add(writer, f"{name}.{part}.weight", random, rows, columns, kind)
    for part, size in (
        ("attn_norm", WIDTH),
        ("ffn_norm", WIDTH),
        ("attn_q_norm", HEAD_WIDTH),
        ("attn_k_norm", HEAD_WIDTH),
    ):
        writer.add_tensor(f"{name}.{part}.weight", np.ones(size, np.float32))


def _add(
    writer: Any, name: str, random: np.random.Generator, rows: int, columns: int,
    kind: gguf.GGMLQuantizationType,
) -> None:  # fmt: skip
    """Add a random matrix: normal in F16; in Q8_0 blocks of one half-precision scale and 32 signed bytes; in
    other types as in the smoke test of engines."""
    if kind not in (_F16, _Q8_0):
        writer.add_tensor(name, tiny.matrix(name, kind.name, rows, columns)[2], raw_dtype=kind)
        return
    if kind == _F16:
        values = random.standard_normal((rows, columns), np.float32) * 0.03
        writer.add_tensor(name, values.astype(np.float16))
        return
    blocks = np.empty((rows, columns // 32, 34), np.uint8)
    blocks[..., :2] = np.frombuffer(np.float16(0.0004).tobytes(), np.uint8)
    blocks[..., 2:] = random.integers(0, 256, (rows, columns // 32, 32), np.uint8)
    raw = blocks.reshape(rows, -1)
    writer.add_tensor(name, raw, raw_dtype=kind)


if __name__ == "__main__":
    home = Path(sys.argv[1])
    home.mkdir(parents=True, exist_ok=True)
    for has_head in (True, False):
        print(qwen3(home, headed=has_head))
