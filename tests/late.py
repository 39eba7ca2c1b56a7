"""Tiny late-interaction checkpoints of each layout, made from the bodies of golden cross-encoders.

The values in golden/late.json are those of MultiVectorEncoder (scripts/golden_late.py), which reads the same
folders, so no weights are stored for them. Projections are random, with a fixed seed.
"""

from __future__ import annotations

import json
import re
import shutil
import string
from pathlib import Path
from typing import Any

import numpy as np

import checkpoints
from support import GOLDEN

WIDTH = 64
_LAYER = re.compile(r"\.(\d+)\.")
_PYLATE = "pylate.models.Dense.Dense"
_BASE = "sentence_transformers.base.modules"
_TRANSFORMER = f"{_BASE}.transformer.Transformer"
_MASK = "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask"
_IDENTITY = "torch.nn.modules.linear.Identity"
PUNCTUATION = list(string.punctuation)
ARTIFACT_FILE, PYLATE_FILE = "artifact.metadata", "config_sentence_transformers.json"
ARTIFACT = {
    "query_token_id": "[unused0]",
    "doc_token_id": "[unused1]",
    "query_maxlen": 32,
    "doc_maxlen": 48,
    "attend_to_mask_tokens": False,
    "mask_punctuation": True,
    "similarity": "cosine",
    "dim": 24,
}
PYLATE = {
    "prompts": {"query": "", "document": ""},
    "default_prompt_name": None,
    "similarity_fn_name": "MaxSim",
    "query_prefix": "[Q] ",
    "document_prefix": "[D] ",
    "query_length": 32,
    "document_length": 60,
    "attend_to_expansion_tokens": False,
    "skiplist_words": PUNCTUATION,
}
NAMES = ("stanford-bert", "pylate-modernbert", "pylate-attended", "encoder-bert", "encoder-modernbert")


def build(name: str, folder: Path, **config: Any) -> Path:
    """The checkpoint `name` in `folder`; `config` changes keys of its config.json."""
    model = _BUILDERS[name](folder / name)
    checkpoints.edit(model / "config.json", **config)
    return model


def _stanford(model: Path) -> Path:
    """ColBERTv2: the projection beside the weights of BERT."""
    _body("bert-pairs", model, "HF_ColBERT", keeps_prefix=True)
    _rename(model, {"[unused0]": 1700, "[unused1]": 1701})
    tensors = checkpoints.read(model / "model.safetensors")
    checkpoints.write(model / "model.safetensors", tensors | {"linear.weight": matrix(24, WIDTH, 1)})
    _json(model / ARTIFACT_FILE, ARTIFACT)
    return model


def _pylate(model: Path) -> Path:
    """GTE-ModernColBERT: PyLate's files, and markers that are added tokens with a space."""
    _body("modernbert-head", model, "ModernBertModel")
    _rename(model, {"[Q] ": 1500, "[D] ": 1501})
    _modules(model, [("", _TRANSFORMER), ("1_Dense", _PYLATE)])
    _json(model / "config_sentence_transformers.json", PYLATE)
    _json(model / "sentence_bert_config.json", {"max_seq_length": 59, "do_lower_case": False})
    dense(model / "1_Dense", 24, WIDTH, 2, {})
    return model


def _attended(model: Path) -> Path:
    """The same with expansion tokens that are seen, no skiplist, and two matrices, one of them residual."""
    _pylate(model)
    _modules(model, [("", _TRANSFORMER), ("1_Dense", _PYLATE), ("2_Dense", _PYLATE)])
    said = {"attend_to_expansion_tokens": True, "skiplist_words": [], "model_type": "ColBERT"}
    _json(model / "config_sentence_transformers.json", PYLATE | said)
    dense(model / "1_Dense", 96, WIDTH, 3, {"activation_function": "torch.nn.modules.activation.GELU"})
    dense(model / "2_Dense", 24, 96, 4, {"use_residual": True})
    return model


def _encoder_bert(model: Path) -> Path:
    """MultiVectorEncoder's own files: prompts that are texts, and no expansion."""
    _body("bert-pairs", model, "BertModel")
    _native(model, {"query": "what is ", "document": ""}, {"query_length": 24, "document_length": 50})
    return model


def _encoder_modern_bert(model: Path) -> Path:
    """The same with markers, and queries that are filled up to a length but may be longer."""
    _body("modernbert-head", model, "ModernBertModel")
    _rename(model, {"[Q] ": 1500, "[D] ": 1501})
    expansion = {"strategy": "min", "attend": True, "token": None, "length": 16}
    _native(
        model, {"query": "[Q] ", "document": "[D] "}, {"document_length": None, "query_expansion": expansion}
    )
    return model


