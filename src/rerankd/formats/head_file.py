"""A head beside a GGUF body: a small safetensors file with the weights that GGUF's converter drops.

The file is in the folder of the GGUF file and has one of `NAMES`; `MODEL.head.safetensors` is read before
them if there are several models in the folder, beside `MODEL.gguf`. Its tensors have the names of the
original checkpoint. It counts as one more part of the model, so its tensors are read like those of the GGUF
file.

To add a head: add the architecture and its tensors to `_TENSORS`, and read them under our names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from rerankd.formats.checkpoint_files import SUFFIX
from rerankd.formats.families.family import Fail
from rerankd.formats.families.qwen import PROJECTOR_STEPS
from rerankd.formats.gguf_header import Header, Source, Strings, Tensor
from rerankd.formats.module_head import STEPS
from rerankd.formats.safetensors import READABLE, parse

LISTWISE_MARKERS = ("<|embed_token|>", "<|rerank_token|>")
"""The tokens whose states a projector reads."""
_ENDING = f"head{SUFFIX}"
NAMES = (_ENDING, f"projector{SUFFIX}")
# The tensors of a head by their names in the checkpoint, and their names here. The first one reads states of
# the model's width.
_ROW = {"score.weight": "cls.output.weight"}
# A Sequential of torch, sometimes saved without its name.
_PROJECTOR = {"projector.0.weight": "cls.weight", "projector.2.weight": "cls.output.weight"}
_TENSORS: Mapping[str, Mapping[str, str]] = {"llama": _ROW, "llama-embed": _ROW, "qwen3": _PROJECTOR}


def is_head(name: str) -> bool:
    """Whether a file of this name, without its folder, is a head beside a GGUF file."""
    return name in NAMES or name.endswith(f".{_ENDING}")


def candidates(path: PurePath) -> Iterator[PurePath]:
    """Yield the paths at which the head beside a GGUF file may be, preferred ones first."""
    for name in (f"{path.stem}.{_ENDING}", *NAMES):
        yield path.with_name(name)


def beside(path: Path) -> Path | None:
    """Return the head beside a GGUF file, if there is one."""
    return next((Path(one) for one in candidates(path) if Path(one).is_file()), None)


def tensors_of(architecture: str) -> tuple[str, ...]:
    """The names, in the checkpoint, of the tensors that a head of this architecture consists of."""
    return tuple(_TENSORS.get(architecture, ()))


def header(stream: Source, size_bytes: int, values: Mapping[str, Any], fail: Fail) -> Header | None:
    """The header of a head whose model has these keys; None if no model of its architecture has such a head.

    Calls `fail`, which must raise, with a description of what is wrong.
    """
    architecture = str(values.get("general.architecture"))
    names = _TENSORS.get(architecture)
    if names is None:
        return None
    tokens = values.get("tokenizer.ggml.tokens")
    is_of_another = isinstance(tokens, Strings) and any(
        tokens.index_of(one) is None for one in LISTWISE_MARKERS
    )
    if names is _PROJECTOR and is_of_another:
        return None  # another model in the same folder
    parsed = parse(stream, size_bytes, fail)
    prefix = "projector." if names is _PROJECTOR else ""
    found = {own if own in names else f"{prefix}{own}": tensor for own, tensor in parsed.items()}
    if names.keys() != found.keys():
        fail(
            f"it is beside a GGUF file of the architecture {architecture}, whose head consists of "
            f"{' and '.join(names)}, but it has {' and '.join(sorted(found)) or 'no tensors'}"
        )
    shape, width = found[next(iter(names))].shape, values.get(f"{architecture}.embedding_length")
    if shape[:1] != (width,):
        fail(f"it reads states of another width than the model's {width}: it is the head of another model")
    _check({own: found[own] for own in names}, fail)
    keys = {f"{architecture}.{STEPS}": PROJECTOR_STEPS} if names is _PROJECTOR else {}
    return Header(0, keys, {ours: found[own] for own, ours in names.items()}, 0)


def _check(tensors: Mapping[str, Tensor], fail: Fail) -> None:
    """Call `fail` unless these matrices, in order, can be computed one after the other."""
    width = 0
    for name, tensor in tensors.items():
        if tensor.type_name not in READABLE:
            fail(
                f"its tensor {name} has the type {tensor.type_name}, and rerankd reads {', '.join(READABLE)}"
            )
        if len(tensor.shape) != 2:
            fail(f"its tensor {name} has the shape {[*reversed(tensor.shape)]}, which is no matrix")
        if width and tensor.shape[0] != width:
            fail(f"its tensor {name} reads {tensor.shape[0]} numbers, and the one before it makes {width}")
        width = tensor.rows
