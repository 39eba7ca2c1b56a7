"""(pure) The vocabulary of a checkpoint, from tokenizer.json, as a GGUF header stores it.

The recipe of a causal model needs the ids of labels and of the template's special tokens, that of a
late-interaction model the ids of its markers and of its skiplist. Other encoders need none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rerankd.formats.gguf_header import Strings
from rerankd.formats.metadata import ModelMetadata


def with_vocabulary(metadata: ModelMetadata, content: str) -> ModelMetadata:
    """Add the tokens in tokenizer.json to the metadata. Raises ValueError if the file is damaged."""
    try:
        said = json.loads(content)
        pieces, added = _pieces(said["model"]), said.get("added_tokens") or ()
        controls = {token["content"]: int(token["id"]) for token in added if token["special"]}
        others = {token["content"]: int(token["id"]) for token in added if not token["special"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it has an unexpected form: {error!r}") from error
    pieces |= controls | others
    texts = [""] * (max(pieces.values(), default=-1) + 1)
    for text, at in pieces.items():
        texts[at] = text
    return replace(
        metadata,
        tokens=_strings(texts),
        tokenizer_model="gpt2" if _is_byte_level(said.get("decoder")) else "",
        control_tokens=controls,
        user_defined_tokens=others,
    )


def _pieces(model: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, Mapping):
        return {str(text): int(at) for text, at in vocabulary.items() if int(at) >= 0}
    return {str(text): at for at, (text, _) in enumerate(vocabulary)}


def _is_byte_level(decoder: Any) -> bool:
    return isinstance(decoder, Mapping) and "'ByteLevel'" in repr(decoder)


def _strings(texts: list[str]) -> Strings:
    raw = [text.encode("utf-8", "surrogatepass") for text in texts]
    starts, end = [], 0
    for one in raw:
        starts.append(end)
        end += 8 + len(one)
    return Strings(b"".join(len(one).to_bytes(8, "little") + one for one in raw), starts)
