"""Read a safetensors checkpoint: a folder with config.json, tokenizer.json and the weights as safetensors.

The result is the header that a GGUF file of the same model would have, with GGUF's names for keys and
tensors, so the code that reads GGUF headers works for both formats. Nothing is lost that a GGUF converter
drops: BERT's pooler becomes `cls`, because it does the same as the dense layer of RoBERTa's head, and both
rows of the token types are kept.

Source: the safetensors format (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rerankd.domain import Refusal
from rerankd.formats import module_head, sentence_transformers, vision_class
from rerankd.formats.checkpoint_classes import CLASSES, body_of, family_of, other_labels, quantised
from rerankd.formats.checkpoint_files import (
    CONFIG,
    MODULES,
    SUFFIX,
    TOKENIZER_CONFIG,
    describes,
    files,
    is_of_module,
    missing,
    paths_in,
)
from rerankd.formats.families.family import LARGEST, Config, Fail, gguf_name, incomplete
from rerankd.formats.gguf_header import Header, Tensor
from rerankd.formats.image_processor import ImageProcessor
from rerankd.formats.library_classes import Library, library_of, spare_positions
from rerankd.formats.safetensors_header import parse as parse
from rerankd.formats.sentence_transformers import Layout
from rerankd.formats.tokenizer_file import GIT_LFS, POINTER
from rerankd.formats.transformer_module import NotUnderstood

READABLE = ("F32", "F16", "BF16")
_CAUSAL_CLASSES = " or ".join(sorted(name for name in CLASSES if name.endswith("CausalLM")))
TAKE_GGUF = "use a GGUF file of the model, if one exists"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint without its weights.

    `files` maps each tensor's name to the file that contains it; its offset is relative to that file.
    `refusal` is why rerankd can't compute the model, None if it can. `layout` is what sentence-transformers'
    files declare, None if rerankd does not support it. `library`, `image_processor`: see ModelMetadata.
    """

    header: Header
    files: Mapping[str, str]
    refusal: Refusal | None
    layout: Layout | None = None
    library: Library = ""
    image_processor: ImageProcessor | None = None


def read(folder: Path, fail: Fail) -> tuple[Checkpoint, tuple[Path, ...]]:
    """The checkpoint in a folder, and the paths of its weight files.

    Calls `fail`, which must raise, with a description of what is wrong. Raises OSError.
    """
    paths = paths_in(folder)
    names = files(paths)
    if not names:
        fail(missing(paths))
    described = {name: (folder / name).read_bytes() for name in names if describes(name)}
    parts = {}
    for name in names:
        if name.endswith(SUFFIX):
            with (path := folder / name).open("rb") as stream:
                parts[name] = parse(stream, path.stat().st_size, fail)
    # The folder of a pulled model is named after its reference, repository name last (see hub/store.py).
    found = translate(folder.name.rpartition("--")[2], described, parts, fail)
    return found, tuple(folder / name for name in parts)


