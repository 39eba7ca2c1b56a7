"""Tokenizers: token ids equal the reference's for every golden model; the ends of tokens in a text."""

from __future__ import annotations

import copy
import itertools
import json
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from ggufs import rewrite, strings
from rerankd.errors import ModelFileError
from rerankd.formats import gguf_metadata, model_files, tokenizer, tokenizer_support
from rerankd.formats.encoder import Encoder
from rerankd.formats.tokenizer import Vocabulary
from rerankd.hub import builtin
from rerankd.scoring import prompt
from support import GOLDEN, golden

FILES = (
    *("xlmr-head", "bert-embedder", "modernbert-head", "qwen2-labels", "qwen3-headed", "qwen3-headless"),
    *("bert-pairs", "roberta-head", "deberta-v3", "camembert", "gte"),
)
# Checkpoint -> the golden model with the same tokenizer.
FOLDERS = {"xlmr-head": "xlmr-head", "modernbert-head": "modernbert-head", "bert-pairs": "bert-embedder"}
FACTS = {name: model_files.read(GOLDEN / golden(name)["model"]) for name in FILES}
READ = {name: tokenizer.read(metadata) for name, metadata in FACTS.items()}
FROM_FILES = {name: tokenizer.read(model_files.read(GOLDEN / name)) for name in (*FOLDERS, "roberta-head")}
ALL = [*READ.values(), *FROM_FILES.values()]
TOKENS = json.loads((GOLDEN / "tokens.json").read_text(encoding="utf-8"))
PAIRS = {pair["id"]: pair for pair in json.loads((GOLDEN / "pairs.json").read_text(encoding="utf-8"))}
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200)


@pytest.mark.parametrize("name", FILES)
def test_the_ids_of_every_golden_pair_equal_the_reference(name: str) -> None:
    cases = [case for case in golden(name)["cases"] if case["fits"]]
    assert len(cases) >= 180
    for case in cases:
        assert read(name, PAIRS[case["id"]]) == case["ids"], case["id"]


def read(name: str, pair: dict[str, str]) -> list[Any]:
    """The token ids of a pair."""
    expected, vocabulary = golden(name), READ[name]
    start, between, end, alone = (ids.tolist() for ids in vocabulary.frame[:4])

    def ids(text: str) -> list[int]:
        return vocabulary.encode([text])[0].tolist()

    query, document = pair["query"], pair["document"]
    if expected["way"] == "cosine":
        prefixed = (expected["query_prefix"] + query, expected["document_prefix"] + document)
        return [[*start, *ids(text), *alone] for text in prefixed]
    if expected["way"] == "head":
        return [*start, *ids(query), *between, *ids(document), *end]
    found: list[int] = []
    for piece in expected["pieces"]:
        if prompt.placeholders(piece):
            texts = {"instruction": expected["instruction"] or "", "query": query, "document": document}
            found += ids(prompt.fill(piece, **texts))
        else:
            for part in prompt.split(piece, FACTS[name].control_tokens):
                found += ids(part) if isinstance(part, str) else [part]
    return found


@pytest.mark.parametrize("name", ["xlmr-head", "bert-embedder", "modernbert-head", "qwen2-labels", "builtin"])
def test_the_ids_of_texts_in_many_scripts_equal_the_reference(name: str, home: Path) -> None:
    is_builtin = name == "builtin"
    vocabulary = (
        tokenizer.read(model_files.read(builtin.path_in(home / "models"))) if is_builtin else READ[name]
    )
    assert len(TOKENS) >= 126
    for row, ids in zip(TOKENS, vocabulary.encode([row["text"] for row in TOKENS]), strict=True):
        assert ids.tolist() == row[name], row["text"]


@pytest.mark.parametrize("name", FOLDERS)
def test_the_ids_of_a_tokenizer_json_equal_the_reference(name: str) -> None:
    for row, ids in zip(TOKENS, FROM_FILES[name].encode([row["text"] for row in TOKENS]), strict=True):
        assert ids.tolist() == row[FOLDERS[name]], row["text"]


@given(texts)
def test_no_text_becomes_a_control_token_or_an_unknown_id(text: str) -> None:
    for vocabulary in ALL:
        (ids,) = vocabulary.encode([text + "</s><s>[CLS][SEP]<|endoftext|><|im_end|>" + text])
        assert not set(ids.tolist()) & vocabulary.control_ids
        assert ((ids >= 0) & (ids < vocabulary.size)).all()


@given(texts)
def test_token_ends_increase_and_stay_within_the_text(text: str) -> None:
    for vocabulary in ALL:
        (ids,), (ends,) = vocabulary.encode([text]), vocabulary.ends([text])
        assert len(ends) == len(ids) and ends.dtype == np.int32
        assert (np.diff(ends, prepend=0, append=len(text)) >= 0).all()


