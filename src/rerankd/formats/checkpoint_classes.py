"""The transformers model classes that rerankd supports in safetensors format, and the tensors each one needs.

Keys and tensors get their GGUF names, so that the rest of rerankd reads a checkpoint like a GGUF file.

Sources: BertForSequenceClassification, RobertaForSequenceClassification, XLMRobertaForSequenceClassification
and ModernBertForSequenceClassification of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from rerankd.formats.checkpoint_files import CONFIG
from rerankd.formats.gguf_header import Tensor

Fail = Callable[[str], NoReturn]

LARGEST = 2**40
# Tensors of a layer that are not weights: tables that the classes compute themselves.
_BUFFERS = ("position_ids", "token_type_ids", "inv_freq")
# Prefixes of the tensors of each class's head, except BERT's pooler.
_HEADS = ("classifier.", "head.")
_LAYER = re.compile(r"(?P<at>\d+)\.(?P<name>.+)")


@dataclass(frozen=True, slots=True)
class Family:
    """How a model class maps to a GGUF architecture.

    `tensors` maps each tensor's GGUF name, without the suffix, to the class's name; `layer_tensors` does so
    for the tensors of a layer, whose names begin with `layers`. `keys` translates a configuration to GGUF
    keys. `unsupported` names what rerankd can't compute in a configuration, "" for nothing.
    `spare_positions`: the first rows of the position table belong to padding.
    """

    architecture: str
    tensors: Mapping[str, str]
    layers: str
    layer_tensors: Mapping[str, str]
    keys: Callable[[Config], dict[str, Any]]
    unsupported: Callable[[Mapping[str, Any]], str]
    spare_positions: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """A parsed config.json. Its methods call `fail`, which must raise, if a key is missing or has a wrong
    type."""

    values: Mapping[str, Any]
    fail: Fail

    @property
    def layers(self) -> int:
        """The number of layers. Limited, because each layer costs time and memory before its tensors are
        checked."""
        return self.size("num_hidden_layers", below=10_000)

    def size(self, key: str, default: int | None = None, least: int = 1, below: int = LARGEST) -> int:
        """The value of a key that must be an integer from `least` to `below` - 1."""
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
    for name, shape in _needed(family, layers, width, inner, config.values):
        tensor = tensors.get(name)
        if tensor is None:
            return f"the tensor {name} is missing under the name that its class uses{own_code}"
        if shape and tensor.shape != shape:
            return f"its tensor {name} has the shape {tensor.shape}, but {shape} is required"
    for own in found:
        if own.startswith(_HEADS) and not gguf_name(family, own):
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
    family: Family, layers: int, width: int, inner: int, config: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The GGUF names and shapes (columns first) of the tensors that the model's graph reads, without the
    matrices of the head. The shape is () if the file defines it."""
    up = 2 * inner if family.architecture == "modern-bert" else inner
    shapes = {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (width, width)),
        "attn_qkv": (width, 3 * width),
        "ffn_up": (width, up),
        "ffn_down": (inner, width),
    }
    outside = [name for name in family.tensors if not name.startswith("cls")]
    inside = [f"blk.{layer}.{name}" for layer in range(layers) for name in family.layer_tensors]
    for name in outside + inside:
        if name == "blk.0.attn_norm":  # ModernBERT's first layer reads the output of the embeddings' norm
            continue
        shape = shapes.get(name.rpartition(".")[2])
        is_table = name in ("token_embd", "position_embd", "token_types")
        yield f"{name}.weight", () if is_table else shape or (width,)
        if not is_table and _has_bias(family.architecture, name, config):
            yield f"{name}.bias", (shape[1],) if shape else (width,)
    if "cls.output" not in family.tensors:
        return
    yield "cls.output.bias", ()
    if family.architecture == "bert" or config.get("classifier_bias"):
        yield "cls.bias", (width,)
    if "cls.norm" in family.tensors:
        yield "cls.norm.weight", (width,)
        if config.get("norm_bias"):
            yield "cls.norm.bias", (width,)


def _has_bias(architecture: str, name: str, config: Mapping[str, Any]) -> bool:
    """Whether a matrix or a norm outside the head has a bias."""
    if architecture == "bert":
        return True
    part = name.rpartition(".")[2]
    if part.endswith("norm"):
        return bool(config.get("norm_bias"))
    return bool(config.get("attention_bias" if part.startswith("attn") else "mlp_bias"))


def _bert_keys(config: Config) -> dict[str, Any]:
    return {"attention.layer_norm_epsilon": config.real("layer_norm_eps", 1e-12)}


def _bert_unsupported(config: Mapping[str, Any]) -> str:
    if config.get("hidden_act", "gelu") != "gelu":
        return f"its activation function is {config['hidden_act']!r}, not 'gelu'"
    if config.get("position_embedding_type", "absolute") != "absolute":
        return "its position embeddings are relative"
    return "it is a decoder" if config.get("is_decoder") else ""