def translate(
    name: str, described: Mapping[str, bytes], parts: Mapping[str, Mapping[str, Tensor]], fail: Fail
) -> Checkpoint:
    """The checkpoint from the contents of its files (pure).

    `name` is the model's name. `described` has the contents of config.json and of the optional files that
    describe a model; `parts` has the tensors of each weight file. Both by the file's path in the folder.
    """
    config = Config(_object(described[CONFIG], CONFIG, fail), fail)
    tokenizer = _object(described.get(TOKENIZER_CONFIG, b"{}"), TOKENIZER_CONFIG, fail)
    classes = config.values.get("architectures")
    kind = str(classes[0]) if isinstance(classes, list) and classes else ""
    found = {
        own: (file, tensor)
        for file, held in parts.items()
        if not is_of_module(file)
        for own, tensor in held.items()
    }
    declared = _layout(described, config.values, fail)
    layout = declared if isinstance(declared, Layout) else Layout()
    find_family = body_of if layout.has_own_head or layout.interaction is not None else family_of
    family = find_family(kind, config.values, found)
    values: dict[str, Any] = {"general.name": name, "general.type": "model"}
    if family is None:
        held = {own: one for own, (_, one) in found.items()}
        if kind in vision_class.CLASSES and (made := vision_class.header(kind, config.values, held)):
            return _vision(kind, values | made[0], made[1], declared, described, fail)
        return _unknown(kind, config, tokenizer, values, declared, held)
    config = replace(config, names=family.sizes)
    named = {gguf: place for own, place in found.items() if (gguf := gguf_name(family, own))}
    head, reason = (None, "") if family.is_causal else _head(layout, parts, config)
    spare = config.size("pad_token_id", 1, 0) + 1 if family.spare_positions else 0
    # Of a late-interaction model the tokenizer has the length of queries or documents, whichever came last.
    max_length = _max_length(config, {} if layout.interaction else tokenizer, spare, layout.max_length)
    if "position_embd.weight" in named:
        file, table = named["position_embd.weight"]
        named["position_embd.weight"] = file, _rows(table, spare, max_length)
    keys = {
        "context_length": max_length,
        "embedding_length": config.size("hidden_size"),
        "feed_forward_length": config.size("intermediate_size"),
        "block_count": config.layers,
        "attention.head_count": config.size("num_attention_heads"),
        "attention.causal": False,
        "pooling_type": 4,  # rank
        **family.keys(config),
        **(head.keys if head is not None else {}),
    }
    values |= {f"{family.architecture}.{key}": value for key, value in keys.items()}
    values["general.architecture"] = family.architecture
    values["tokenizer.ggml.token_type_count"] = config.size("type_vocab_size", 1, least=0)
    tensors = {gguf: tensor for gguf, (_, tensor) in named.items()}
    reason = (
        reason
        or family.unsupported(config.values)
        or other_labels(config.values, tensors.get("cls.output.weight"))
        or incomplete(family, config, tensors, found)
    )
    if head is not None:
        named |= head.tensors
        tensors |= {gguf: tensor for gguf, (_, tensor) in head.tensors.items()}
    if isinstance(declared, Refusal):
        reason = declared.reason
    reason = _odd_types(tensors) or reason
    refusal = quantised(config.values) or (Refusal(reason, TAKE_GGUF) if reason else None)
    files_of = {gguf: file for gguf, (file, _) in named.items()}
    return Checkpoint(
        Header(0, values, tensors, 0), files_of, refusal, layout if declared is layout else None
    )


def _layout(described: Mapping[str, bytes], config: Mapping[str, Any], fail: Fail) -> Layout | Refusal:
    def load(name: str) -> Any:
        return _json(described[name], name, fail) if name in described else None

    templates = {
        file: data.decode("utf-8", "replace") for file, data in described.items() if file.endswith(".jinja")
    }
    found = sentence_transformers.read(load, templates, config, TAKE_GGUF)
    return found or fail(f"its {MODULES} can't be read: it is damaged; download it again")


def _head(
    layout: Layout, parts: Mapping[str, Mapping[str, Tensor]], config: Config
) -> tuple[module_head.Head | None, str]:
    """The head that consists of modules, None if the class has its own; and why rerankd can't compute it, ""
    if it can."""
    if layout.chat is not None:
        return (
            None,
            "its input is formatted by a chat template, which rerankd supports for causal models only",
        )
    find = module_head.projection if layout.interaction is not None else module_head.of
    if not layout.has_own_head and layout.interaction is None:
        return None, ""
    try:
        return find(layout, parts, config.size("hidden_size")), ""
    except NotUnderstood as reason:
        return None, f"{reason} ({MODULES})"


def _vision(
    kind: str,
    values: dict[str, Any],
    tensors: Mapping[str, Tensor],
    declared: Layout | Refusal,
    described: Mapping[str, bytes],
    fail: Fail,
) -> Checkpoint:
    """The checkpoint of a class that reads images, which only the PyTorch backend computes."""

    def load(name: str) -> Any:
        return _json(described[name], name, fail) if name in described else None

    return Checkpoint(
        Header(0, values, dict(tensors), 0),
        {},
        Refusal(f"its class is {kind}, which only the PyTorch backend computes", TAKE_GGUF),
        declared if isinstance(declared, Layout) and declared.is_causal else None,
        "transformers",
        vision_class.processor(load),
    )