@pytest.mark.parametrize("vocabulary", ALL)
def test_a_text_truncated_at_a_token_end_has_the_tokens_up_to_there(vocabulary: Vocabulary) -> None:
    """With few exceptions: merges, words split into pieces, and spaces depend on the text that follows."""
    whole = [row["text"] for row in TOKENS]
    cuts = [
        (text[:end], ids[: at + 1].tolist())
        for text, ids, ends in zip(whole, vocabulary.encode(whole), vocabulary.ends(whole), strict=True)
        for at, (end, following) in enumerate(itertools.pairwise(ends))
        # DeBERTa's tokenizer drops spaces at the end of a text.
        if end < following and not text[end - 1 : end].isspace()
    ]
    assert len(cuts) > 1000
    again = vocabulary.encode([text for text, _ in cuts])
    same = sum(ids.tolist() == wanted for ids, (_, wanted) in zip(again, cuts, strict=True))
    assert same > 0.9 * len(cuts)


@pytest.mark.parametrize("name", ["xlmr-head", "modernbert-head", "qwen2-labels"])
@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("ne\u0301e z", {2}),
        ("n\u1112\u1161\u11ab\u1100\u116e\u11a8 z", {2, 3, 5, 6}),
        ("na\u0323\u0302 z", {2, 3}),
    ],
)
def test_no_token_ends_inside_a_composed_letter(name: str, text: str, inside: set[int]) -> None:
    (ends,) = READ[name].ends([text])
    assert not inside & {*ends.tolist()}
    assert ends[-1] == len(text)


def test_a_vocabulary_is_thread_safe() -> None:
    whole = [row["text"] for row in TOKENS]
    for vocabulary in ALL:
        wanted = [ids.tolist() for ids in vocabulary.encode(whole)]
        with ThreadPoolExecutor(8) as threads:
            for found in threads.map(vocabulary.encode, [whole] * 40):
                assert [ids.tolist() for ids in found] == wanted


def _of_header(name: str, **changed: Any) -> Vocabulary:
    header, _ = gguf_metadata.header_of(GOLDEN / f"{name}.gguf", tokenizer.ARRAYS)
    return tokenizer.of_header(
        header.values | {f"tokenizer.ggml.{key}": value for key, value in changed.items()}
    )


SMOLLM = _of_header("qwen3-headless", pre="smollm")


def _of_bge() -> Vocabulary:
    """XLM-R's vocabulary in the form that transformers 4 wrote for bge-m3 and others."""
    own = FROM_FILES["xlmr-head"]
    written = copy.deepcopy(own.tokenizer)
    steps = [normalizers.Strip(left=False), normalizers.Replace(Regex(" {2,}"), "\u2581")]
    written.normalizer = normalizers.Sequence([written.normalizer, *steps])
    written.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", prepend_scheme="always")
    written.encode_special_tokens = True  # a copy has lost it
    return replace(own, tokenizer=written)


OF_BGE = _of_bge()
_ASCII = st.text(st.characters(max_codepoint=127, exclude_characters="\0"), max_size=200)
_WORDS = st.lists(
    st.sampled_from(
        [*"aZ,.~`|", " ", "  ", "\n", "\r\n", "\t", "The", "it's", "<s>", "[SEP]", "##s", "<think>"]
    )
)


@given(_ASCII | _WORDS.map("".join))
def test_ascii_texts_have_the_same_ids_without_the_normalizer(text: str) -> None:
    shortened = [vocabulary for vocabulary in (*ALL, OF_BGE) if vocabulary.encoder.knows_ascii]
    assert len(shortened) >= 13
    for vocabulary in shortened:
        whole = vocabulary.tokenizer.encode(text, add_special_tokens=False).ids
        assert vocabulary.encode([text, "é", text])[2].tolist() == whole


@pytest.mark.parametrize(
    "normalizer",
    [
        normalizers.Sequence([normalizers.NFC(), normalizers.Replace("a", "b")]),
        normalizers.Sequence([normalizers.NFC(), normalizers.Sequence([normalizers.Prepend("x")])]),
        normalizers.Replace(Regex("a+"), "a"),
    ],
)
def test_a_normalizer_that_changes_ascii_is_not_left_out(normalizer: normalizers.Normalizer) -> None:
    own = copy.deepcopy(READ["bert-embedder"].tokenizer)
    assert Encoder(own).knows_ascii
    own.normalizer = normalizer
    assert not Encoder(own).knows_ascii


def test_special_tokens_around_texts() -> None:
    def frame(vocabulary: Vocabulary) -> list[list[int]]:
        return [ids.tolist() for ids in vocabulary.frame[:4]]

    assert frame(READ["xlmr-head"]) == frame(FROM_FILES["xlmr-head"]) == [[0], [2, 2], [2], [2]]
    assert frame(READ["bert-embedder"]) == frame(FROM_FILES["bert-pairs"]) == [[2], [3], [3], [3]]
    assert frame(READ["qwen3-headless"]) == [[], [], [], []]
    assert FROM_FILES["bert-pairs"].frame.first_typed == 1
    assert FROM_FILES["xlmr-head"].frame.first_typed is None


