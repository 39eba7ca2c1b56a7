"""Tokenizers for the random checkpoints of bench/gpu.py, from Qwen's byte-level BPE vocabulary.

The package dashscope (Apache-2.0) holds that vocabulary: `pip install dashscope --no-deps`. The other
tokenizers are made from its most frequent tokens, so that they are as large, and cut texts into as many
tokens, as those of the real models. Without the package they know single bytes only, which suits tests.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

Token = bytes
_BERT = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
_BERT_ROWS, _MODERN_FIRST = 30522, 50280
_MODERN = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
# In the order of their ids, from 0 on.
_ROBERTA = ("<s>", "<pad>", "</s>", "<unk>")
_ROBERTA_ROWS = 50000
_QWEN_ROWS = 151643
# In the order of their ids, from 151643 on.
_QWEN = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
_QWEN_SPECIAL = 14
# The pattern by which Qwen2 divides texts.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_ENCODER = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}
NAMES: Mapping[str, Mapping[str, object]] = {
    "bert": {**_ENCODER, "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]},
    "modern-bert": {**_ENCODER, "model_input_names": ["input_ids", "attention_mask"]},
    "distilbert": {**_ENCODER, "model_input_names": ["input_ids", "attention_mask"]},
    "roberta": {"bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>", "eos_token": "</s>"}
    | {"pad_token": "<pad>", "unk_token": "<unk>", "model_input_names": ["input_ids", "attention_mask"]},
    "qwen": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
}
"""The names of special tokens for tokenizer_config.json."""


def is_complete() -> bool:
    """Whether the package with the vocabulary is installed."""
    return find_spec("dashscope") is not None


def write(kind: str, file: Path) -> None:
    """Write a tokenizer.json of this kind (a key of NAMES)."""
    file.write_text(_made(kind))


@cache
def _made(kind: str) -> str:
    made: Tokenizer = {
        "bert": _word_piece,
        "distilbert": _word_piece,
        "modern-bert": _modern,
        "roberta": _roberta,
        "qwen": _qwen,
    }[kind]()
    return made.to_str()


@cache
def _ranked() -> tuple[Token, ...]:
    """The tokens, the most frequent ones first."""
    # Not imported: the package's own code needs a network.
    found = find_spec("dashscope")
    if found is None or not found.submodule_search_locations:
        # "yes" and "no" are single tokens: their logits are the score of a causal model.
        return (*(bytes([at]) for at in range(256)), b"no", b"es", b"yes")
    file = Path(found.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
    return tuple(base64.b64decode(line.split()[0]) for line in file.read_bytes().splitlines())


def _byte_level(count: int, before: Sequence[str] = ()) -> Tokenizer:
    """Byte-level BPE with the `count` first tokens, after those of `before`. Where there are fewer,
    unused ones stand in, so that tokens added after them have the ids of the real vocabulary."""
    first = len(before)
    ranks = {token: first + rank for rank, token in enumerate(_ranked()[:count])}
    letters = _letters()

    def text(token: Token) -> str:
        return "".join(letters[one] for one in token)

    merges = []
    for token in ranks:
        halves = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [(ranks[a], ranks[b], a, b) for a, b in halves if a in ranks and b in ranks]
        merges += [(text(a), text(b)) for *_, a, b in sorted(known)]
    vocabulary = {text(token): rank for token, rank in ranks.items()}
    vocabulary |= {f"<unused{at}>": at for at in range(first + len(ranks), first + count)}
    vocabulary |= {name: at for at, name in enumerate(before)}
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    return made


@cache
def _letters() -> Sequence[str]:
    """The printable letter of each byte, as GPT-2 chose them."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [one for one in range(256) if one not in shown]
    return [chr(one if one in shown else 256 + hidden.index(one)) for one in range(256)]


def _qwen() -> Tokenizer:
    made = _byte_level(_QWEN_ROWS)
    split = pre_tokenizers.Split(Regex(_PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    made.add_special_tokens(
        [AddedToken(one, normalized=False, special=True) for one in _QWEN[:_QWEN_SPECIAL]]
    )
    made.add_tokens([AddedToken(one, normalized=False) for one in _QWEN[_QWEN_SPECIAL:]])
    return made


def _modern() -> Tokenizer:
    made = _byte_level(_MODERN_FIRST)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens([AddedToken(one, normalized=False, special=True) for one in _MODERN])
    made.post_processor = _pairs(made, types=0)
    return made


def _roberta() -> Tokenizer:
    made = _byte_level(_ROBERTA_ROWS, _ROBERTA)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens([AddedToken(one, normalized=False, special=True) for one in _ROBERTA])
    marks = [(name, made.token_to_id(name)) for name in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=marks
    )
    return made


def _word_piece() -> Tokenizer:
    """WordPiece: tokens that begin with a space begin words, the others continue them."""
    letters = [chr(at) for at in range(33, 127) if not chr(at).isupper()]
    pieces = dict.fromkeys([*letters, *(f"##{one}" for one in letters)])
    for token in _ranked():
        text = token.decode("ascii", "replace")
        if text.strip().isalpha() and text.isascii() and text == text.lower():
            pieces[text.strip() if text.startswith(" ") else f"##{text}"] = None
    rest = iter(pieces)
    vocabulary = {_BERT.get(at) or next(rest, f"[unused{at}]"): at for at in range(_BERT_ROWS)}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens([*_BERT.values()])
    made.post_processor = _pairs(made, types=1)
    return made


def _pairs(made: Tokenizer, types: int) -> processors.TemplateProcessing:
    """[CLS] query [SEP] document [SEP], the second part with this token type."""
    marks = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    return processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=f"[CLS] $A [SEP] $B:{types} [SEP]:{types}", special_tokens=marks
    )