def _modern_bert_keys(config: Config) -> dict[str, Any]:
    values = config.values
    layers, each = config.layers, config.size("global_attn_every_n_layers", 3)
    kinds = values.get("layer_types") or ["" if at % each else "full_attention" for at in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers:
        config.fail(f"its {CONFIG} must have the type of each layer in layer_types: it is damaged")
    everywhere = _theta(config, "full_attention", "global_rope_theta", 160000.0)
    return {
        "attention.layer_norm_epsilon": config.real("norm_eps", 1e-5),
        "attention.sliding_window": config.size("local_attention", 128),
        "attention.sliding_window_pattern": tuple(kind != "full_attention" for kind in kinds),
        "rope.freq_base": everywhere,
        "rope.freq_base_swa": _theta(config, "sliding_attention", "local_rope_theta", 10000.0, everywhere),
        "classifier.pooling_type": 1 if values.get("classifier_pooling") == "mean" else 2,
    }


def _theta(config: Config, kind: str, older: str, default: float, unset: float | None = None) -> float:
    """The base of the rotary positions of one kind of layer. transformers 5 has it in the table
    rope_parameters, earlier versions under the key `older`. `unset` is the value for null."""
    table = config.values.get("rope_parameters")
    found = table.get(kind) if isinstance(table, Mapping) else None
    if isinstance(found, Mapping):
        return config.real("rope_theta", default, found.get("rope_theta"))
    if unset is not None and config.values.get(older, default) is None:
        return unset
    return config.real(older, default)


def _modern_bert_unsupported(config: Mapping[str, Any]) -> str:
    for key in ("hidden_activation", "classifier_activation"):
        if config.get(key, "gelu") != "gelu":
            return f"its {key} is {config[key]!r}, not 'gelu'"
    if config.get("classifier_pooling", "cls") not in ("mean", "cls"):
        return f"its classifier_pooling is {config['classifier_pooling']!r}, not 'mean' or 'cls'"
    parameters = config.get("rope_parameters")
    tables = [*parameters.values()] if isinstance(parameters, Mapping) else []
    # A single table for all layers has numbers where a table for each kind of layer is required.
    if not all(one is None or isinstance(one, Mapping) for one in tables):
        return "its rope_parameters do not define the rotary positions of each kind of layer"
    scaled = [*tables, config.get("rope_scaling")]
    kinds = (one.get("rope_type", one.get("type", "default")) for one in scaled if isinstance(one, Mapping))
    return "" if all(kind == "default" for kind in kinds) else "its rotary positions are scaled"


def _bert_like(prefix: str, head: Mapping[str, str], *, spare_positions: bool) -> Family:
    return Family(
        "bert",
        {
            "token_embd": f"{prefix}.embeddings.word_embeddings",
            "position_embd": f"{prefix}.embeddings.position_embeddings",
            "token_types": f"{prefix}.embeddings.token_type_embeddings",
            "token_embd_norm": f"{prefix}.embeddings.LayerNorm",
            **head,
        },
        f"{prefix}.encoder.layer.",
        {
            "attn_q": "attention.self.query",
            "attn_k": "attention.self.key",
            "attn_v": "attention.self.value",
            "attn_output": "attention.output.dense",
            "attn_output_norm": "attention.output.LayerNorm",
            "ffn_up": "intermediate.dense",
            "ffn_down": "output.dense",
            "layer_output_norm": "output.LayerNorm",
        },
        _bert_keys,
        _bert_unsupported,
        spare_positions,
    )


_ROBERTA = _bert_like(
    "roberta", {"cls": "classifier.dense", "cls.output": "classifier.out_proj"}, spare_positions=True
)
FAMILIES = {
    "BertForSequenceClassification": _bert_like(
        "bert", {"cls": "bert.pooler.dense", "cls.output": "classifier"}, spare_positions=False
    ),
    "RobertaForSequenceClassification": _ROBERTA,
    "XLMRobertaForSequenceClassification": _ROBERTA,
    "ModernBertForSequenceClassification": Family(
        "modern-bert",
        {
            "token_embd": "model.embeddings.tok_embeddings",
            "token_embd_norm": "model.embeddings.norm",
            "output_norm": "model.final_norm",
            "cls": "head.dense",
            "cls.norm": "head.norm",
            "cls.output": "classifier",
        },
        "model.layers.",
        {
            "attn_norm": "attn_norm",
            "attn_qkv": "attn.Wqkv",
            "attn_output": "attn.Wo",
            "ffn_norm": "mlp_norm",
            "ffn_up": "mlp.Wi",
            "ffn_down": "mlp.Wo",
        },
        _modern_bert_keys,
        _modern_bert_unsupported,
    ),
}


def body_of(kind: str) -> Family | None:
    """The family of a class without a head, such as ModernBertModel: its tensors have the names of the class
    with a head, without the first part; None for a class that is not known."""
    headed = FAMILIES.get(f"{kind.removesuffix('Model')}ForSequenceClassification")
    if headed is None or not kind.endswith("Model"):
        return None
    own = {gguf: name for gguf, name in headed.tensors.items() if not gguf.startswith("cls")}
    prefix = own["token_embd"].partition(".")[0] + "."
    tensors = {gguf: name.removeprefix(prefix) for gguf, name in own.items()}
    return replace(headed, tensors=tensors, layers=headed.layers.removeprefix(prefix))
