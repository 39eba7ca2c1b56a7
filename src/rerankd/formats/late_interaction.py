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
    mask: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
) -> Declared:
    """The layouts with modules.json. `whole` is config_sentence_transformers.json, `transformer` is
    sentence_bert_config.json, `mask` the configuration of MultiVectorMask, `tokenizer` is
    tokenizer_config.json. Raises NotUnderstood."""
    prompts = mapping(whole.get("prompts"), "prompts")
    is_pylate = whole.get("model_type") != "MultiVectorEncoder"
    prefixes = []
    for names in (("query",), ("document", "passage", "corpus")):
        key = f"{names[0]}_prefix"
        prompt = next((text for name in names if (text := _text(prompts, name, PROMPTS)) is not None), "")
        marker = _text(whole, key, PROMPTS) if key in whole or is_pylate else ""
        prefixes.append(None if marker is None else marker + prompt.removeprefix(marker))
    values, place = (whole, PROMPTS) if is_pylate else (transformer, TRANSFORMER)
    query_length, document_length = (_length(values, f"{one}_length", place) for one in ("query", "document"))
    if is_pylate:
        expands = _flag(whole, "do_query_expansion", PROMPTS, default=True)
        expansion_length = query_length if expands else 0
        attends = _flag(whole, "attend_to_expansion_tokens", PROMPTS, default=False)
        token: str | None = _expansion_token(tokenizer) if expands else ""
        words = _words(whole, PROMPTS) if whole.get("skiplist_words") is not None else _PUNCTUATION
    else:
        said = mapping(transformer.get("query_expansion"), "query_expansion")
        only(said, ("strategy", "attend", "token", "length"), f"{TRANSFORMER}, query_expansion,")
        expansion_length, attends, token = 0, False, ""
        if said:
            expansion_length = _length(said, "length", TRANSFORMER) or 0
            attends = _flag(said, "attend", TRANSFORMER, default=False)
            token = _text(said, "token", TRANSFORMER) or _expansion_token(tokenizer)
            if said.get("strategy") not in ("fixed", "min") or not expansion_length:
                raise NotUnderstood(f"its {TRANSFORMER} has the query_expansion {dict(said)!r:.100}")
            if said["strategy"] == "fixed":
                query_length = expansion_length
        query_length, document_length = query_length or 0, document_length or 0
        words = _skiplist(mask)
    query, document = prefixes
    return Declared(
        query,
        document,
        has_markers=is_pylate,
        query_length=query_length,
        document_length=document_length,
        expansion_length=expansion_length,
        expansion_token=token,
        attends_to_expansion=attends,
        skiplist=words,
    )


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
