"""The tokenizer of a model, from a GGUF file's vocabulary or a checkpoint's tokenizer.json.

It returns the token ids of the model's reference tokenizer, which differ from llama.cpp's in some cases. The
`tokenizers` library does the work, as it does where the models are trained and used.

`tokenizer.ggml.model` in a GGUF file is one of four kinds: `t5` is SentencePiece's unigram model (XLM-R),
`llama` its BPE (Gemma), `bert` is WordPiece, `gpt2` is byte-level BPE, whose rule for splitting texts into
words is `tokenizer.ggml.pre`.

No text is tokenized to a control token, because the library's vocabulary does not contain them. They are
added around texts according to the header's flags or the template in tokenizer.json: `<s> q </s></s> d </s>`,
`[CLS] q [SEP] d [SEP]`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from rerankd.errors import ModelFileError
from rerankd.formats import checkpoint_files, gguf_metadata, sentencepiece_bpe, tokenizer_file, words
from rerankd.formats.encoder import Encoder
from rerankd.formats.metadata import ModelMetadata
from rerankd.ids import Frame, Ids

# One thread per call, because the engine needs the cores: 1,000 texts of 199 tokens take 0.10 s of CPU time,
# and 0.14 s with the library's own threads.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_WORD_START = "\u2581"
# The replacement of a piece that no text may be tokenized to. Texts contain no NUL (see deduplicate.clean).
_UNREACHABLE = "\0{}"
ARRAYS = tuple(
    f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "scores", "merges", "precompiled_charsmap")
)
"""The arrays of a GGUF header that a vocabulary is built from."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Converts texts to token ids. Thread-safe.

    `frame` contains the special-token ids around texts, `control_ids` the ids that no text is tokenized to;
    `size` is the number of all ids.
    """

    tokenizer: Tokenizer
    size: int
    control_ids: frozenset[int]
    frame: Frame
    encoder: Encoder = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoder", Encoder(self.tokenizer))

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text without the frame: none of `control_ids`, all below `size`."""
        return self.encoder.encode(texts)

    def ends(self, texts: Sequence[str]) -> list[Ids]:
        """For each text, the end of each of its tokens, as an offset in characters.

        Tokens that are parts of one character have the same end. Characters without a token, such as a mark
        that the model does not know, belong to the token before them, except spaces.
        """
        return self.encoder.ends(texts)


def read(metadata: ModelMetadata) -> Vocabulary:
    """The vocabulary of a model. Raises ModelFileError.

    This takes 0.7 s and 275 MiB for XLM-R's 250,000 pieces, 0.3 s and 45 MiB for 150,000 pieces of byte-level
    BPE. The library holds the GIL for most of the time.
    """
    path, is_gguf = metadata.path, metadata.format == "gguf"
    if is_gguf:
        header, _ = gguf_metadata.header_of(metadata.parts[0] if metadata.parts else path, ARRAYS)
    else:
        path /= checkpoint_files.TOKENIZER
    try:
        return of_header(header.values) if is_gguf else of_file(path, metadata.vocabulary_size)
    except KeyError as error:
        raise ModelFileError(f"{path}: the key {error} is missing: its vocabulary is incomplete.") from error
    except Exception as error:  # the library has no exception class for an invalid vocabulary
        raise ModelFileError(f"{path}: its tokenizer can't be read: {error}.") from error


