"""How a model class of transformers maps to an architecture, and whether a checkpoint has its tensors.

Keys and tensors get their GGUF names, so that the rest of rerankd reads a checkpoint like a GGUF file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from rerankd.formats.checkpoint_files import CONFIG
from rerankd.formats.gguf_header import Tensor

Fail = Callable[[str], NoReturn]

LARGEST = 2**40
# Tensors of a layer that are not weights: tables that the classes compute themselves.
_BUFFERS = ("position_ids", "token_type_ids", "inv_freq")
# Prefixes of the tensors of each class's head, except the poolers of BERT and mGTE.
_HEADS = ("classifier.", "head.", "pooler.", "pre_classifier.")
# Tables, of which a batch reads some rows; they have no bias.
_TABLES = ("token_embd", "position_embd", "token_types", "rel_embd")
_LAYER = re.compile(r"(?P<at>\d+)\.(?P<name>.+)")


@dataclass(frozen=True, slots=True)
class Family:
    """How a model class maps to an architecture.

    `tensors` maps each tensor's GGUF name, without the suffix, to the class's name; `layer_tensors` does so
    for the tensors of a layer, whose names begin with `layers`. `keys` translates a configuration to GGUF
    keys. `unsupported` names what rerankd can't compute in a configuration, "" for nothing.
    `spare_positions`: the first rows of the position table belong to padding. `gated`: the first matrix of
    the MLP has twice its rows. `sizes` maps BERT's names of sizes to the class's. `shapes` returns the shapes
    of tensors that differ from BERT's, columns first. `unbiased` names the tensors of a layer without a bias.
    `is_causal`: each token sees only those before it, and a prompt is the input.
    """

    architecture: str
    tensors: Mapping[str, str]
    layers: str
    layer_tensors: Mapping[str, str]
    keys: Callable[[Config], dict[str, Any]]
    unsupported: Callable[[Mapping[str, Any]], str]
    spare_positions: bool = False
    gated: bool = False
    sizes: Mapping[str, str] = field(default_factory=dict)
    shapes: Callable[[Config], Mapping[str, tuple[int, ...]]] = lambda config: {}
    unbiased: tuple[str, ...] = ()
    is_causal: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """A parsed config.json. Its methods call `fail`, which must raise, if a key is missing or has a wrong
    type. `names` maps BERT's names of sizes to the file's."""

    values: Mapping[str, Any]
    fail: Fail
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        """The number of layers. Limited, because each layer costs time and memory before its tensors are
        checked."""
        return self.size("num_hidden_layers", below=10_000)

    def size(self, key: str, default: int | None = None, least: int = 1, below: int = LARGEST) -> int:
        """The value of a key that must be an integer from `least` to `below` - 1."""
        key = self.names.get(key, key)
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < below:
            self.fail(f"its {CONFIG} must have a size as {key}, but has {value!r:.80}")
        return value

    def real(self, key: str, default: float, value: Any = None) -> float:
        """A positive number: the value of the key, or `value` if that is given."""
        value = self.values.get(key, default) if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < LARGEST:
            self.fail(f"its {CONFIG} must have a positive number as {key}, but has {value!r:.80}")
        return float(value)


def differs(
    config: Mapping[str, Any], expected: Mapping[str, Any], *, required: Mapping[str, Any] | None = None
) -> str:
    """Name the first key of a configuration whose value is not the one that rerankd computes, "" for none.

    A key of `expected` may be missing, because the class has the same default; a key of `required` may not.
    """
    for key, value in (required or {}).items():
        if config.get(key) != value:
            return f"its {key} is {config.get(key)!r}, not {value!r}"
    for key, value in expected.items():
        if config.get(key) is not None and config[key] != value:
            return f"its {key} is {config[key]!r}, not {value!r}"
    return ""


def gguf_name(family: Family, own: str) -> str:
    """The GGUF name of a class's tensor, "" if it is not needed."""
    name, _, ending = own.rpartition(".")
    # Checkpoints converted from TensorFlow name the tensors of a normalization layer so.
    ending = {"gamma": "weight", "beta": "bias"}.get(ending, ending)
    before = ""
    if name.startswith(family.layers):
        match = _LAYER.match(name.removeprefix(family.layers))
        if match is None:
            return ""
        before, name = f"blk.{match['at']}.", match["name"]
    table = family.layer_tensors if before else family.tensors
    found = next((gguf for gguf, known in table.items() if known == name), "")
    return f"{before}{found}.{ending}" if found else ""


