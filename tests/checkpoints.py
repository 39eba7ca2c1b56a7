"""Safetensors checkpoints for tests, made from the golden ones."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support import GOLDEN, golden

_CAUSAL = "qwen3-headless"
_ROLES = {"instruction": "system", "query": "query", "document": "document"}
Tensors = dict[str, tuple[str, list[int], bytes]]


def copy(name: str, folder: Path, **config: Any) -> Path:
    """Copy a golden checkpoint to `folder`; `config` changes keys of its config.json, None removes a key."""
    shutil.copytree(GOLDEN / name, folder)
    edit(folder / "config.json", **config)
    return folder


def edit(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def read(file: Path) -> Tensors:
    """Each tensor's type, shape and bytes."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    table.pop("__metadata__", None)
    return {
        name: (info["dtype"], info["shape"], data[8 + length :][slice(*info["data_offsets"])])
        for name, info in table.items()
    }


def write(file: Path, tensors: Tensors) -> None:
    table, end = {}, 0
    for name, (dtype, shape, held) in tensors.items():
        start, end = end, end + len(held)
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(table).encode()
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.writelines(held for _, _, held in tensors.values())


def write_hollow(file: Path, shapes: dict[str, list[int]]) -> None:
    """Write F16 tensors of these shapes as a sparse file."""
    table, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        table[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(table).encode()
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + end)


def write_modules(folder: Path, kinds: Sequence[str]) -> None:
    """Write a modules.json of sentence-transformers with these modules."""
    package = "sentence_transformers.models"
    modules = [
        {"idx": at, "name": str(at), "path": f"{at}_{kind}" if at else "", "type": f"{package}.{kind}"}
        for at, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))


def with_modules(name: str, folder: Path) -> Path:
    """A golden head of sentence-transformers' modules upon its body, which is another golden checkpoint
    without its own head and without the prefix of its tensors' names."""
    shutil.copytree(GOLDEN / "modules" / name, folder)
    of = GOLDEN / json.loads((folder / "golden.json").read_text())["body"]
    if (of / "tokenizer.json").exists():
        shutil.copy(of / "tokenizer.json", folder)
    tensors = read(of / "model.safetensors")
    kept = {own: one for own, one in tensors.items() if not own.startswith(("classifier.", "head."))}
    write(folder / "model.safetensors", {own.partition(".")[2]: one for own, one in kept.items()})
    return folder


def as_modules(name: str, folder: Path, dense: str, output: str, activation: str) -> Path:
    """A golden checkpoint whose own head, the layers `dense` and `output`, is written as modules."""
    shutil.copytree(GOLDEN / name, folder)
    config = json.loads((folder / "config.json").read_text())
    body = config["architectures"][0].replace("ForSequenceClassification", "Model")
    edit(folder / "config.json", architectures=[body])
    tensors = read(folder / "model.safetensors")
    write_modules(folder, ("Transformer", "Pooling", "Dense", "Dense"))
    for path in ("1_Pooling", "2_Dense", "3_Dense"):
        (folder / path).mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    functions = {"2_Dense": (dense, activation), "3_Dense": (output, "linear.Identity")}
    for path, (own, function) in functions.items():
        held = {f"linear.{one}": tensors.pop(f"{own}.{one}") for one in ("weight", "bias")}
        rows, columns = held["linear.weight"][1]
        said = {
            "in_features": columns,
            "out_features": rows,
            "activation_function": f"torch.nn.modules.{function}",
        }
        if path == "3_Dense":
            said["module_output_name"] = "scores"
        (folder / path / "config.json").write_text(json.dumps(said))
        write(folder / path / "model.safetensors", held)
    write(folder / "model.safetensors", {own.partition(".")[2]: one for own, one in tensors.items()})
    (folder / "config_sentence_transformers.json").write_text('{"model_type": "CrossEncoder"}')
    return folder


def _jinja(template: str) -> str:
    """A chat template that renders the same prompts."""
    for name, role in _ROLES.items():
        of_role = f'messages | selectattr("role", "eq", "{role}") | map(attribute="content") | first'
        template = template.replace(f"{{{name}}}", "{{ " + of_role + " }}")
    return template + "\n" if template.endswith("\n") else template  # Jinja drops the last newline


def causal(folder: Path, *labels: int) -> Path:
    """A golden checkpoint, as sentence-transformers saves a causal reranker."""
    values, model = golden(_CAUSAL), copy(_CAUSAL, folder / "judge")
    package = "sentence_transformers"
    kinds = ("base.modules.transformer.Transformer", "cross_encoder.modules.logit_score.LogitScore")
    modules = [
        {"idx": at, "name": str(at), "path": "1_LogitScore" if at else "", "type": f"{package}.{kind}"}
        for at, kind in enumerate(kinds)
    ]
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "1_LogitScore").mkdir()
    ids = dict(zip(("true_token_id", "false_token_id"), labels, strict=False))
    (model / "1_LogitScore" / "config.json").write_text(json.dumps(ids))
    said = {
        "model_type": "CrossEncoder",
        "prompts": {"web": values["instruction"]},
        "default_prompt_name": "web",
    }
    (model / "config_sentence_transformers.json").write_text(json.dumps(said))
    how = {"method": "forward", "method_output_name": "logits"}
    (model / "sentence_bert_config.json").write_text(
        json.dumps(
            {
                "transformer_task": "text-generation",
                "modality_config": {"text": how, "message": how | {"format": "flat"}},
                "module_output_name": "causal_logits",
            }
        )
    )
    (model / "chat_template.jinja").write_text(_jinja(values["template"]))
    return model
