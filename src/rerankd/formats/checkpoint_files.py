"""Find the files of a safetensors checkpoint in a folder or repository, or explain which one is missing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

CONFIG = "config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
# The list of modules that sentence-transformers runs.
MODULES = "modules.json"
PROMPTS, TRANSFORMER = "config_sentence_transformers.json", "sentence_bert_config.json"
# The configuration of a ColBERT model by its authors' own library.
ARTIFACT = "artifact.metadata"
# How images are read.
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
CHAT_TEMPLATE, ADDITIONAL_TEMPLATES = "chat_template.jinja", "additional_chat_templates/"
SUFFIX = ".safetensors"
# The files that describe a model besides the headers of its weights.
_DESCRIBING = (
    *(CONFIG, TOKENIZER_CONFIG, MODULES, PROMPTS, TRANSFORMER, CHAT_TEMPLATE, ARTIFACT),
    *(PREPROCESSOR, PROCESSOR),
)
# In the folder of a module, which sentence-transformers names after its number and its class.
_TEMPLATE = re.compile(rf"{ADDITIONAL_TEMPLATES}[^/\\\x00]+\.jinja")
_MODULE_CONFIG = re.compile(r"\d+_\w+/config\.json")
_MODULE_WEIGHTS = re.compile(r"\d+_\w+/model\.safetensors")

# The part of a file's name before the suffix if the model is split into several files.
PART = r"-(?P<part>\d{5})-of-(?P<count>\d{5})"
_WEIGHTS = re.compile(rf"model(?:{PART})?\.safetensors")
_ADAPTER = "adapter_config.json"


def files(names: Iterable[str]) -> tuple[str, ...]:
    """The files of the checkpoint among the names in a folder or repository, describing files first.

    () if a file is missing.
    """
    there = set(names)
    if not {CONFIG, TOKENIZER} <= there:
        return ()
    found = _weights(there)
    more = [name for name in _DESCRIBING[1:] if name in there]
    if MODULES in there:
        more += sorted(name for name in there if "/" in name and describes(name))
        found = (*sorted(name for name in there if is_of_module(name)), *found) if found else ()
    return (CONFIG, TOKENIZER, *more, *found) if found else ()


def describes(name: str) -> bool:
    """Whether the file describes the model. Such a file is small and is read completely."""
    if "/" not in name:
        return name in _DESCRIBING
    return any(pattern.fullmatch(name) for pattern in (_TEMPLATE, _MODULE_CONFIG))


def is_of_module(name: str) -> bool:
    """Whether the file contains the weights of a module of sentence-transformers, not those of the model."""
    return _MODULE_WEIGHTS.fullmatch(name) is not None


def module_config(folder: str) -> str:
    """The configuration of the module in this folder of a checkpoint."""
    return f"{folder}/{CONFIG}"


def module_weights(folder: str) -> str:
    """The weights of the module in this folder of a checkpoint."""
    return f"{folder}/model{SUFFIX}"


def _weights(names: Iterable[str]) -> tuple[str, ...]:
    """The weight files, in order; () if one is missing."""
    matches = sorted((match[0], match) for name in names if (match := _WEIGHTS.fullmatch(name)))
    whole = [name for name, match in matches if match["part"] is None]
    if whole:
        return tuple(whole)
    counts = {int(match["count"]) for _, match in matches}
    return tuple(name for name, _ in matches) if counts == {len(matches)} else ()


def is_checkpoint(path: Path) -> bool:
    """Whether the path is a folder with a config.json."""
    return path.is_dir() and (path / CONFIG).is_file()


def paths_in(folder: Path) -> tuple[str, ...]:
    """The files in a folder and in its direct subfolders, as relative paths. Raises OSError."""
    found = (*folder.iterdir(), *folder.glob("*/*"))
    return tuple(sorted(path.relative_to(folder).as_posix() for path in found if path.is_file()))


def missing(paths: Iterable[str]) -> str:
    """Why these files of a folder or repository are not a complete checkpoint, and what to do about it."""
    paths = tuple(paths)
    there = [path for path in paths if "/" not in path]
    ggufs = [path for path in paths if path.lower().endswith(".gguf")]
    nested = [path.rpartition("/")[0] for path in paths if path.endswith(f"/{CONFIG}")]
    if ggufs:
        return f"give the path of a .gguf file in it, such as {ggufs[0]}"
    if _ADAPTER in there and not _weights(there):
        return (
            "it contains an adapter (LoRA), not a model: merge it into its base model (merge_and_unload of "
            "peft) and save the result"
        )
    if nested and CONFIG not in there:
        return f"the model is in its folder {nested[0]}: give the path of that folder"
    if any(name.endswith(SUFFIX) for name in there) and CONFIG in there and TOKENIZER in there:
        return "some of its weight files are missing: download it again"
    if CONFIG in there and TOKENIZER not in there:
        return f"it contains no {TOKENIZER}: save the model's fast tokenizer into it, which writes that file"
    if any(name.endswith(".bin") for name in there):
        return (
            "its weights are pickled (.bin), which can execute code when loaded: use a model with safetensors"
        )
    if any(path.endswith(".onnx") for path in paths):
        return (
            f"its weights are in ONNX format, which rerankd does not read: use model{SUFFIX} or a GGUF file"
        )
    if any(name.endswith(".npz") for name in there):
        return (
            f"its weights are in MLX format (.npz), which rerankd does not read: use model{SUFFIX} or a "
            "GGUF file"
        )
    return f"it contains no weights: model{SUFFIX} is missing"