def of_header(values: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a GGUF file, from the header's keys, including `ARRAYS`. Raises KeyError for a
    missing one."""
    kind = values["tokenizer.ggml.model"]
    tokenizer = _KINDS[kind](values)
    tokenizer.encode_special_tokens = True
    size = len(values["tokenizer.ggml.tokens"])
    # WordPiece files mark the unknown piece as a control token too.
    controls = {at for at, one in enumerate(_types(values, size)) if one == _CONTROL}
    controls.discard(values.get("tokenizer.ggml.unknown_token_id"))

    def flag(name: str, default: bool) -> bool:
        return bool(values.get(f"tokenizer.ggml.add_{name}", default))

    def token(name: str, default: str) -> list[int]:
        key = f"tokenizer.ggml.{name}_token_id"
        return [values[key] if key in values else values[f"tokenizer.ggml.{default}_token_id"]]

    is_encoder = kind != "llama" and values.get("tokenizer.ggml.pre") not in words.RULES
    has_start = is_encoder or kind == "llama" or values.get("tokenizer.ggml.pre") == words.LLAMA_3
    start = token("bos", "cls") if flag("bos_token", has_start) else []
    end = token("eos", "seperator") if flag("eos_token", is_encoder) else []
    between = token("seperator", "eos") if flag("sep_token", kind == "t5") else []
    return Vocabulary(tokenizer, size, frozenset(controls), _frame(start, end + between, end, end))


def _frame(
    start: list[int], between: list[int], end: list[int], alone: list[int], first_typed: int | None = None
) -> Frame:
    start_, between_, end_, alone_ = (np.array(ids, np.int32) for ids in (start, between, end, alone))
    return Frame(start_, between_, end_, alone_, first_typed)


def of_file(path: Path, size: int) -> Vocabulary:
    """The vocabulary of a tokenizer.json; `size` is the number of rows of the model's embedding matrix.

    Raises OSError, and ValueError if the file is damaged, does not fit the model, or can't encode pairs.
    """
    tokenizer, parsed = tokenizer_file.read(path, size)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    pair, single = tokenizer.encode("a", "b"), tokenizer.encode("a")
    first, second = (_span(pair.sequence_ids, which) for which in (0, 1))
    types = pair.type_ids
    has_types = types[second.start] != types[0]
    controls = {token["id"] for token in parsed.get("added_tokens", ()) if token["special"]}
    model = parsed["model"]
    is_unigram = model.get("type") == "Unigram"
    unknown = model["unk_id"] if is_unigram else tokenizer.token_to_id(model.get("unk_token") or "")
    if is_unigram:
        # The vocabulary contains the control tokens as pieces, so texts could be tokenized to them. The old
        # model is released first, because each takes hundreds of megabytes.
        tokenizer.model = models.Unigram()
        tokenizer.model = _without(model, controls | {unknown})
    if "'Precompiled'" in repr(parsed.get("normalizer")):
        tokenizer.normalizer = _composing(tokenizer.normalizer)
    # Set only now: above, the special tokens of the template itself had to be recognised.
    tokenizer.encode_special_tokens = True
    return Vocabulary(
        tokenizer,
        size,
        frozenset(controls - {unknown}),
        _frame(
            start=pair.ids[: first.start],
            between=pair.ids[first.stop : second.start],
            end=pair.ids[second.stop :],
            alone=single.ids[_span(single.sequence_ids, 0).stop :],
            first_typed=types[first.stop : second.start].count(types[0]) if has_types else None,
        ),
    )


def _span(sequence_ids: Sequence[int | None], which: int) -> range:
    """The positions of a text's tokens in an encoded pair."""
    positions = [at for at, one in enumerate(sequence_ids) if one == which]
    return range(positions[0], positions[-1] + 1)


def _without(model: Mapping[str, Any], hidden: Collection[int | None]) -> models.Unigram:
    """The unigram model of a tokenizer.json; no text can be tokenized to the `hidden` pieces."""
    pieces = [
        (_UNREACHABLE.format(at) if at in hidden else piece, score)
        for at, (piece, score) in enumerate(model["vocab"])
    ]
    return models.Unigram(pieces, model["unk_id"], model.get("byte_fallback", False))


def _composing(map_of_sentencepiece: normalizers.Normalizer) -> normalizers.Normalizer:
    """A normalizer that composes letters and marks like SentencePiece.

    The library itself normalizes a grapheme of six bytes or more character by character (`spm_precompiled`).
    That leaves Hangul and kana decomposed, which the model never saw in training.
    """
    return normalizers.Sequence([normalizers.NFC(), map_of_sentencepiece, normalizers.NFC()])


def _unigram(values: Mapping[str, Any]) -> Tokenizer:
    pieces, kinds = _pieces(values)
    unknown = _unknown(values, kinds)
    for at, kind in enumerate(kinds):
        if kind in (_CONTROL, _UNKNOWN):
            pieces[at] = _UNREACHABLE.format(at)
    scores = values["tokenizer.ggml.scores"]
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unknown))
    charsmap = bytes(values["tokenizer.ggml.precompiled_charsmap"])
    tokenizer.normalizer = _composing(normalizers.Precompiled(charsmap))
    # One space before each word: SentencePiece's dummy prefix and its removal of extra whitespace.
    before_each = pre_tokenizers.Metaspace(_WORD_START, prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), before_each])
    return tokenizer


def _wordpiece(values: Mapping[str, Any]) -> Tokenizer:
    pieces, kinds = _pieces(values)
    # The file marks a word's first piece with ▁; the library marks the other pieces with ##.
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
    # Llama 3 takes a word that is a piece whole.
    ignores = values["tokenizer.ggml.pre"] == words.LLAMA_3
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=ignores))
    rule = words.RULES.get(values["tokenizer.ggml.pre"])
    if values["tokenizer.ggml.pre"] not in words.UNNORMALIZED:
        tokenizer.normalizer = normalizers.NFC()
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule is None)
    tokenizer.pre_tokenizer = letters
    if rule is not None:
        split = pre_tokenizers.Split(Regex(rule), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    # Pieces added to the vocabulary, such as runs of spaces, are matched before everything else.
    added = compress(pieces, (kind == _USER_DEFINED for kind in kinds))
    tokenizer.add_tokens([AddedToken(piece, normalized=rule is None) for piece in added])
    return tokenizer


def _pair_encoding(values: Mapping[str, Any]) -> Tokenizer:
    pieces, kinds = _pieces(values)
    for at, kind in enumerate(kinds):
        if kind in (_CONTROL, _UNKNOWN):
            pieces[at] = _UNREACHABLE.format(at)
    given = zip(values["tokenizer.ggml.scores"], kinds, strict=True)
    scores = [score if kind == _NORMAL else None for score, kind in given]
    tokenizer = Tokenizer(sentencepiece_bpe.model(pieces, scores, pieces[_unknown(values, kinds)]))
    tokenizer.normalizer = normalizers.Replace(" ", _WORD_START)
    if values.get("tokenizer.ggml.add_space_prefix", True):
        first = normalizers.Prepend(_WORD_START)
        tokenizer.normalizer = normalizers.Sequence([first, tokenizer.normalizer])
    added = compress(pieces, (kind == _USER_DEFINED for kind in kinds))
    tokenizer.add_tokens([AddedToken(piece, normalized=True) for piece in added])
    return tokenizer


_KINDS: dict[str, Callable[[Mapping[str, Any]], Tokenizer]] = {
    "t5": _unigram,
    "bert": _wordpiece,
    "gpt2": _byte_level,
    "llama": _pair_encoding,
}


def _unknown(values: Mapping[str, Any], kinds: Sequence[int]) -> int:
    """The id of the unknown piece. Gemma 3's files mark it as a control token."""
    declared: int | None = values.get("tokenizer.ggml.unknown_token_id")
    return kinds.index(_UNKNOWN) if declared is None else declared


def _pieces(values: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    pieces = values["tokenizer.ggml.tokens"].texts()
    return pieces, _types(values, len(pieces))


def _types(values: Mapping[str, Any], count: int) -> list[int]:
    return list(values.get("tokenizer.ggml.token_type") or [_NORMAL] * count)
