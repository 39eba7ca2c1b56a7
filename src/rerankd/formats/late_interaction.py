"""(pure) What the files of a late-interaction checkpoint (ColBERT) declare: lengths, markers and skiplist.

There are three layouts. None has a constant here for a length or a marker: what a file omits and the loaders
of these layouts do not agree on stays None, and the user's settings must supply it.

    Stanford   the class HF_ColBERT, its projection as linear.weight in the weights; artifact.metadata
    PyLate     modules.json with a Transformer and pylate.models.Dense; config_sentence_transformers.json with
               query_prefix, query_length, skiplist_words …
    MultiVectorEncoder of sentence-transformers 6: modules.json with a Transformer, Dense, MultiVectorMask and
               Normalize; prompts, and lengths and query_expansion in sentence_bert_config.json

Sources: MultiVectorEncoder of sentence-transformers 6.2, PyLate 1.6, ColBERTConfig of colbert-ai 0.2.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rerankd.formats.checkpoint_files import ARTIFACT, PROMPTS, TOKENIZER_CONFIG, TRANSFORMER
from rerankd.formats.transformer_module import NotUnderstood, mapping, only

STANFORD = "HF_ColBERT"
MASK = "MultiVectorMask"
_MODEL_TYPES = ("ColBERT", "MultiVectorEncoder")
_PYLATE = (
    "query_prefix", "document_prefix", "query_length", "document_length", "attend_to_expansion_tokens",
    "skiplist_words", "do_query_expansion",
)  # fmt: skip
_PUNCTUATION = tuple(string.punctuation)
_LARGEST = 2**20


@dataclass(frozen=True, slots=True)
class Declared:
    """What the files declare; None for what they do not.

    `query_prefix`, `document_prefix`: the text before a query and a document, which may begin with a marker.
    With `has_markers`, the beginning is a token also if the tokenizer has it as an ordinary one. A length of
    0 is the most that the model can read. `expansion_token`: "" if there is no expansion. For the other
    fields see interaction.Interaction.
    """

    query_prefix: str | None = None
    document_prefix: str | None = None
    has_markers: bool = False
    query_length: int | None = None
    document_length: int | None = None
    expansion_length: int | None = None
    expansion_token: str | None = None
    attends_to_expansion: bool = False
    skiplist: tuple[str, ...] = ()


def is_declared(whole: Mapping[str, Any], kinds: Sequence[str], types: Sequence[str]) -> bool:
    """Whether modules.json and config_sentence_transformers.json (`whole`) are those of such a model. `types`
    are the full names of the modules' classes."""
    is_typed = whole.get("model_type") in _MODEL_TYPES or MASK in kinds
    return is_typed or any(one.startswith("pylate.") for one in types) or any(key in whole for key in _PYLATE)


def of_artifact(said: Any, tokenizer: Mapping[str, Any]) -> Declared:
    """The Stanford layout. `said` is artifact.metadata, None without it. Raises NotUnderstood."""
    if said is None:
        return Declared(has_markers=True, expansion_token=_expansion_token(tokenizer))
    values = mapping(said, ARTIFACT)
    markers = [_text(values, key, ARTIFACT) for key in ("query_token_id", "doc_token_id")]
    length = _length(values, "query_maxlen", ARTIFACT)
    if values.get("similarity", "cosine") != "cosine":
        raise NotUnderstood(f"its {ARTIFACT} has the similarity {values['similarity']!r:.40}, not cosine")
    is_skipped = _flag(values, "mask_punctuation", ARTIFACT, default=True)
    query, document = (None if one is None else f"{one} " for one in markers)
    return Declared(
        query,
        document,
        has_markers=True,
        query_length=length,
        document_length=_length(values, "doc_maxlen", ARTIFACT),
        expansion_length=length,
        expansion_token=_expansion_token(tokenizer),
        attends_to_expansion=_flag(values, "attend_to_mask_tokens", ARTIFACT, default=False),
        skiplist=_PUNCTUATION if is_skipped else (),
    )


def of_modules(
    whole: Mapping[str, Any],
    transformer: Mapping[str, Any],
    mask: Mapping[str, Any] | None,
    tokenizer: Mapping[str, Any],
) -> Declared:
    """The layouts with modules.json. `whole` is config_sentence_transformers.json, `transformer` is
    sentence_bert_config.json, `mask` the configuration of MultiVectorMask if there is one, `tokenizer` is
    tokenizer_config.json. Raises NotUnderstood."""
    if mask is not None or whole.get("model_type") == "MultiVectorEncoder":
        return _of_encoder(whole, transformer, mask or {}, tokenizer)
    query_length = _length(whole, "query_length", PROMPTS)
    expands = _flag(whole, "do_query_expansion", PROMPTS, default=True)
    is_listed = whole.get("skiplist_words") is not None
    return Declared(
        _prefix(whole, "query", is_required=True),
        _prefix(whole, "document", is_required=True),
        has_markers=True,
        query_length=query_length,
        document_length=_length(whole, "document_length", PROMPTS),
        expansion_length=query_length if expands else 0,
        expansion_token=_expansion_token(tokenizer) if expands else "",
        attends_to_expansion=_flag(whole, "attend_to_expansion_tokens", PROMPTS, default=False),
        skiplist=_words(whole, PROMPTS) if is_listed else _PUNCTUATION,
    )