def incomplete(
    family: Family,
    config: Config,
    tensors: Mapping[str, Tensor],
    found: Mapping[str, Any],
) -> str:
    """Why the set of tensors does not fit the class, "" if it does.

    A tensor that the class needs is missing or has another shape; or the file has a tensor that the class
    does not, so the model computes more than rerankd would.
    """
    layers, width = config.layers, config.size("hidden_size")
    inner = config.size("intermediate_size")
    own_code = ""
    if config.values.get("auto_map"):
        own_code = f"; its {CONFIG} refers to custom code (auto_map), which rerankd does not run"
    heads = config.size("num_attention_heads")
    if width % heads:
        return f"its {CONFIG} has hidden_size {width}, which is not a multiple of its {heads} attention heads"
    for name, shape in _needed(family, layers, width, inner, config):
        tensor = tensors.get(name)
        if tensor is None:
            return f"the tensor {name} is missing under the name that its class uses{own_code}"
        if shape and tensor.shape != shape:
            return f"its tensor {name} has the shape {tensor.shape}, but {shape} is required"
    has_head = "cls.output" in family.tensors
    for own in found:
        if has_head and own.startswith(_HEADS) and not gguf_name(family, own):
            return f"its rank head has the tensor {own}, which its class does not have{own_code}"
        if not own.startswith(family.layers) or own.rpartition(".")[2] in _BUFFERS:
            continue
        at = own.removeprefix(family.layers).partition(".")[0]
        if not at.isdigit() or int(at) >= layers:
            return f"it has the tensor {own}, but its {CONFIG} declares {layers} layers"
        if not gguf_name(family, own):
            return f"it has the tensor {own}, which its class does not have{own_code}"
    return ""


def _needed(
    family: Family, layers: int, width: int, inner: int, config: Config
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The GGUF names and shapes (columns first) of the tensors that the model's graph reads, without the
    matrices of the head. The shape is () if the file defines it."""
    up = 2 * inner if family.gated else inner
    shapes = {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (width, width)),
        "attn_qkv": (width, 3 * width),
        "ffn_up": (width, up),
        "ffn_down": (inner, width),
        **family.shapes(config),
    }
    outside = [name for name in family.tensors if not name.startswith("cls")]
    inside = [f"blk.{layer}.{name}" for layer in range(layers) for name in family.layer_tensors]
    for name in outside + inside:
        if name == "blk.0.attn_norm":  # ModernBERT's first layer reads the output of the embeddings' norm
            continue
        shape = shapes.get(name.rpartition(".")[2])
        if name in _TABLES:
            yield f"{name}.weight", shape or ()
            continue
        yield f"{name}.weight", shape or (width,)
        if _has_bias(family, name, config.values):
            yield f"{name}.bias", shape[-1:] if shape else (width,)
    if "cls.output" not in family.tensors:
        return
    if family.is_causal:
        for name in (name for name in family.tensors if name.startswith("cls")):
            yield f"{name}.weight", shapes.get(name, (width, 1))
        return
    yield "cls.output.bias", ()
    if family.architecture != "modern-bert" or config.values.get("classifier_bias"):
        yield "cls.bias", (width,)
    if "cls.norm" in family.tensors:
        yield "cls.norm.weight", (width,)
        if config.values.get("norm_bias"):
            yield "cls.norm.bias", (width,)


def _has_bias(family: Family, name: str, config: Mapping[str, Any]) -> bool:
    """Whether a matrix or a norm outside the head has a bias."""
    part = name.rpartition(".")[2]
    if family.architecture != "modern-bert":
        return part not in family.unbiased
    if part.endswith("norm"):
        return bool(config.get("norm_bias"))
    return bool(config.get("attention_bias" if part.startswith("attn") else "mlp_bias"))
