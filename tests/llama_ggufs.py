"""Write a Llama checkpoint as GGUF, as llama.cpp's converter does: rows of queries and keys reordered, the
scaling of rotary positions as a tensor, and no `score` row."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np

import checkpoints
from rerankd.formats.families.qwen import LAYER

_TYPES = {"Q8_0": gguf.GGMLQuantizationType.Q8_0, "F32": gguf.GGMLQuantizationType.F32}


def convert(
    folder: Path, target: Path, *, arch: str = "llama", kind: str = "F32", name: str = "Model", **keys: Any
) -> Path:
    """Write the body of the checkpoint in `folder` to `target`. `keys` are keys of the architecture."""
    config = json.loads((folder / "config.json").read_text())
    held = checkpoints.read(folder / "model.safetensors")
    out = gguf.GGUFWriter(target, arch)
    out.add_name(name)
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_head_count(config["num_attention_heads"])
    out.add_head_count_kv(config["num_key_value_heads"])
    out.add_key_length(config["head_dim"])
    out.add_value_length(config["head_dim"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    out.add_rope_dimension_count(config["head_dim"])
    for key, value in keys.items():
        {bool: out.add_bool, int: out.add_uint32}[type(value)](f"{arch}.{key.replace('__', '.')}", value)
    _add_vocabulary(out, config["vocab_size"])
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}

    def add(ours: str, own: str, part: str = "") -> None:
        _, shape, data = held[f"{own}.weight"]
        values = np.frombuffer(data, np.float32).reshape(shape)
        if part in heads:
            values = values.reshape(heads[part], 2, -1, shape[1]).swapaxes(1, 2).reshape(shape)
        stored = _TYPES[kind] if len(shape) == 2 and shape[1] % 32 == 0 else _TYPES["F32"]
        out.add_tensor(f"{ours}.weight", gguf.quants.quantize(values, stored), raw_dtype=stored)

    add("token_embd", "model.embed_tokens")
    add("output_norm", "model.norm")
    if "lm_head.weight" in held:
        add("output", "lm_head")
    for at in range(config["num_hidden_layers"]):
        for ours, own in LAYER.items():
            add(f"blk.{at}.{ours}", f"model.layers.{at}.{own}", ours)
    out.add_tensor("rope_freqs.weight", divisors(config))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return target


def write_row(folder: Path, target: Path) -> Path:
    """Write the `score` row of a checkpoint as a head beside a GGUF file."""
    held = checkpoints.read(folder / "model.safetensors")
    checkpoints.write(target, {"score.weight": held["score.weight"]})
    return target


def divisors(config: dict[str, Any]) -> Any:
    """What LlamaModel.generate_extra_tensors of llama.cpp's converter writes."""
    rope, found = config["rope_parameters"], []
    low, high = (
        rope["original_max_position_embeddings"] / rope[f"{name}_freq_factor"] for name in ("low", "high")
    )
    for at in range(0, config["head_dim"], 2):
        length = 2 * math.pi * rope["rope_theta"] ** (at / config["head_dim"])
        smooth = (rope["original_max_position_embeddings"] / length - rope["low_freq_factor"]) / (
            rope["high_freq_factor"] - rope["low_freq_factor"]
        )
        part = 1 / ((1 - smooth) / rope["factor"] + smooth)
        found.append(1.0 if length < high else rope["factor"] if length > low else part)
    return np.array(found, np.float32)


def _add_vocabulary(out: gguf.GGUFWriter, size: int) -> None:
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("llama-bpe")
    out.add_token_list([f"t{at}" for at in range(size)])
    out.add_token_types([gguf.TokenType.NORMAL] * size)
    out.add_token_merges(["t 0"])
    out.add_bos_token_id(2)
    out.add_eos_token_id(3)