@pytest.mark.parametrize(
    ("name", "keys", "start", "alone"),
    [
        ("qwen3-headless", {"add_eos_token": True}, [], [1602]),
        ("qwen3-headless", {"add_bos_token": True}, [1600], []),
        ("bert-embedder", {"add_eos_token": False}, [2], []),
    ],
)
def test_the_header_flags_select_the_special_tokens(
    tmp_path: Path, name: str, keys: dict[str, bool], start: list[int], alone: list[int]
) -> None:
    changed = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    path = rewrite(GOLDEN / f"{name}.gguf", tmp_path / "m.gguf", keys=changed)
    frame = tokenizer.read(model_files.read(path)).frame
    assert (frame.start.tolist(), frame.alone.tolist()) == (start, alone)


def test_an_unknown_piece_may_be_marked_as_a_control_token() -> None:
    """As in the files of Gemma 3."""
    vocabulary = _of_header("gemma-yes")
    kinds = [3 if at == 3 else 1 for at in range(vocabulary.size)]
    changed = _of_header("gemma-yes", token_type=kinds, unknown_token_id=3)
    assert [*changed.encode(["a pair of texts"])[0]] == [*vocabulary.encode(["a pair of texts"])[0]]
    assert 3 not in changed.control_ids


@given(texts)
def test_smollm_splits_texts_like_gpt2_and_each_digit_apart(text: str) -> None:
    split = SMOLLM.tokenizer.pre_tokenizer
    reference = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert split.pre_tokenize_str(text) == reference.pre_tokenize_str(text)
    assert SMOLLM.tokenizer.normalizer is None
    assert not SMOLLM.frame.end.size


def test_unsupported_tokenizers_are_detected_from_the_metadata() -> None:
    assert [tokenizer_support.refusal(metadata) for metadata in FACTS.values()] == [""] * len(FACTS)
    xlmr, qwen = FACTS["xlmr-head"], FACTS["qwen3-headless"]
    assert "normalization map" in tokenizer_support.refusal(replace(xlmr, has_charsmap=False))
    assert tokenizer_support.refusal(replace(qwen, tokenizer_pre="llama-bpe")).startswith(
        "the tokenizer gpt2 llama"
    )
    assert tokenizer_support.refusal(replace(qwen, architecture="gemma")).endswith("gemma is not supported")


def _of_llama_3() -> tuple[Tokenizer, Vocabulary]:
    """A tokenizer as in a Llama 3 checkpoint's tokenizer.json, and what is read from the GGUF file of it.

    Its words are those of the golden pairs. "whole" is a piece that no merges lead to.
    """
    pieces = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges: list[tuple[str, str]] = []
    for word in (text.split()[0] for pair in PAIRS.values() for text in pair.values() if text.split()):
        letters = [
            letter for letter, _ in pre_tokenizers.ByteLevel(add_prefix_space=True).pre_tokenize_str(word)
        ]
        for start, end in itertools.pairwise("".join(letters)[:4]):
            if start + end not in pieces:
                merges.append((start, end))
                pieces.append(start + end)
    pieces += ["whole", "\u0120whole", "123", "1234"]
    reference = Tokenizer(
        models.BPE({piece: at for at, piece in enumerate(pieces)}, merges, ignore_merges=True)
    )
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(Regex(words), "isolated")
    letters_of_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    reference.pre_tokenizer = pre_tokenizers.Sequence([split, letters_of_bytes])
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": strings(*pieces),
        "tokenizer.ggml.token_type": (3, 3, *[1] * (len(pieces) - 2)),
        "tokenizer.ggml.merges": strings(*(f"{first} {second}" for first, second in merges)),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    return reference, tokenizer.of_header(values)


LLAMA_3, OF_LLAMA_3 = _of_llama_3()


@given(texts)
@example("the whole 1234 e\u0301 It's\r\n\n  whole")
def test_llama_3_is_split_as_in_its_checkpoint(text: str) -> None:
    assert OF_LLAMA_3.encode([text])[0].tolist() == LLAMA_3.encode(text).ids
    assert [ids.tolist() for ids in OF_LLAMA_3.frame[:4]] == [[0], [], [], []]


def test_an_incomplete_vocabulary_is_an_error(tmp_path: Path) -> None:
    path = rewrite(
        GOLDEN / "qwen3-headless.gguf",
        tmp_path / "m.gguf",
        keys={"tokenizer.ggml.merges": ["no such", "pieces here"]},
    )
    with pytest.raises(ModelFileError, match=r"m\.gguf: its tokenizer can't be read"):
        tokenizer.read(model_files.read(path))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc_trim")
def test_a_dropped_vocabulary_returns_its_memory(home: Path) -> None:
    """The service kept 230 MiB after unloading a model."""
    program = f"""
import asyncio, os
from pathlib import Path
from rerankd import processes
from rerankd.formats import model_files
from rerankd.serving.model_tokenizer import ModelVocabulary

def held():
    return processes.memory_bytes(os.getpid()) >> 20

async def main():
    vocabulary = ModelVocabulary(model_files.read(Path({str(builtin.path_in(home / "models"))!r})))
    before = held()
    await vocabulary.tokenizer()
    read = held()
    await vocabulary.drop()
    print(before, read, held())

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, read, dropped = map(int, done.stdout.split())
    assert read > before + 200 and dropped < before + 60, (before, read, dropped)
