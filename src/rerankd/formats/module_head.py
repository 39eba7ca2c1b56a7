"""The modules after the Transformer of a sentence-transformers checkpoint, as the steps of a rank head or of
the projection of a late-interaction model.

    Pooling, then Dense | LayerNorm | Normalize | Dropout …, at last a Dense with one row and no activation
    Dense | LayerNorm | Dropout …, then MultiVectorMask and Normalize or neither: for each token

The tensors get the names of a rank head in GGUF: the first Dense is `cls`, the first LayerNorm `cls.norm`,
the last Dense `cls.output`. ettin-reranker (Dense, GELU, LayerNorm, Dense) thus has the tensors of
ModernBERT's head.

Source: Pooling, Dense, LayerNorm, Normalize and Dropout of sentence-transformers 6.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rerankd.domain import Pooling
from rerankd.formats.checkpoint_files import is_of_module, module_config, module_weights
from rerankd.formats.gguf_header import Tensor
from rerankd.formats.late_interaction import MASK
from rerankd.formats.sentence_transformers import Layout, Module
from rerankd.formats.transformer_module import NotUnderstood, only

STEPS = "classifier.steps"
"""The key of the steps in the header."""
Step = tuple[str, str, str]
"""The kind (dense, residual dense, norm, normalize), the name of its tensors, the activation of a dense
step."""

# Classes of torch.nn with their default arguments (GELU is the erf form).
_ACTIVATIONS = {
    "Identity": "",
    "GELU": "gelu",
    "Tanh": "tanh",
    "ReLU": "relu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
}
_POOLINGS: Mapping[str, Pooling] = {"cls": "cls", "mean": "mean"}
_OLD_POOLING = "pooling_mode_"
_OLD_POOLINGS = {"cls_token": "cls", "mean_tokens": "mean"}
_DENSE = (
    "in_features", "out_features", "bias", "activation_function", "module_input_name", "module_output_name",
    "use_residual",
)  # fmt: skip
_STATE, _SCORE, _STATES = "sentence_embedding", "scores", "token_embeddings"
PROJECTION = "dense_2_out"
"""The name of a projection's first matrix, as in GGUF files."""

Places = Mapping[str, tuple[str, Tensor]]
"""By GGUF's name of the tensor: its file, as a path in the folder, and its position in that file."""


@dataclass(frozen=True, slots=True)
class Head:
    """How the score is computed from the last hidden states: pooling, then the steps. With the pooling
    "none", the steps project each token's state."""

    pooling: Pooling
    steps: tuple[Step, ...]
    tensors: Places

    @property
    def keys(self) -> dict[str, Any]:
        """The header's keys that describe this head."""
        if self.pooling == "none":
            return {"pooling_type": 0, STEPS: self.steps}
        return {"classifier.pooling_type": 1 if self.pooling == "mean" else 2, STEPS: self.steps}


def of(layout: Layout, parts: Mapping[str, Mapping[str, Tensor]], width: int) -> Head:
    """Read the head from the modules. `width` is that of the hidden states, `parts` has the tensors of each
    weight file. Raises NotUnderstood, which names the module that rerankd does not support."""
    modules = [module for module in layout.modules[1:] if module.kind != "Dropout"]
    if modules[0].kind != "Pooling":
        raise NotUnderstood(f"its module {modules[0].path} ({modules[0].kind}) comes before a Pooling")
    pooling, left = _pooling(modules[0], layout.prompt), modules[1:]
    if not left or left[-1].kind != "Dense":
        raise NotUnderstood("its last module is not a Dense, so it returns no score")
    steps: list[Step] = []
    tensors: dict[str, tuple[str, Tensor]] = {}
    for module in left:
        is_last = module is left[-1]
        name = _name(module.kind, is_last=is_last, taken=tensors)
        writes = _SCORE if is_last else _STATE
        step, found, width = _step(module, name, parts, width, reads=_STATE, writes=writes)
        steps.append(step)
        tensors |= found
    return Head(pooling, tuple(steps), tensors)


def projection(layout: Layout, parts: Mapping[str, Mapping[str, Tensor]], width: int) -> Head:
    """Read the projection of a late-interaction model: from the modules, or without modules the matrix
    `linear.weight` beside the model's own tensors. Raises NotUnderstood."""
    if not layout.modules:
        places = {
            f"{PROJECTION}.weight": (file, tensor)
            for file, held in parts.items()
            if not is_of_module(file) and (tensor := held.get("linear.weight")) is not None
        }
        if not places:
            raise NotUnderstood("its projection (linear.weight) is missing")
        ((_, tensor),) = places.values()
        if len(tensor.shape) != 2 or tensor.shape[0] != width:
            raise NotUnderstood(f"its projection (linear.weight) has the shape {tensor.shape}")
        return Head("none", (("dense", PROJECTION, ""),), places)
    modules = [module for module in layout.modules[1:] if module.kind != "Dropout"]
    modules = [module for module in modules if module.kind != MASK]  # the skiplist is a part of the recipe
    if modules and modules[-1].kind == "Normalize":  # every vector is normalized
        _in_and_out(modules.pop(), _STATES, _STATES)
    if not any(module.kind == "Dense" for module in modules):
        raise NotUnderstood("it has no Dense that projects the states of its tokens")
    steps: list[Step] = []
    tensors: dict[str, tuple[str, Tensor]] = {}
    for module in modules:
        name = _name(module.kind, taken=tensors, is_projection=True)
        step, found, width = _step(module, name, parts, width, reads=_STATES, writes=_STATES)
        steps.append(step)
        tensors |= found
    return Head("none", tuple(steps), tensors)


