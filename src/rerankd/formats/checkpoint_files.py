"""Which files of a folder or a repository are a checkpoint in transformers' format, and what is missing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

CONFIG = "config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
# What sentence-transformers runs, in order.
MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
SUFFIX = ".safetensors"
# What is read of a model besides its weights' headers.
DESCRIBING = (CONFIG, TOKENIZER_CONFIG, MODULES, PROMPTS)

# What the name of one file of a model has before its ending, where the model is split into several.
PART = r"-(?P<part>\d{5})-of-(?P<count>\d{5})"
_WEIGHTS = re.compile(rf"model(?:{PART})?\.safetensors")
_ADAPTER = "adapter_config.json"


def files(names: Iterable[str]) -> tuple[str, ...]:
    """Which of a folder's or a repository's files are the checkpoint, those that describe it first; () where
    a part of it is missing."""
    there = set(names)
    if not {CONFIG, TOKENIZER} <= there:
        return ()
    found = _weights(there)
    more = [name for name in (TOKENIZER_CONFIG, MODULES, PROMPTS) if name in there]
    return (CONFIG, TOKENIZER, *more, *found) if found else ()


def _weights(names: Iterable[str]) -> tuple[str, ...]:
    """The files that hold the weights, in order; () where one is missing."""
    matches = sorted((match[0], match) for name in names if (match := _WEIGHTS.fullmatch(name)))
    whole = [name for name, match in matches if match["part"] is None]
    if whole:
        return tuple(whole)
    counts = {int(match["count"]) for _, match in matches}
    return tuple(name for name, _ in matches) if counts == {len(matches)} else ()


def is_checkpoint(path: Path) -> bool:
    """Whether it is a folder that holds a model's configuration."""
    return path.is_dir() and (path / CONFIG).is_file()


def paths_in(folder: Path) -> tuple[str, ...]:
    """The files of a folder and of the folders in it, by their paths below it. Raises OSError."""
    found = (*folder.iterdir(), *folder.glob("*/*"))
    return tuple(sorted(path.relative_to(folder).as_posix() for path in found if path.is_file()))


def missing(paths: Iterable[str]) -> str:
    """Why a folder or a repository with these files is not a whole checkpoint, and which file to take
    instead."""
    paths = tuple(paths)
    there = [path for path in paths if "/" not in path]
    ggufs = [path for path in paths if path.lower().endswith(".gguf")]
    nested = [path.rpartition("/")[0] for path in paths if path.endswith(f"/{CONFIG}")]
    if ggufs:
        return f"give the path of the .gguf file in it, such as {ggufs[0]}"
    if _ADAPTER in there and not _weights(there):
        return (
            "it holds an adapter (LoRA) and not the model: merge it into its base model "
            "(merge_and_unload of peft) and save that model"
        )
    if nested and CONFIG not in there:
        return f"the model is in its folder {nested[0]}: give that"
    if any(name.endswith(SUFFIX) for name in there) and CONFIG in there and TOKENIZER in there:
        return "files of its weights are missing; download it again"
    if CONFIG in there and TOKENIZER not in there:
        return f"it holds no {TOKENIZER}; save the model's fast tokenizer into it, which writes that file"
    if any(name.endswith(".bin") for name in there):
        return "its weights are pickled (.bin), which could run code; give a model with safetensors"
    if any(path.endswith(".onnx") for path in paths):
        return f"its weights are ONNX, which rerankd does not read; take its model{SUFFIX}, or a GGUF file"
    if any(name.endswith(".npz") for name in there):
        return (
            f"its weights are MLX's (.npz), which rerankd does not read; take model{SUFFIX}, or a GGUF file"
        )
    return f"it holds no weights: there is no model{SUFFIX}"
