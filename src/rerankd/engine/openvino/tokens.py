"""Tokenizers of a GGUF file's vocabulary, equal to the model's own (the reference), not to llama.cpp's.

Three kinds, by `tokenizer.ggml.model`: `t5` is SentencePiece's unigram model (XLM-R), `bert` is WordPiece,
`gpt2` with the pre-tokenizer `modern-bert` is byte-level BPE. The `tokenizers` library does the work, as it
does where the models are trained and used.

A text never becomes a control token: the control tokens are not in the vocabulary that the library sees. They
are put around texts here, by the flags of the header: `<s> q </s></s> d </s>`, `[CLS] q [SEP] d [SEP]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from rerankd.gguf_header import Strings

Ids = list[int]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_WORD_START = "\u2581"
# What stands for a token that no text may become. NUL is in no text (see plan.clean).
_UNREACHABLE = "\0{}"


class Vocabulary:
    """Texts to ids, and ids to what the model reads."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        """`values` are the header's keys, arrays of the tokenizer included."""
        kind = values["tokenizer.ggml.model"]
        self._tokenizer = _KINDS[kind](values)
        self.size = len(values["tokenizer.ggml.tokens"])
        # WordPiece files call the unknown piece a control token as well.
        controls = {at for at, one in enumerate(_types(values, self.size)) if one == _CONTROL}
        self.control_ids = controls - {values.get("tokenizer.ggml.unknown_token_id")}
        self._tokenizer.encode_special_tokens = True

        def flag(name: str, default: bool) -> bool:
            return bool(values.get(f"tokenizer.ggml.add_{name}", default))

        def token(name: str, default: str) -> Ids:
            key = f"tokenizer.ggml.{name}_token_id"
            return [values[key] if key in values else values[f"tokenizer.ggml.{default}_token_id"]]

        self._start = token("bos", "cls") if flag("bos_token", True) else []
        self._end = token("eos", "seperator") if flag("eos_token", True) else []
        between = token("seperator", "eos") if flag("sep_token", kind == "t5") else []
        self._between = self._end + between
        self.around_pair = len(self._start) + len(self._between) + len(self._end)
        self.around_text = len(self._start) + len(self._end)

    def ids(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text, without any around it: none of `control_ids`, all below `size`."""
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def text(self, ids: Ids) -> Ids:
        """What the model reads of one text."""
        return [*self._start, *ids, *self._end]

    def pair(self, query: Ids, text: Ids) -> Ids:
        """What the model reads of a query and a text."""
        return [*self._start, *query, *self._between, *text, *self._end]


def _unigram(values: Mapping[str, Any]) -> Tokenizer:
    pieces, kinds = _pieces(values)
    unknown = kinds.index(_UNKNOWN)
    for at, kind in enumerate(kinds):
        if kind in (_CONTROL, _UNKNOWN):
            pieces[at] = _UNREACHABLE.format(at)
    scores = values["tokenizer.ggml.scores"]
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unknown))
    folding = bytes(values["tokenizer.ggml.precompiled_charsmap"])
    tokenizer.normalizer = normalizers.Precompiled(folding)
    # A space before each word, and no other: SentencePiece's dummy prefix and its removal of whitespace.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(_WORD_START, prepend_scheme="always"),
        ]
    )
    return tokenizer


def _wordpiece(values: Mapping[str, Any]) -> Tokenizer:
    pieces, kinds = _pieces(values)
    # The file writes ▁ before a word's first piece, the library ## before the others.
    vocabulary: dict[str, int] = {}
    for at, (piece, kind) in enumerate(zip(pieces, kinds, strict=True)):
        if kind in (_CONTROL, _UNKNOWN):
            piece = _UNREACHABLE.format(at)
        elif piece.startswith(_WORD_START):
            piece = piece.removeprefix(_WORD_START)
        else:
            piece = f"##{piece}"
        vocabulary.setdefault(piece, at)
    unknown = _UNREACHABLE.format(values["tokenizer.ggml.unknown_token_id"])
    lowercase = values.get("tokenizer.ggml.normalizer.lowercase")
    if lowercase is None:
        words = (piece for piece, kind in zip(pieces, kinds, strict=True) if kind == _NORMAL)
        lowercase = all(word == word.lower() for word in words)
    strip_accents = values.get("tokenizer.ggml.normalizer.strip_accents")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _byte_level(values: Mapping[str, Any]) -> Tokenizer:
    pieces, kinds = _pieces(values)
    vocabulary = {
        (_UNREACHABLE.format(at) if kind == _CONTROL else piece): at
        for at, (piece, kind) in enumerate(zip(pieces, kinds, strict=True))
    }
    merges = [(first, second) for first, _, second in _halves(values["tokenizer.ggml.merges"])]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    # Pieces that were added to the vocabulary, such as runs of spaces, are found before all else.
    added = compress(pieces, (kind == _USER_DEFINED for kind in kinds))
    tokenizer.add_tokens([AddedToken(piece, normalized=True) for piece in added])
    return tokenizer


_KINDS: dict[str, Callable[[Mapping[str, Any]], Tokenizer]] = {
    "t5": _unigram,
    "bert": _wordpiece,
    "gpt2": _byte_level,
}


def _pieces(values: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    pieces = values["tokenizer.ggml.tokens"].texts()
    return pieces, _types(values, len(pieces))


def _types(values: Mapping[str, Any], count: int) -> list[int]:
    return list(values.get("tokenizer.ggml.token_type") or [_NORMAL] * count)


def _halves(merges: Strings) -> list[tuple[str, str, str]]:
    return [merge.partition(" ") for merge in merges.texts()]
