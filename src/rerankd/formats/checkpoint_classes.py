"""The classes of transformers whose checkpoints can be computed, and the tensors that each needs.

GGUF's names of keys and tensors stand for the classes' own, so that a checkpoint is read as a GGUF file is.

Sources: BertForSequenceClassification, RobertaForSequenceClassification, XLMRobertaForSequenceClassification
and ModernBertForSequenceClassification of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from rerankd.formats.checkpoint_files import CONFIG
from rerankd.formats.gguf_header import Tensor

Fail = Callable[[str], NoReturn]

LARGEST = 2**40
# Tensors of a layer that are no weights: tables that the classes make themselves.
_BUFFERS = ("position_ids", "token_type_ids", "inv_freq")
# What the names of the tensors of each class's head begin with, but for BERT's pooler.
_HEADS = ("classifier.", "head.")
_LAYER = re.compile(r"(?P<at>\d+)\.(?P<name>.+)")


@dataclass(frozen=True, slots=True)
class Family:
    """Where a model class keeps what: GGUF's name of each tensor, without its ending, -> the class's own;
    those of a layer below `layers`. `keys` gives GGUF's keys of a configuration, `unsupported` what it has
    that can't be computed here, "" for nothing; `spare_positions` is whether the first rows of the positions
    belong to padding."""

    architecture: str
    tensors: Mapping[str, str]
    layers: str
    layer_tensors: Mapping[str, str]
    keys: Callable[[Config], dict[str, Any]]
    unsupported: Callable[[Mapping[str, Any]], str]
    spare_positions: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """A config.json. `fail` is called where a key is missing or of the wrong type, and must raise."""

    values: Mapping[str, Any]
    fail: Fail

    @property
    def layers(self) -> int:
        """Bounded, since each costs time and memory before its tensors are looked for."""
        return self.size("num_hidden_layers", below=10_000)

    def size(self, key: str, default: int | None = None, least: int = 1, below: int = LARGEST) -> int:
        """A whole number."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < below:
            self.fail(f"its {CONFIG} should hold a size as {key}, and holds {value!r:.80}")
        return value

    def real(self, key: str, default: float, value: Any = None) -> float:
        """A number above 0: of this key, or `value` where it stands elsewhere."""
        value = self.values.get(key, default) if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < LARGEST:
            self.fail(f"its {CONFIG} should hold a number as {key}, and holds {value!r:.80}")
        return float(value)


def gguf_name(family: Family, own: str) -> str:
    """GGUF's name of a tensor; "" for one that is not needed."""
    name, _, ending = own.rpartition(".")
    # As TensorFlow's checkpoints call a normalisation's two.
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
    """What is wrong with the set of tensors: one that the class needs is missing or of another shape, or a
    layer has one that the class does not know, so that more is computed than this engine knows."""
    layers, width = config.layers, config.size("hidden_size")
    inner = config.size("intermediate_size")
    own_code = ""
    if config.values.get("auto_map"):
        own_code = f"; its {CONFIG} names code of its own (auto_map), which rerankd does not run"
    heads = config.size("num_attention_heads")
    if width % heads:
        return (
            f"its {CONFIG} divides a width of {width} among {heads} attention heads, which does not work out"
        )
    for name, shape in _needed(family, layers, width, inner, config.values):
        tensor = tensors.get(name)
        if tensor is None:
            return f"it has no tensor {name} under the name that its class gives it{own_code}"
        if shape and tensor.shape != shape:
            return f"its tensor {name} has the shape {tensor.shape}, and {shape} is needed"
    for own in found:
        if own.startswith(_HEADS) and not gguf_name(family, own):
            return f"its head has the tensor {own}, which its class does not have{own_code}"
        if not own.startswith(family.layers) or own.rpartition(".")[2] in _BUFFERS:
            continue
        at = own.removeprefix(family.layers).partition(".")[0]
        if not at.isdigit() or int(at) >= layers:
            return f"it has the tensor {own}, and its {CONFIG} says that it has {layers} layers"
        if not gguf_name(family, own):
            return f"it has the tensor {own}, which its class does not have{own_code}"
    return ""


def _needed(
    family: Family, layers: int, width: int, inner: int, config: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors that the graph reads, but for the matrices of the head, in GGUF's names, and their shapes,
    columns first; () where the shape is told by the file."""
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
        if name == "blk.0.attn_norm":  # ModernBERT's first layer reads what the embeddings' norm gives
            continue
        shape = shapes.get(name.rpartition(".")[2])
        is_table = name in ("token_embd", "position_embd", "token_types")
        yield f"{name}.weight", () if is_table else shape or (width,)
        if not is_table and _has_bias(family.architecture, name, config):
            yield f"{name}.bias", (shape[1],) if shape else (width,)
    yield "cls.output.bias", ()
    if family.architecture == "bert" or config.get("classifier_bias"):
        yield "cls.bias", (width,)
    if "cls.norm" in family.tensors:
        yield "cls.norm.weight", (width,)
        if config.get("norm_bias"):
            yield "cls.norm.bias", (width,)


def _has_bias(architecture: str, name: str, config: Mapping[str, Any]) -> bool:
    """Whether a matrix or a norm of the body has a bias."""
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
        return f"its activation is {config['hidden_act']!r}, not 'gelu'"
    if config.get("position_embedding_type", "absolute") != "absolute":
        return "its positions are relative"
    return "it is a decoder" if config.get("is_decoder") else ""


def _modern_bert_keys(config: Config) -> dict[str, Any]:
    values = config.values
    layers, each = config.layers, config.size("global_attn_every_n_layers", 3)
    kinds = values.get("layer_types") or ["" if at % each else "full_attention" for at in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers:
        config.fail(f"its {CONFIG} should hold the kind of each layer as layer_types: it is damaged")
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
    """The base of the rotary positions; transformers 5 has a table of them. `unset` is what null means."""
    said = config.values.get("rope_parameters")
    found = said.get(kind) if isinstance(said, Mapping) else None
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
        return f"its pooling is {config['classifier_pooling']!r}"
    said = config.get("rope_parameters")
    tables = [*said.values()] if isinstance(said, Mapping) else []
    # One table for all layers holds values where a table for each kind of layer is needed.
    if not all(one is None or isinstance(one, Mapping) for one in tables):
        return "its rope_parameters do not say the rotary positions of each kind of layer"
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
