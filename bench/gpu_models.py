"""Random checkpoints of real shapes for bench/gpu.py, made on the device in seconds, without a network.

The classes and their sizes are transformers' own, so that the tensors have the right names. Each matrix is
drawn with a standard deviation of `gain` / sqrt(columns), so that the states keep their size through all
layers and the scores of different documents differ; with the usual 0.02 they are nearly constant.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpu_tokenizers
import torch
import transformers

ROOM_BYTES = 24 * 2**30
_PACKAGE = "sentence_transformers"
_LAYER_NORM = f"{_PACKAGE}.sentence_transformer.modules.layer_norm.LayerNorm"
_POOLING = f"{_PACKAGE}.sentence_transformer.modules.pooling.Pooling"


@dataclass(frozen=True)
class Shape:
    """A model to make: the class of transformers, the kind of its tokenizer, and its configuration. `name` is
    also the folder's, from which rerankd's catalog knows the model."""

    name: str
    of: str
    tokenizer: str
    config: Mapping[str, Any] = field(hash=False)
    max_length: int = 512
    gain: float = 1.0

    @property
    def is_causal(self) -> bool:
        return self.of.endswith("ForCausalLM")


def _bert(layers: int, width: int, inner: int, heads: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "vocab_size": 30522,
        "num_labels": 1,
    }


def _modern(layers: int, width: int, inner: int, heads: int) -> dict[str, Any]:
    sizes = _bert(layers, width, inner, heads)
    marks = {"cls_token_id": 50281, "sep_token_id": 50282, "pad_token_id": 50283, "bos_token_id": 50281}
    del sizes["num_labels"]
    return sizes | marks | {"vocab_size": 50368, "eos_token_id": 50282, "max_position_embeddings": 7999}


def _qwen(layers: int, width: int, inner: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": 151669,
        "max_position_embeddings": 40960,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "tie_word_embeddings": True,
        "eos_token_id": 151645,
        **more,
    }


_BERT, _ETTIN, _QWEN3 = "BertForSequenceClassification", "ModernBertModel", "Qwen3ForCausalLM"
SHAPES = {
    one.name: one
    for one in (
        Shape("bert-large", _BERT, "bert", _bert(24, 1024, 4096, 16), gain=2.0),
        Shape("ettin-reranker-32m-v1", _ETTIN, "modern-bert", _modern(10, 384, 576, 6), 7999),
        Shape("ettin-reranker-150m-v1", _ETTIN, "modern-bert", _modern(22, 768, 1152, 12), 7999),
        Shape("Qwen3-Reranker-0.6B", _QWEN3, "qwen", _qwen(28, 1024, 3072, 16, 8, head_dim=128), 8192),
        Shape(
            "Qwen3-Reranker-8B",
            _QWEN3,
            "qwen",
            _qwen(36, 4096, 12288, 32, 8, head_dim=128, tie_word_embeddings=False),
            8192,
        ),
    )
}
_XLMR = {"vocab_size": 50004, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
_MINILM = (6, 384, 1536, 6)
_CLASSIFIER = "ForSequenceClassification"
FAMILIES = {
    one.name: one
    for one in (
        Shape("bert", _BERT, "bert", _bert(*_MINILM), gain=2.0),
        Shape("xlm-roberta", f"XLMRoberta{_CLASSIFIER}", "roberta", _bert(*_MINILM) | _XLMR, gain=2.0),
        Shape(
            "distilbert",
            f"DistilBert{_CLASSIFIER}",
            "distilbert",
            {
                "n_layers": 6,
                "dim": 384,
                "hidden_dim": 1536,
                "n_heads": 6,
                "vocab_size": 30522,
                "num_labels": 1,
            },
            gain=2.0,
        ),
        Shape(
            "modernbert",
            f"ModernBert{_CLASSIFIER}",
            "modern-bert",
            {**_modern(*_MINILM), "num_labels": 1},
            2048,
        ),
        Shape(
            "mxbai-rerank-base-v2",
            "Qwen2ForCausalLM",
            "qwen",
            _qwen(24, 896, 4864, 14, 2, vocab_size=151936),
            8192,
        ),
    )
}
"""A model of each architecture. The catalog knows the causal one by its sizes."""
_SMALL = {"num_hidden_layers": 4, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
_SMALL_KV = {"num_key_value_heads": 2, "head_dim": 32}


def tiny(shape: Shape) -> Shape:
    """The same model with small layers. Its vocabulary and its prompt are as long as the real ones."""
    small = _SMALL | (_SMALL_KV if shape.is_causal else {})
    if "n_layers" in shape.config:
        small = {"n_layers": 4, "dim": 128, "hidden_dim": 256, "n_heads": 4}
    return Shape(
        shape.name, shape.of, shape.tokenizer, {**shape.config, **small}, shape.max_length, shape.gain
    )


def folder_for_models() -> Path:
    """A new folder: in memory if it has room for the largest model, else on the disk."""
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > ROOM_BYTES
    return Path(tempfile.mkdtemp(prefix="rerankd-gpu-", dir=memory if has_room else None))


def make(shape: Shape, home: Path, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write the checkpoint below `home` and return its folder; one that is there already is kept."""
    folder = home / shape.name
    if (folder / "tokenizer.json").exists():
        return folder
    folder.mkdir(parents=True)
    _write_weights(shape, folder, device, dtype)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": shape.max_length}
            | gpu_tokenizers.NAMES[shape.tokenizer]
        )
    )
    gpu_tokenizers.write(shape.tokenizer, folder / "tokenizer.json")
    return folder