def _unknown(
    kind: str,
    whole: Config,
    tokenizer: Mapping[str, Any],
    values: dict[str, Any],
    layout: Layout | Refusal,
    tensors: Mapping[str, Tensor],
) -> Checkpoint:
    """The refused checkpoint of an unsupported class. Its sizes identify the model in the catalog."""
    config = whole.values
    is_causal = isinstance(layout, Layout) and layout.is_causal
    library: Library = ""
    is_late = isinstance(layout, Layout) and layout.interaction is not None
    if isinstance(layout, Layout) and (is_causal or is_late or not (layout.modules or layout.chat)):
        library = "" if quantised(config) else library_of(kind, config, layout)
    # A class with code of its own is not what its model_type names.
    architecture = str((library != "own code" and config.get("model_type")) or kind or "unknown")
    values |= {"general.architecture": architecture, "rerankd.class": kind}
    sizes = {
        "embedding_length": "hidden_size",
        "block_count": "num_hidden_layers",
        "context_length": "max_position_embeddings",
    }
    for ours, own in sizes.items():
        if isinstance(config.get(own), int) and config[own] is not True and 0 <= config[own] < LARGEST:
            values[f"{architecture}.{ours}"] = int(config[own])
    if library:
        declared = layout.max_length if isinstance(layout, Layout) else 0
        most = _max_length(whole, {} if is_late else tokenizer, spare_positions(kind, config), declared)
        values |= {f"{architecture}.context_length": most, f"{architecture}.attention.causal": is_causal}
        values[f"{architecture}.pooling_type"] = 0 if is_causal or is_late else 4  # none, rank
        rows = whole.size("vocab_size")
        words = next((own for own, one in tensors.items() if len(one.shape) == 2 and one.rows == rows), "")
        tensors = {"token_embd.weight" if own == words else own: one for own, one in tensors.items()}
    known = " or ".join(sorted(CLASSES))
    of_class = f"its class is {kind}" if kind else f"its {CONFIG} declares no class (architectures)"
    reason = f"{of_class}, and in safetensors format rerankd supports only {known}"
    if isinstance(layout, Refusal):
        reason = layout.reason
    elif layout.is_causal:
        modules = ", ".join(layout.kinds)
        reason = f"{of_class} ({modules}), and of causal models rerankd supports only {_CAUSAL_CLASSES}"
    elif len(layout.modules) > 1:
        reason += f" ({MODULES} lists the modules {', '.join(layout.kinds)})"
    refusal = quantised(config) or Refusal(reason, TAKE_GGUF)
    known_layout = layout if isinstance(layout, Layout) else None
    return Checkpoint(Header(0, values, dict(tensors), 0), {}, refusal, known_layout, library)


def _odd_types(tensors: Mapping[str, Tensor]) -> str:
    odd = {tensor.type_name for tensor in tensors.values()} - {*READABLE}
    return f"its weights have the type {min(odd)}, not {' or '.join(READABLE)}" if odd else ""


def _max_length(config: Config, tokenizer: Mapping[str, Any], spare: int, declared: int) -> int:
    """The most tokens of a pair: the number of positions, or less if sentence-transformers' files declare it
    (`declared`, 0 if they do not), or else the tokenizer."""
    positions = config.size("max_position_embeddings") - spare
    if positions < 1:
        config.fail(f"its {CONFIG} leaves no position for a token: it is damaged")
    longest = declared or tokenizer.get("model_max_length")
    return longest if isinstance(longest, int) and 0 < longest < positions else positions


def _json(data: bytes, name: str, fail: Fail) -> Any:
    if data.startswith(GIT_LFS.encode()):
        fail(f"its {name} can't be read: {POINTER}")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        fail(f"its {name} can't be read: it is damaged; download it again")


def _object(data: bytes, name: str, fail: Fail) -> Mapping[str, Any]:
    value = _json(data, name, fail)
    return value if isinstance(value, dict) else fail(f"its {name} is not a JSON object: it is damaged")


def _rows(table: Tensor, first: int, count: int) -> Tensor:
    """Up to `count` rows of a table from row `first` on. Other tensors are returned as they are and fail
    later."""
    if len(table.shape) != 2:
        return table
    width, rows = table.shape
    count = max(min(count, rows - first), 0)
    row_bytes = table.size_bytes // max(rows, 1)
    return Tensor((width, count), table.type_name, count * row_bytes, table.offset + first * row_bytes)