def _name(kind: str, *, taken: Mapping[str, Any], is_last: bool = False, is_projection: bool = False) -> str:
    if is_last:
        return "cls.output"
    base = PROJECTION if is_projection else "cls"
    first = {"Dense": base, "LayerNorm": f"{base}.norm"}.get(kind, "")
    numbers = (f"{first}.{number}" for number in range(2, len(taken) + 3))
    return next((name for name in (first, *numbers) if f"{name}.weight" not in taken), "")


def _step(
    module: Module,
    name: str,
    parts: Mapping[str, Mapping[str, Tensor]],
    width: int,
    *,
    reads: str,
    writes: str,
) -> tuple[Step, Places, int]:
    """The step of a module, its tensors, and the width of its output."""
    if module.kind == "Normalize":
        _in_and_out(module, reads, writes)
        only(module.config, ("module_input_name", "module_output_name"), module.path)
        return ("normalize", "", ""), {}, width
    held = parts.get(module_weights(module.path))
    if held is None:
        raise NotUnderstood(f"its module {module.path} has no model.safetensors")
    if module.kind == "LayerNorm":
        only(module.config, ("dimension",), module_config(module.path))
        shapes = {"norm.weight": (width,), "norm.bias": (width,)}
        return ("norm", name, ""), dict(_found(module, name, held, shapes)), width
    if module.kind != "Dense":
        raise NotUnderstood(f"its module {module.path} ({module.kind}) comes after its Pooling")
    return _dense(module, name, held, width, reads=reads, writes=writes)


def _dense(
    module: Module, name: str, held: Mapping[str, Tensor], width: int, *, reads: str, writes: str
) -> tuple[Step, Places, int]:
    config, is_last = module.config, writes == _SCORE
    only(config, _DENSE, module_config(module.path))
    _in_and_out(module, reads, writes)
    rows = config.get("out_features")
    if config.get("in_features") != width or type(rows) is not int or rows < 1:
        raise NotUnderstood(
            f"its module {module.path} does not read a width of {width}, or declares an invalid one"
        )
    if is_last and rows != 1:
        raise NotUnderstood(f"its module {module.path} returns {rows} scores for a pair")
    # The library's default is Tanh, also in place of a class outside torch.
    said = str(config.get("activation_function", ""))
    activation = _ACTIVATIONS.get(said.rpartition(".")[2]) if said.startswith("torch.nn.") else None
    if activation is None or (is_last and activation):
        raise NotUnderstood(f"its module {module.path} has the activation {said or 'Tanh':.80}")
    for flag in ("bias", "use_residual"):
        # The library takes any true value for yes, such as the text "false".
        if not isinstance(config.get(flag, False), bool):
            value = repr(config[flag])
            raise NotUnderstood(f"its module {module.path} has {value:.40} as {flag}, not true or false")
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (width, rows)}
    if config.get("bias", True):
        shapes["linear.bias"] = (rows,)
    is_residual = config.get("use_residual", False)
    if is_residual and rows != width:
        shapes["residual.weight"] = (width, rows)
    what = "residual dense" if is_residual else "dense"
    return (what, name, activation), dict(_found(module, name, held, shapes)), rows


def _in_and_out(module: Module, reads: str, writes: str) -> None:
    """Raises NotUnderstood if the module reads or writes anything else than these."""
    read = module.config.get("module_input_name", reads)
    written = module.config.get("module_output_name") or read
    # A Dense that was saved for pooled states projects the states of tokens in a late-interaction model.
    if reads == _STATES and (read, written) == (_STATE, _STATE):
        return
    if (read, written) != (reads, writes):
        raise NotUnderstood(f"its module {module.path} reads {read!r:.40} and writes {written!r:.40}")


def _found(
    module: Module, name: str, held: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[str, Tensor]]]:
    """The tensors of a module. Raises NotUnderstood if any is missing, of another shape, or unknown."""
    if more := held.keys() - shapes.keys():
        raise NotUnderstood(f"its module {module.path} has the unknown tensor {min(more)}")
    for own, shape in shapes.items():
        tensor = held.get(own)
        if tensor is None or tensor.shape != shape:
            has = "no such tensor" if tensor is None else f"the shape {tensor.shape}"
            raise NotUnderstood(f"its module {module.path} needs {own} with the shape {shape}, but has {has}")
        part, _, ending = own.partition(".")
        yield (
            f"{name}.residual.{ending}" if part == "residual" else f"{name}.{ending}",
            (
                module_weights(module.path),
                tensor,
            ),
        )


def _pooling(module: Module, prompt: str) -> Pooling:
    config = module.config
    old = [key for key in config if key.startswith(_OLD_POOLING)]
    known = ("pooling_mode", "embedding_dimension", "word_embedding_dimension", "include_prompt", *old)
    only(config, known, module_config(module.path))
    if prompt and config.get("include_prompt", True) is not True:
        raise NotUnderstood(f"its module {module.path} excludes the prompt, which rerankd does not support")
    modes: Any = config.get("pooling_mode")
    if modes is None:
        modes = [
            _OLD_POOLINGS.get(part, part) for key in old if config[key] and (part := key[len(_OLD_POOLING) :])
        ]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    if not isinstance(modes, Sequence) or len(modes) != 1 or modes[0] not in [*_POOLINGS]:
        raise NotUnderstood(
            f"its module {module.path} has the pooling {modes!r:.60}; rerankd supports cls and mean"
        )
    return _POOLINGS[modes[0]]
