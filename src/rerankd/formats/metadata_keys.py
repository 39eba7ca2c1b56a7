"""GGUF metadata: map a header's keys and tensors to ModelMetadata (safetensors too, under GGUF names)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from rerankd.domain import Format, Pooling, Refusal
from rerankd.errors import ModelFileError
from rerankd.formats.gguf_header import Header, Strings, Tensor
from rerankd.formats.library_classes import Library
from rerankd.formats.metadata import Matrix, ModelMetadata
from rerankd.formats.sentence_transformers import Layout

_BASE_MODEL = re.compile(r"general\.base_model\.\d+\.(?:name|repo_url)")
_POOLINGS: tuple[Pooling, ...] = ("none", "mean", "cls", "last", "rank")
# Token types: unknown (2) and control (3), which no text is tokenized to, and user-defined (4).
_CONTROL, _USER_DEFINED = (2, 3), (4,)
# Padding of the vocabulary, which no text is tokenized to either.
_UNUSED = 5
# general.file_type -> the usual name of the quantisation
# fmt: off
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11:
    "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M",
    18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S",
    25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32:
    "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}
# fmt: on

_Value = TypeVar("_Value", str, int, bool)
_TYPES = {str: "a string", int: "an integer", bool: "true or false"}


def refuse(path: Path, what: str) -> NoReturn:
    """Raise ModelFileError for a model file."""
    raise ModelFileError(f"{path}: {what}")


def typed(values: Mapping[str, Any], key: str, default: _Value, path: Path) -> _Value:
    """The value of a key. Raises ModelFileError if its type is not that of the default."""
    value = values.get(key, default)
    if type(value) is not type(default):
        refuse(path, f"its key {key} must be {_TYPES[type(default)]}: it is damaged")
    return value


def _pooling(values: Mapping[str, Any], key: str, path: Path) -> Pooling | None:
    if key not in values:
        return None
    number = typed(values, key, 0, path)
    if not 0 <= number < len(_POOLINGS):
        refuse(
            path,
            f"its key {key} has the unknown pooling {number}: it is damaged, or too new for this rerankd",
        )
    return _POOLINGS[number]


def metadata_of(
    path: Path,
    header: Header,
    tensors: Mapping[str, Tensor],
    size_bytes: int,
    parts: tuple[Path, ...],
    *,
    format: Format = "gguf",
    refusal: Refusal | None = None,
    layout: Layout | None = None,
    library: Library = "",
) -> ModelMetadata:
    """The metadata from a header and the tensors of all parts. Raises ModelFileError for keys of a wrong
    type."""
    values = header.values
    arch = typed(values, "general.architecture", "", path)
    if not arch:
        refuse(path, "it has no architecture (general.architecture): it is damaged or not a model")
    tokens = values.get("tokenizer.ggml.tokens")
    tokens = tokens if isinstance(tokens, Strings) else Strings(b"", [])
    embedding, attention = tensors.get("token_embd.weight"), tensors.get("blk.0.attn_output.weight")
    if refusal is None and embedding is not None and 0 < embedding.rows < len(tokens):
        refusal = Refusal(
            f"its vocabulary has {len(tokens):,} tokens, but its embedding matrix has {embedding.rows:,} "
            "rows: the tokenizer belongs to another model",
            "use another conversion of the model",
        )
    return ModelMetadata(
        **_fields_of(values, tensors, arch, path),
        path=path,
        architecture=arch,
        version=header.version,
        size_bytes=size_bytes,
        kind=typed(values, "general.type", "", path) or "model",
        tags=_texts(values.get("general.tags")),
        base_models=tuple(
            str(value)
            for key, value in values.items()
            if _BASE_MODEL.fullmatch(key) and isinstance(value, str)
        ),
        kv_width=_kv_width(values, arch),
        vocabulary_size=len(tokens) or (embedding.shape[-1] if embedding and embedding.shape else 0),
        pooling=_pooling(values, f"{arch}.pooling_type", path),
        classifier_pooling=_pooling(values, f"{arch}.classifier.pooling_type", path),
        output_labels=_texts(values.get(f"{arch}.classifier.output_labels")),
        cls_rows=_rows(tensors.get("cls.weight")),
        cls_output_rows=_rows(tensors.get("cls.output.weight")),
        has_dense={"dense_2.weight", "dense_3.weight"} <= tensors.keys(),
        has_charsmap="tokenizer.ggml.precompiled_charsmap" in values,
        file_type=_FILE_TYPES.get(typed(values, "general.file_type", -1, path), ""),
        quantisation=_most(tensors),
        parameters=sum(tensor.elements for tensor in tensors.values()),
        block_weights=_block_weights(tensors),
        attention_width=attention.shape[0] if attention and attention.shape else 0,
        tensor_bytes=sum(tensor.size_bytes for tensor in tensors.values()),
        control_tokens=_of_type(tokens, values, _CONTROL),
        user_defined_tokens=_of_type(tokens, values, _USER_DEFINED),
        unused_token=_last_unused(tokens, values),
        tokens=tokens,
        parts=parts,
        format=format,
        refusal=refusal,
        layout=layout,
        library=library,
    )


def _fields_of(
    values: Mapping[str, Any], tensors: Mapping[str, Tensor], arch: str, path: Path
) -> dict[str, Any]:
    """The fields that are declared with a key or tensor, as far as the header has them."""
    found: dict[str, Any] = {}
    for one in fields(ModelMetadata):
        if "tensor" in one.metadata:
            found[one.name] = one.metadata["tensor"] in tensors
        elif "key" in one.metadata and (key := one.metadata["key"].format(arch=arch)) in values:
            found[one.name] = typed(values, key, one.metadata["kind"](), path)
    return found


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(value.texts()) if isinstance(value, Strings) else ()


def _kv_width(values: Mapping[str, Any], arch: str) -> int:
    """How many numbers the keys and values of one token have in a layer, 0 if unknown."""

    def value_of(key: str, default: int) -> int:
        value = values.get(f"{arch}.{key}")
        # A header with a value per layer has an array, which is not kept: use the largest possible value.
        return value if isinstance(value, int) else default

    heads = value_of("attention.head_count", 0)
    head_width = value_of("embedding_length", 0) // heads if heads else 0
    lengths = value_of("attention.key_length", head_width) + value_of("attention.value_length", head_width)
    return value_of("attention.head_count_kv", heads) * lengths


def _rows(tensor: Tensor | None) -> int:
    return tensor.rows if tensor is not None else 0


def _block_weights(tensors: Mapping[str, Tensor]) -> int:
    blocks = [tensor for name, tensor in tensors.items() if name.startswith("blk.")]
    if any(len(tensor.shape) > 2 for tensor in blocks):
        return 0
    return sum(tensor.elements for tensor in blocks if len(tensor.shape) == 2)


def _most(tensors: Mapping[str, Tensor]) -> str:
    """The tensor type with the largest share of the weights, in bytes."""
    sizes = Counter[str]()
    for tensor in tensors.values():
        sizes[tensor.type_name] += tensor.size_bytes
    return sizes.most_common(1)[0][0] if sizes else ""


def output_matrix(headers: Sequence[Header]) -> Matrix | None:
    """Where the language model head is stored; None without one, or if its type is unknown. `headers` are
    those of the model's parts."""
    for name in ("output.weight", "token_embd.weight"):
        for part, header in enumerate(headers):
            tensor = header.tensors.get(name)
            if tensor is not None:
                if len(tensor.shape) != 2 or not tensor.size_bytes or not tensor.rows:
                    return None
                offset = header.data_start + tensor.offset
                return Matrix(part, offset, tensor.rows, tensor.size_bytes // tensor.rows)
    return None


def _last_unused(tokens: Strings, values: Mapping[str, Any]) -> int | None:
    types = values.get("tokenizer.ggml.token_type")
    if not isinstance(types, tuple):
        return None
    return next((at for at in range(len(types[: len(tokens)]) - 1, -1, -1) if types[at] == _UNUSED), None)


def _of_type(tokens: Strings, values: Mapping[str, Any], wanted: tuple[int, ...]) -> dict[str, int]:
    types = values.get("tokenizer.ggml.token_type")
    if not isinstance(types, tuple):
        return {}
    return {tokens[i]: i for i, kind in enumerate(types[: len(tokens)]) if kind in wanted}
