"""Checkpoints of real sizes for tests: the shapes of a golden encoder, enlarged; their weights are a hole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import checkpoints
import late

_WIDTH, _INNER = 32, 48  # of the golden encoders
_FIRST_LAYER = re.compile(r"\.layers?\.0\.")


def write(name: str, folder: Path, blocks: int, width: int) -> Path:
    """The golden encoder `name` with this number of layers and this width, in a folder."""
    checkpoints.copy(
        name, folder, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=blocks,
        num_attention_heads=width // 64, pooler_hidden_size=None,
    )  # fmt: skip
    weights = folder / "model.safetensors"
    shapes: dict[str, list[int]] = {}
    for own, (_, shape, _) in checkpoints.read(weights).items():
        enlarged = [_enlarged(own, size, width) for size in shape]
        if _FIRST_LAYER.search(own):
            shapes |= {own.replace(".0.", f".{layer}."): enlarged for layer in range(blocks)}
        elif not re.search(r"\.layers?\.\d", own):
            shapes[own] = enlarged
    checkpoints.write_hollow(weights, shapes)
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == blocks
    return folder


def _enlarged(name: str, size: int, width: int) -> int:
    if "qkv" in name and size == 3 * _WIDTH:
        return 3 * width
    return {_WIDTH: width, _INNER: 4 * width, 2 * _INNER: 8 * width}.get(size, size)


def of_class(kind: str, model_type: str, folder: Path) -> Path:
    """A checkpoint of a class that rerankd does not know, whose code is in its own files."""
    checkpoints.copy("qwen3-headless", folder)
    config = {
        "architectures": [kind], "model_type": model_type, "hidden_size": 2048, "num_hidden_layers": 28,
        "auto_map": {"AutoModelForCausalLM": f"modeling.{kind}"}, "vocab_size": 1664,
        "max_position_embeddings": 8192,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    checkpoints.write_hollow(folder / "model.safetensors", {"model.embed_tokens.weight": [1664, 2048]})
    return folder


def nemotron(folder: Path, blocks: int = 16, width: int = 2048) -> Path:
    """llama-nemotron-rerank, with a small vocabulary."""
    checkpoints.copy("bert-pairs", folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    config = {
        "architectures": ["LlamaBidirectionalForSequenceClassification"], "model_type": "llama_bidirec",
        "auto_map": {"AutoModel": "llama_bidirectional_model.LlamaBidirectionalModel"}, "pooling": "avg",
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": blocks,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
        "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "vocab_size": rows,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    keys = width // 4
    layer = {
        "self_attn.q_proj": [width, width], "self_attn.k_proj": [keys, width],
        "self_attn.v_proj": [keys, width], "self_attn.o_proj": [width, width],
        "mlp.gate_proj": [4 * width, width], "mlp.up_proj": [4 * width, width],
        "mlp.down_proj": [width, 4 * width], "input_layernorm": [width], "post_attention_layernorm": [width],
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": [rows, width], "model.norm.weight": [width]}
    shapes |= {f"model.layers.{at}.{name}.weight": one for at in range(blocks) for name, one in layer.items()}
    checkpoints.write_hollow(folder / "model.safetensors", shapes | {"score.weight": [1, width]})
    return folder


def late_interaction(name: str) -> Callable[[Path, int, int], Path]:
    """How to write the late-interaction checkpoint `name` with a number of layers and a width."""

    def write(folder: Path, blocks: int, width: int) -> Path:
        shapes = late.enlarged(name, folder, blocks, width)
        checkpoints.write_hollow(folder / "model.safetensors", shapes)
        return folder

    return write


def vision(folder: Path, blocks: int, width: int, *, is_jina: bool = False) -> Path:
    """Qwen3-VL-Reranker or jina-reranker-m0, with a small vocabulary and a part of their tensors."""
    checkpoints.copy("qwen3-headless", folder)
    said = json.loads((folder / "tokenizer.json").read_text())
    marks = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
    first = said["added_tokens"][0]
    said["added_tokens"] += [{**first, "id": 1605 + at, "content": text} for at, text in enumerate(marks)]
    said["model"]["vocab"] |= {"yes": 1610, "no": 1611}
    (folder / "tokenizer.json").write_text(json.dumps(said))
    text = {
        "hidden_size": width, "num_hidden_layers": blocks, "max_position_embeddings": 32768,
        "num_attention_heads": 16, "vocab_size": 1664,
    }  # fmt: skip
    shapes = {"model.language_model.embed_tokens.weight": [1664, width]}
    if is_jina:
        config = {"architectures": ["JinaVLForRanking"], "model_type": "qwen2_vl", **text}
        shapes |= {"score.0.weight": [width, width], "score.2.weight": [1, width]}
    else:
        config = {"architectures": ["Qwen3VLForConditionalGeneration"], "text_config": text}
        shapes |= {"lm_head.weight": [1664, width]}
    (folder / "config.json").write_text(json.dumps(config))
    processor = {"image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": 14 if is_jina else 16}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    checkpoints.write_hollow(folder / "model.safetensors", shapes)
    return folder


def jina_m0(folder: Path, blocks: int = 28, width: int = 1536) -> Path:
    """jina-reranker-m0."""
    return vision(folder, blocks, width, is_jina=True)