def _write_weights(shape: Shape, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    model_class = getattr(transformers, shape.of)
    config = model_class.config_class(**shape.config)
    config.architectures, config.dtype = [shape.of], dtype
    with torch.device("meta"):
        model = model_class(config)
    held = dict(model.named_parameters())  # tied matrices are listed once
    config.save_pretrained(folder)
    random = torch.Generator(device).manual_seed(1)
    _save(folder / "model.safetensors", held, random, shape.gain, dtype)
    if shape.of == _ETTIN:
        _write_modules(folder, config.hidden_size, random, dtype)


def _save(
    file: Path, tensors: Mapping[str, torch.Tensor], random: torch.Generator, gain: float, dtype: torch.dtype
) -> None:
    """Draw and write the tensors of these shapes one by one. The file is mapped, so that the device copies to
    its pages directly; safetensors' own writer copies 16 GB twice."""
    table, end = {}, 0
    for name, one in tensors.items():
        size = one.numel() * dtype.itemsize
        table[name] = {
            "dtype": {2: "BF16", 4: "F32"}[dtype.itemsize],
            "shape": list(one.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    start = 8 + len(header)
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(start + end)
    whole = torch.from_file(str(file), shared=True, size=start + end, dtype=torch.uint8)
    for name, one in tensors.items():
        first, last = (start + at for at in table[name]["data_offsets"])
        whole[first:last].view(dtype).view(one.shape).copy_(_drawn(name, one.shape, random, gain).to(dtype))


def _drawn(name: str, size: torch.Size, random: torch.Generator, gain: float) -> torch.Tensor:
    drawn = torch.randn(size, generator=random, device=random.device)
    if len(size) == 1:
        is_norm_weight = "norm" in name.lower() and name.endswith("weight")
        return drawn * 0.05 + is_norm_weight
    return drawn * (gain / math.sqrt(size[1]))


def _write_modules(folder: Path, width: int, random: torch.Generator, dtype: torch.dtype) -> None:
    """The head that ettin's repositories have: pooling, dense with GELU, layer norm, dense."""
    dense = f"{_PACKAGE}.base.modules.dense.Dense"
    kinds = (
        f"{_PACKAGE}.base.modules.transformer.Transformer",
        _POOLING,
        dense,
        _LAYER_NORM,
        dense,
    )
    modules = []
    for at, kind in enumerate(kinds):
        path = f"{at}_{kind.rpartition('.')[2]}" if at else ""
        modules.append({"idx": at, "name": str(at), "path": path, "type": kind})
        (folder / path).mkdir(exist_ok=True)
    linear = {"in_features": width, "module_input_name": "sentence_embedding"}
    gelu, identity = "torch.nn.modules.activation.GELU", "torch.nn.modules.linear.Identity"
    first = {"out_features": width, "bias": False, "activation_function": gelu}
    last = {"out_features": 1, "bias": True, "activation_function": identity}
    described: dict[str, Any] = {
        "modules.json": modules,
        "config_sentence_transformers.json": {"model_type": "CrossEncoder", "activation_fn": identity},
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
        },
        "1_Pooling/config.json": {"embedding_dimension": width, "pooling_mode": "cls"},
        "2_Dense/config.json": {**linear, **first, "module_output_name": "sentence_embedding"},
        "3_LayerNorm/config.json": {"dimension": width},
        "4_Dense/config.json": {**linear, **last, "module_output_name": "scores"},
    }
    for name, value in described.items():
        (folder / name).write_text(json.dumps(value))
    sizes = {
        "2_Dense": {"linear.weight": (width, width)},
        "3_LayerNorm": {"norm.weight": (width,), "norm.bias": (width,)},
        "4_Dense": {"linear.weight": (1, width), "linear.bias": (1,)},
    }
    for path, held in sizes.items():
        tensors = {name: torch.empty(size, device="meta") for name, size in held.items()}
        _save(folder / path / "model.safetensors", tensors, random, 1.0, dtype)
