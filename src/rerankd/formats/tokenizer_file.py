"""A checkpoint's tokenizer.json: opened, and held against the model's embedding matrix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerankd import text_files

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GIT_LFS = "version https://git-lfs"
POINTER = "it is a git-LFS pointer, not the file: run `git lfs pull` in its folder"


def read(path: Path, rows: int) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer of a model with `rows` rows of embeddings, and what its file holds. Raises OSError, and
    ValueError where it is damaged, does not fit the model or does not read pairs."""
    from tokenizers import Tokenizer  # it takes a while to import

    text = text_files.read(path)
    if text.startswith(GIT_LFS):
        raise ValueError(POINTER)
    said = json.loads(text)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library has no class of its own for what is wrong with a file
        raise ValueError(str(error)) from error
    count = max(tokenizer.get_vocab_size(), _largest_id(said) + 1)
    if count > rows:
        raise ValueError(f"it has {count} tokens, and the model knows {rows}: it belongs to another model")
    if not {0, 1} <= set(tokenizer.encode("a", "b").sequence_ids):
        raise ValueError("it does not put two texts together")
    return tokenizer, said


def _largest_id(said: dict[str, Any]) -> int:
    ids: list[int] = [token["id"] for token in said.get("added_tokens") or ()]
    vocabulary = said["model"]["vocab"]
    ids += vocabulary.values() if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
    return max(ids, default=-1)