def _of_encoder(
    whole: Mapping[str, Any],
    transformer: Mapping[str, Any],
    mask: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
) -> Declared:
    """The layout of MultiVectorEncoder. A missing length is the model's, and a missing expansion is none."""
    query_length = _length(transformer, "query_length", TRANSFORMER) or 0
    said = mapping(transformer.get("query_expansion"), "query_expansion")
    only(said, ("strategy", "attend", "token", "length"), f"{TRANSFORMER}, query_expansion,")
    filled = _length(said, "length", TRANSFORMER) or 0
    if said and (said.get("strategy") not in ("fixed", "min") or not filled):
        raise NotUnderstood(f"its {TRANSFORMER} has the query_expansion {dict(said)!r:.100}")
    return Declared(
        _prefix(whole, "query"),
        _prefix(whole, "document"),
        query_length=filled if said.get("strategy") == "fixed" else query_length,
        document_length=_length(transformer, "document_length", TRANSFORMER) or 0,
        expansion_length=filled,
        expansion_token=(_text(said, "token", TRANSFORMER) or _expansion_token(tokenizer)) if said else "",
        attends_to_expansion=_flag(said, "attend", TRANSFORMER, default=False),
        skiplist=_skiplist(mask),
    )


def _prefix(whole: Mapping[str, Any], side: str, *, is_required: bool = False) -> str | None:
    """The text before a query or a document (`side`): PyLate's prefix, then the prompt. None if the prefix is
    required and missing."""
    prompts, key = mapping(whole.get("prompts"), "prompts"), f"{side}_prefix"
    names = (side,) if side == "query" else (side, "passage", "corpus")
    prompt = next((text for name in names if (text := _text(prompts, name, PROMPTS)) is not None), "")
    prefix = _text(whole, key, PROMPTS) if key in whole or is_required else ""
    return None if prefix is None else prefix + prompt.removeprefix(prefix)


def _skiplist(mask: Mapping[str, Any]) -> tuple[str, ...]:
    only(mask, ("skiplist_words", "skiplist_tasks", "keep_only_token_ids"), MASK)
    tasks = mask.get("skiplist_tasks") or ["document"]
    if tasks not in ("document", ["document"]) or mask.get("keep_only_token_ids"):
        raise NotUnderstood(
            f"its {MASK} leaves out other tokens than words of documents: {dict(mask)!r:.100}"
        )
    return _words(mask, MASK)


def _words(values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    words = values.get("skiplist_words") or []
    if not isinstance(words, list) or not all(isinstance(one, str) and one for one in words):
        raise NotUnderstood(f"its {where} has the skiplist_words {words!r:.60}, not a list of texts")
    return tuple(words)


def _expansion_token(tokenizer: Mapping[str, Any]) -> str | None:
    """The tokenizer's mask token, or the token that ends a text if it has none, as in both libraries."""
    for key in ("mask_token", "eos_token"):
        said = tokenizer.get(key)
        text = said.get("content") if isinstance(said, Mapping) else said
        if text is not None and not (isinstance(text, str) and text):
            raise NotUnderstood(f"its {TOKENIZER_CONFIG} has the {key} {text!r:.40}")
        if text is not None:
            return str(text)
    return None


def _length(values: Mapping[str, Any], key: str, where: str) -> int | None:
    found = values.get(key)
    if found is not None and not (type(found) is int and 0 < found <= _LARGEST):
        raise NotUnderstood(f"its {where} has {found!r:.40} as {key}, not a number of tokens")
    return found


def _text(values: Mapping[str, Any], key: str, where: str) -> str | None:
    found = values.get(key)
    if found is not None and not isinstance(found, str):
        raise NotUnderstood(f"its {where} has {found!r:.40} as {key}, not a text")
    return found


def _flag(values: Mapping[str, Any], key: str, where: str, *, default: bool) -> bool:
    found = values.get(key)
    if found is not None and not isinstance(found, bool):
        raise NotUnderstood(f"its {where} has {found!r:.40} as {key}, not true or false")
    return default if found is None else found