def enlarged(name: str, model: Path, layers: int, width: int, inner: int = 0) -> dict[str, list[int]]:
    """The checkpoint `name` with other sizes, as the folder `model`. Returns the shapes of the tensors of
    model.safetensors, which is left to the caller."""
    build(name, model.parent / "made").rename(model)
    inner = inner or 4 * width
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner}
    more = {"num_attention_heads": width // 64 * 2, "max_position_embeddings": 512, "local_attention": 128}
    checkpoints.edit(model / "config.json", **sizes, **more, layer_types=None)
    shapes: dict[str, list[int]] = {}
    for own, (_, shape, _) in checkpoints.read(model / "model.safetensors").items():
        at = _LAYER.search(own)
        if at is not None and int(at[1]) > 1:
            continue
        new = [_size(own, one, axis, width, inner) for axis, one in enumerate(shape)]
        # The first layer of ModernBERT has a norm less than the others.
        places = range(1) if at is None or at[1] == "0" else range(1, layers)
        shapes |= {_LAYER.sub(f".{place}.", own) if at is not None else own: new for place in places}
    (model / "model.safetensors").unlink()
    if (model / "1_Dense").exists():
        dense(model / "1_Dense", 24, width, 2, {})
    return shapes


def _size(name: str, size: int, axis: int, width: int, inner: int) -> int:
    """The new length of an axis of a tensor."""
    rows = {"Wqkv": 3 * width, "mlp.Wi": 2 * inner, "intermediate.dense": inner, "position_embeddings": 512}
    if axis == 0 and (found := next((new for part, new in rows.items() if part in name), 0)):
        return found
    is_down = "mlp.Wo" in name or ("output.dense" in name and "attention" not in name)
    if axis == 1 and is_down:
        return inner
    return width if size == WIDTH else size


_BUILDERS = {
    "stanford-bert": _stanford,
    "pylate-modernbert": _pylate,
    "pylate-attended": _attended,
    "encoder-bert": _encoder_bert,
    "encoder-modernbert": _encoder_modern_bert,
}


def _native(model: Path, prompts: dict[str, str], transformer: dict[str, Any]) -> None:
    projection, normalize = f"{_BASE}.dense.Dense", f"{_BASE}.normalize.Normalize"
    more = [("1_Dense", projection), ("2_MultiVectorMask", _MASK), ("3_Normalize", normalize)]
    _modules(model, [("", _TRANSFORMER), *more])
    said = {"model_type": "MultiVectorEncoder", "prompts": prompts, "similarity_fn_name": "maxsim"}
    _json(model / "config_sentence_transformers.json", said)
    _json(model / "sentence_bert_config.json", transformer)
    states = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    dense(model / "1_Dense", 24, WIDTH, 5, states)
    _json(
        model / "2_MultiVectorMask" / "config.json",
        {"skiplist_words": [",", "."], "skiplist_tasks": ["document"]},
    )
    _json(model / "3_Normalize" / "config.json", states)


def _body(of: str, model: Path, kind: str, *, keeps_prefix: bool = False) -> None:
    """The body of a golden cross-encoder, as the class `kind`."""
    shutil.copytree(GOLDEN / of, model)
    checkpoints.edit(model / "config.json", architectures=[kind])
    heads = ("classifier.", "head.", "bert.pooler.")
    tensors = checkpoints.read(model / "model.safetensors")
    kept = {own: one for own, one in tensors.items() if not own.startswith(heads)}
    if not keeps_prefix:
        kept = {own.partition(".")[2]: one for own, one in kept.items()}
    # Larger matrices than usual, so that each part moves the score (see scripts/make_scaled.py).
    checkpoints.write(model / "model.safetensors", {own: _scaled(own, one) for own, one in kept.items()})


def _scaled(name: str, tensor: tuple[str, list[int], bytes]) -> tuple[str, list[int], bytes]:
    """A matrix of a layer, times 4."""
    kind, shape, held = tensor
    if len(shape) < 2 or "layer" not in name:
        return tensor
    if kind == "BF16":
        wide = np.frombuffer(held, "<u2").astype("<u4") << 16
        return kind, shape, ((wide.view("<f4") * 4).view("<u4") >> 16).astype("<u2").tobytes()
    return kind, shape, (np.frombuffer(held, {"F16": "<f2", "F32": "<f4"}[kind]) * 4).tobytes()


def _rename(model: Path, tokens: dict[str, int]) -> None:
    """Give these tokens another text."""
    file = model / "tokenizer.json"
    said = json.loads(file.read_text())
    vocabulary = said["model"]["vocab"]
    by_id = {at: text for text, at in vocabulary.items()}
    for text, at in tokens.items():
        if at in by_id:
            vocabulary[text] = vocabulary.pop(by_id[at])
        for one in said["added_tokens"]:
            if one["id"] == at:
                one["content"] = text
    file.write_text(json.dumps(said))


def _modules(model: Path, modules: list[tuple[str, str]]) -> None:
    rows = [
        {"idx": at, "name": str(at), "path": path, "type": kind} for at, (path, kind) in enumerate(modules)
    ]
    _json(model / "modules.json", rows)


def dense(folder: Path, rows: int, columns: int, seed: int, more: dict[str, Any]) -> None:
    said = {"in_features": columns, "out_features": rows, "bias": False, "activation_function": _IDENTITY}
    _json(folder / "config.json", said | more)
    held = {"linear.weight": matrix(rows, columns, seed)}
    if more.get("use_residual"):
        held["residual.weight"] = matrix(rows, columns, seed + 100)
    checkpoints.write(folder / "model.safetensors", held)


def matrix(rows: int, columns: int, seed: int) -> tuple[str, list[int], bytes]:
    values = np.random.default_rng(seed).normal(0, 1, (rows, columns)).astype(np.float32)
    return "F32", [rows, columns], values.tobytes()


def _json(file: Path, value: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value))
