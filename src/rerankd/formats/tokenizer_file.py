"""Load a checkpoint's tokenizer.json and check that it fits the model's embedding matrix."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerankd import text_files

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GIT_LFS = "version https://git-lfs"
# The library's ids have 32 bits.
_LARGEST_ID = 2**32
POINTER = "it is a git-LFS pointer instead of the file: run `git lfs pull` in its folder"


def read(path: Path, rows: int) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer of a model whose embedding matrix has `rows` rows, and the parsed JSON.

    Raises OSError, and ValueError if the file is damaged, does not fit the model, or can't encode pairs.
    """
    from tokenizers import Tokenizer  # slow to import

    text = text_files.read(path)
    if text.startswith(GIT_LFS):
        raise ValueError(POINTER)
    try:
        parsed = json.loads(text)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library has no exception class for invalid files
        raise ValueError(str(error)) from error
    count = max(tokenizer.get_vocab_size(), _largest_id(parsed) + 1)
    if count > rows:
        raise ValueError(f"it has {count} tokens, but the model only {rows}: it belongs to another model")
    if not {0, 1} <= set(tokenizer.encode("a", "b").sequence_ids):
        raise ValueError("it does not encode a pair of texts")
    return tokenizer, parsed


def token_texts(content: str, ids: Sequence[int]) -> tuple[str, ...]:
    """The texts of single tokens, from the content of tokenizer.json. Raises ValueError if it is damaged or
    has no such token."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # as in `read`
        raise ValueError(str(error)) from error
    if any(one >= _LARGEST_ID or tokenizer.id_to_token(one) is None for one in ids):
        raise ValueError(f"it has no tokens with the ids {ids}")
    return tuple(tokenizer.decode([one], skip_special_tokens=False) for one in ids)


def _largest_id(parsed: dict[str, Any]) -> int:
    ids: list[int] = [token["id"] for token in parsed.get("added_tokens") or ()]
    vocabulary = parsed["model"]["vocab"]
    ids += vocabulary.values() if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
    return max(ids, default=-1)
