"""The modules behind the Transformer of a sentence-transformers checkpoint -> the steps of a rank head.

    pooling, then dense | norm | normalize …, the last step a dense layer of one row without an activation

The layers have GGUF's names, as those of a class's head have: the first dense layer of more than one row is
`cls`, the first normalisation `cls.norm`, the layer that gives the score `cls.output`. That of ettin-reranker
(dense, GELU, norm, output) is the head of ModernBERT then.

Source: Pooling, Dense, LayerNorm, Normalize and Dropout of sentence-transformers 6.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rerankd.domain import Pooling
from rerankd.formats.checkpoint_files import module_config, module_weights
from rerankd.formats.gguf_header import Tensor
from rerankd.formats.sentence_transformers import Layout, Module
from rerankd.formats.transformer_module import NotUnderstood, only

STEPS = "classifier.steps"
"""The header's key of a head's steps."""
Step = tuple[str, str, str]
"""What is done (dense, residual dense, norm, normalize), the name of its tensors, and a dense layer's
activation."""

# torch.nn's classes, by the last part of their name, as they are without arguments (GELU is the erf form).
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
_STATE, _SCORE = "sentence_embedding", "scores"

Places = Mapping[str, tuple[str, Tensor]]
"""Tensors by GGUF's names: the file of each, by its path in the folder, and its place there."""


@dataclass(frozen=True, slots=True)
class Head:
    """What the score is made of: a pooling of the last states, then steps."""

    pooling: Pooling
    steps: tuple[Step, ...]
    tensors: Places

    @property
    def keys(self) -> dict[str, Any]:
        """The keys of a header that tell it."""
        return {"classifier.pooling_type": 1 if self.pooling == "mean" else 2, STEPS: self.steps}


def of(layout: Layout, parts: Mapping[str, Mapping[str, Tensor]], width: int) -> Head:
    """The head of modules behind states of this width. `parts` are the tensors of each file of weights.
    Raises NotUnderstood for what can't be computed, which is named."""
    modules = [module for module in layout.modules[1:] if module.kind != "Dropout"]
    if modules[0].kind != "Pooling":
        raise NotUnderstood(f"its states go to a {modules[0].kind} before they are pooled")
    pooling, left = _pooling(modules[0], layout.prompt), modules[1:]
    if not left or left[-1].kind != "Dense":
        raise NotUnderstood("its last module is no Dense, so nothing gives a score")
    steps: list[Step] = []
    tensors: dict[str, tuple[str, Tensor]] = {}
    for module in left:
        is_last = module is left[-1]
        name = _name(module.kind, is_last=is_last, taken=tensors)
        step, found, width = _step(module, name, parts, width, is_last=is_last)
        steps.append(step)
        tensors |= found
    return Head(pooling, tuple(steps), tensors)


def _name(kind: str, *, is_last: bool, taken: Mapping[str, Any]) -> str:
    if is_last:
        return "cls.output"
    first = {"Dense": "cls", "LayerNorm": "cls.norm"}.get(kind, "")
    numbers = (f"{first}.{number}" for number in range(2, len(taken) + 3))
    return next((name for name in (first, *numbers) if f"{name}.weight" not in taken), "")


def _step(
    module: Module, name: str, parts: Mapping[str, Mapping[str, Tensor]], width: int, *, is_last: bool
) -> tuple[Step, Places, int]:
    """A module as a step, its tensors, and the width of what it gives."""
    if module.kind == "Normalize":
        _in_and_out(module, _STATE)
        only(module.config, ("module_input_name", "module_output_name"), module.path)
        return ("normalize", "", ""), {}, width
    held = parts.get(module_weights(module.path))
    if held is None:
        raise NotUnderstood(f"its module {module.path} has no weights as safetensors")
    if module.kind == "LayerNorm":
        only(module.config, ("dimension",), module_config(module.path))
        shapes = {"norm.weight": (width,), "norm.bias": (width,)}
        return ("norm", name, ""), dict(_found(module, name, held, shapes)), width
    if module.kind != "Dense":
        raise NotUnderstood(f"it has the module {module.kind} ({module.path}) behind its Pooling")
    return _dense(module, name, held, width, is_last=is_last)


def _dense(
    module: Module, name: str, held: Mapping[str, Tensor], width: int, *, is_last: bool
) -> tuple[Step, Places, int]:
    config = module.config
    only(config, _DENSE, module_config(module.path))
    _in_and_out(module, _SCORE if is_last else _STATE)
    rows = config.get("out_features")
    if config.get("in_features") != width or type(rows) is not int or rows < 1:
        raise NotUnderstood(f"its module {module.path} is {width} wide before it, and says another width")
    if is_last and rows != 1:
        raise NotUnderstood(f"it gives {rows} scores for a pair ({module.path})")
    # The library's default is Tanh, also for a class that is not torch's.
    said = str(config.get("activation_function", ""))
    activation = _ACTIVATIONS.get(said.rpartition(".")[2]) if said.startswith("torch.nn.") else None
    if activation is None or (is_last and activation):
        raise NotUnderstood(f"its module {module.path} has the activation {said or 'Tanh':.80}")
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (width, rows)}
    if config.get("bias", True):
        shapes["linear.bias"] = (rows,)
    is_residual = config.get("use_residual") is True
    if is_residual and rows != width:
        shapes["residual.weight"] = (width, rows)
    what = "residual dense" if is_residual else "dense"
    return (what, name, activation), dict(_found(module, name, held, shapes)), rows


def _in_and_out(module: Module, wanted: str) -> None:
    """Raises NotUnderstood for a module that reads or writes something else than the one state."""
    read = module.config.get("module_input_name", _STATE)
    written = module.config.get("module_output_name") or read
    if (read, written) != (_STATE, wanted):
        raise NotUnderstood(f"its module {module.path} reads {read!r:.40} and writes {written!r:.40}")


def _found(
    module: Module, name: str, held: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[str, Tensor]]]:
    """The tensors of a module, which must be these and no others."""
    if more := held.keys() - shapes.keys():
        raise NotUnderstood(f"its module {module.path} has the tensor {min(more)}, which it should not")
    for own, shape in shapes.items():
        tensor = held.get(own)
        if tensor is None or tensor.shape != shape:
            has = "no such tensor" if tensor is None else f"the shape {tensor.shape}"
            raise NotUnderstood(
                f"its module {module.path} needs {own} of the shape {shape}, and it has {has}"
            )
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
        raise NotUnderstood(f"its module {module.path} leaves the prompt out, which rerankd does not do")
    modes: Any = config.get("pooling_mode")
    if modes is None:
        modes = [
            _OLD_POOLINGS.get(part, part) for key in old if config[key] and (part := key[len(_OLD_POOLING) :])
        ]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    if not isinstance(modes, Sequence) or len(modes) != 1 or modes[0] not in [*_POOLINGS]:
        raise NotUnderstood(f"its module {module.path} has the pooling {modes!r:.60}, not cls or mean")
    return _POOLINGS[modes[0]]
