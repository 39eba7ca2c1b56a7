"""Texts to token ids, and where tokens end, with the `tokenizers` library.

ASCII texts take half the time, because they need no normalizer where it is known what it does to them: it
changes only case and white space. The ids are the same, and the vocabulary is shared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from rerankd.ids import Ids

_WORD_START = "\u2581"
_PRINTABLE = "a" + "".join(map(chr, range(32, 127)))
_WHITE_SPACE = str.maketrans("\t\n\r", "   ")
_UNICODE_FORMS = {"NFC", "NFD", "NFKC", "NFKD"}
# What these normalizers make of an ASCII text is what they make of each of its characters.
_BY_CHARACTER = {*_UNICODE_FORMS, "StripAccents", "Lowercase", "BertNormalizer", "Precompiled"}
_SPACES_JOINED = [({"Regex": " {2,}"}, one) for one in (" ", _WORD_START)]
_BERT = pre_tokenizers.BertPreTokenizer()
_SPACE_BEFORE_EACH = pre_tokenizers.Metaspace(_WORD_START, prepend_scheme="always")
_SENTENCEPIECE = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), _SPACE_BEFORE_EACH])
_COUNTS_SPACES = [repr(_SPACE_BEFORE_EACH), repr(pre_tokenizers.Sequence([_SPACE_BEFORE_EACH]))]
# How a vocabulary splits words -> how it splits those that one space separates.
_SPLITS = {repr(_BERT): _BERT, **dict.fromkeys((repr(_SENTENCEPIECE), *_COUNTS_SPACES), _SPACE_BEFORE_EACH)}


class Encoder:
    """Tokenizes texts, without special tokens. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._of_ascii: Tokenizer | None = None
        self._is_identity = _changes_no_ascii(tokenizer.normalizer)
        split = repr(tokenizer.pre_tokenizer)
        words, self._counts_spaces = _SPLITS.get(split), split in _COUNTS_SPACES
        own = {at: one for at, one in tokenizer.get_added_tokens_decoder().items() if not one.special}
        lowercases = None
        if self._is_identity:
            words, lowercases = tokenizer.pre_tokenizer, False
        elif words is not None and not own:
            lowercases = _lowercases(tokenizer.normalizer, counts_spaces=self._counts_spaces)
        self._lowercases = bool(lowercases)
        if lowercases is None:
            return
        found = Tokenizer(tokenizer.model)
        found.pre_tokenizer = words
        found.add_tokens([own[at] for at in sorted(own)])
        found.encode_special_tokens = True
        if all(found.token_to_id(one.content) == at for at, one in own.items()):
            self._of_ascii = found

    @property
    def knows_ascii(self) -> bool:
        """Whether the normalizer can be left out for ASCII texts."""
        return self._of_ascii is not None

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The token ids of each text."""
        if self._of_ascii is None:
            return _encoded(self._tokenizer, texts)
        known = list(map(self._normalized, texts))
        ascii_ids = iter(_encoded(self._of_ascii, list(filter(None, known))))
        others = [text for text, normalized in zip(texts, known, strict=True) if not normalized]
        other_ids = iter(_encoded(self._tokenizer, others) if others else ())
        return [next(ascii_ids if normalized else other_ids) for normalized in known]

    def ends(self, texts: Sequence[str]) -> list[Ids]:
        """See tokenizer.Vocabulary.ends."""
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [_ends(text, encoding.offsets) for text, encoding in zip(texts, found, strict=True)]

    def _normalized(self, text: str) -> str:
        """An ASCII text as the normalizer leaves it, or with one space between words; "" for another text."""
        if not text.isascii():
            return ""
        if self._is_identity:
            return text
        if not text.isprintable():
            text = text.translate(_WHITE_SPACE)
            if not text.isprintable():
                return ""
        plain = text.strip()
        if "  " in plain:
            plain = " ".join(plain.split())
        if self._counts_spaces and len(plain) != len(text):
            return ""
        return plain.lower() if self._lowercases else plain


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids]:
    found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(encoding.ids, np.int32) for encoding in found]


def _ends(text: str, offsets: Sequence[tuple[int, int]]) -> Ids:
    starts, ends = np.array(offsets, np.int32).reshape(-1, 2).T
    ends = np.maximum.accumulate(ends)
    following = np.append(starts[1:], np.int32(len(text)))
    # Where a normalizer composes a letter and its marks, the library's offsets cover only the first of them.
    for at in np.flatnonzero(following > ends):
        gap = text[ends[at] : following[at]]
        first = np.searchsorted(ends, ends[at])
        ends[first : at + 1] += next((n for n, letter in enumerate(gap) if letter.isspace()), len(gap))
    return ends


def _changes_no_ascii(normalizer: normalizers.Normalizer | None) -> bool:
    """Whether the normalizer is one of Unicode's forms."""
    if normalizer is None:  # nothing to leave out
        return False
    return all(one["type"] in _UNICODE_FORMS for one in _steps(json.loads(normalizer.__getstate__())))


def _lowercases(normalizer: normalizers.Normalizer | None, *, counts_spaces: bool) -> bool | None:
    """Whether the normalizer changes upper case. None if it may change printable ASCII in other ways, removes
    white space, or, with `counts_spaces`, keeps other white space than spaces."""
    if normalizer is None:
        return None if counts_spaces else False
    for one in _steps(json.loads(normalizer.__getstate__())):
        if one["type"] not in _BY_CHARACTER and not (counts_spaces and _is_of_spaces(one)):
            return None
    spaced = normalizer.normalize_str("a\tb\nc\rd" if counts_spaces else "a\tb\nc\rd\r\n")
    if (spaced if counts_spaces else " ".join(spaced.split())) != "a b c d":
        return None
    return {_PRINTABLE: False, _PRINTABLE.lower(): True}.get(normalizer.normalize_str(_PRINTABLE))


def _steps(normalizer: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The parts of a normalizer in the form of tokenizer.json."""
    if normalizer["type"] != "Sequence":
        yield normalizer
        return
    for one in normalizer["normalizers"]:
        yield from _steps(one)


def _is_of_spaces(step: Mapping[str, Any]) -> bool:
    """Whether a normalizer changes nothing where one space separates words."""
    if step["type"] == "Replace":
        return (step["pattern"], step["content"]) in _SPACES_JOINED
    return bool(step["type"] == "Strip")
