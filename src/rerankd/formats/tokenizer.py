"""Tokenizers equal to the model's own (the reference), not to llama.cpp's: of a GGUF file's vocabulary, and
of a checkpoint's tokenizer.json, which is that reference. The `tokenizers` library does the work, as it does
where the models are trained and used.

A vocabulary is of one of three kinds, by `tokenizer.ggml.model`: `t5` is SentencePiece's unigram model
(XLM-R), `bert` is WordPiece, `gpt2` with the pre-tokenizer `modern-bert` is byte-level BPE.

A text never becomes a control token: the control tokens are not in the vocabulary that the library sees. They
are put around texts here, by the flags of the header or the template of the file: `<s> q </s></s> d </s>`,
`[CLS] q [SEP] d [SEP]`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from rerankd.formats import tokenizer_file

Ids = list[int]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_WORD_START = "\u2581"
# What stands for a token that no text may become. NUL is in no text (see plan.clean).
_UNREACHABLE = "\0{}"


class Reading(NamedTuple):
    """What the model reads: ids, and the place where those of the second token type begin; the end where
    there are none."""

    ids: Ids
    second: int


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Texts to ids, and ids to what the model reads.

    `start`, `between` and `end` stand around the texts of a pair; of a single text `start` and `alone`.
    `control_ids` are those that no text becomes, `size` is the number of all. In a pair, the second token
    type begins with the text after `first_typed` ids of `between`; None where it has only one type.
    """

    tokenizer: Tokenizer
    size: int
    control_ids: frozenset[int]
    start: Ids
    between: Ids
    end: Ids
    alone: Ids
    first_typed: int | None = None

    @property
    def around_pair(self) -> int:
        return len(self.start) + len(self.between) + len(self.end)

    @property
    def around_text(self) -> int:
        return len(self.start) + len(self.alone)

    def ids(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text, without any around it: none of `control_ids`, all below `size`."""
        found = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def text(self, ids: Ids) -> Reading:
        """What the model reads of one text."""
        whole = [*self.start, *ids, *self.alone]
        return Reading(whole, len(whole))

    def pair(self, query: Ids, text: Ids) -> Reading:
        """What the model reads of a query and a text."""
        whole = [*self.start, *query, *self.between, *text, *self.end]
        if self.first_typed is None:
            return Reading(whole, len(whole))
        return Reading(whole, len(self.start) + len(query) + self.first_typed)


def of_header(values: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a GGUF file, from the header's keys, arrays of the tokenizer included. Raises
    KeyError for one that is missing."""
    kind = values["tokenizer.ggml.model"]
    tokenizer = _KINDS[kind](values)
    tokenizer.encode_special_tokens = True
    size = len(values["tokenizer.ggml.tokens"])
    # WordPiece files call the unknown piece a control token as well.
    controls = {at for at, one in enumerate(_types(values, size)) if one == _CONTROL}
    controls.discard(values.get("tokenizer.ggml.unknown_token_id"))

    def flag(name: str, default: bool) -> bool:
        return bool(values.get(f"tokenizer.ggml.add_{name}", default))

    def token(name: str, default: str) -> Ids:
        key = f"tokenizer.ggml.{name}_token_id"
        return [values[key] if key in values else values[f"tokenizer.ggml.{default}_token_id"]]

    start = token("bos", "cls") if flag("bos_token", True) else []
    end = token("eos", "seperator") if flag("eos_token", True) else []
    between = token("seperator", "eos") if flag("sep_token", kind == "t5") else []
    return Vocabulary(tokenizer, size, frozenset(controls), start, end + between, end, end)


def of_file(path: Path, size: int) -> Vocabulary:
    """The vocabulary of a tokenizer.json, of a model with `size` rows of embeddings. Raises OSError, and
    ValueError where it is damaged, does not fit the model, or does not read pairs."""
    tokenizer, said = tokenizer_file.read(path, size)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    pair, single = tokenizer.encode("a", "b"), tokenizer.encode("a")
    first, second = (_span(pair.sequence_ids, which) for which in (0, 1))
    types = pair.type_ids
    typed = types[second.start] != types[0]
    controls = {token["id"] for token in said.get("added_tokens", ()) if token["special"]}
    model = said["model"]
    is_unigram = model.get("type") == "Unigram"
    unknown = model["unk_id"] if is_unigram else tokenizer.token_to_id(model.get("unk_token") or "")
    if is_unigram:
        # Its vocabulary holds the control tokens as pieces, which texts would be cut into.
        tokenizer.model = _without(model, controls | {unknown})
    if "'Precompiled'" in repr(said.get("normalizer")):
        tokenizer.normalizer = _composing(tokenizer.normalizer)
    # Told apart from the others only now, for the template's own must have been read.
    tokenizer.encode_special_tokens = True
    return Vocabulary(
        tokenizer,
        size,
        frozenset(controls - {unknown}),
        start=pair.ids[: first.start],
        between=pair.ids[first.stop : second.start],
        end=pair.ids[second.stop :],
        alone=single.ids[_span(single.sequence_ids, 0).stop :],
        first_typed=types[first.stop : second.start].count(types[0]) if typed else None,
    )


def _span(sequence_ids: Sequence[int | None], which: int) -> range:
    """Where a text stands among the tokens around it."""
    places = [at for at, one in enumerate(sequence_ids) if one == which]
    return range(places[0], places[-1] + 1)


def _without(model: Mapping[str, Any], hidden: Collection[int | None]) -> models.Unigram:
    """The unigram model of a tokenizer.json with some pieces out of the reach of texts."""
    pieces = [
        (_UNREACHABLE.format(at) if at in hidden else piece, score)
        for at, (piece, score) in enumerate(model["vocab"])
    ]
    return models.Unigram(pieces, model["unk_id"], model.get("byte_fallback", False))


def _composing(map_of_sentencepiece: normalizers.Normalizer) -> normalizers.Normalizer:
    """A normaliser that composes letters and marks as SentencePiece does.

    The library takes a grapheme of six bytes or more character by character (`spm_precompiled`), and so
    leaves Hangul and kana decomposed, of which the model has never seen anything.
    """
    return normalizers.Sequence([normalizers.NFC(), map_of_sentencepiece, normalizers.NFC()])


def _unigram(values: Mapping[str, Any]) -> Tokenizer:
    pieces, kinds = _pieces(values)
    unknown = kinds.index(_UNKNOWN)
    for at, kind in enumerate(kinds):
        if kind in (_CONTROL, _UNKNOWN):
            pieces[at] = _UNREACHABLE.format(at)
    scores = values["tokenizer.ggml.scores"]
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unknown))
    charsmap = bytes(values["tokenizer.ggml.precompiled_charsmap"])
    tokenizer.normalizer = _composing(normalizers.Precompiled(charsmap))
    # A space before each word, and no other: SentencePiece's dummy prefix and its removal of whitespace.
    before_each = pre_tokenizers.Metaspace(_WORD_START, prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), before_each])
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
    halves = (merge.partition(" ") for merge in values["tokenizer.ggml.merges"].texts())
    merges = [(first, second) for first, _, second in halves]
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
