"""Vocabularies: the ids of the reference, for every golden model, and where tokens end in a text."""

from __future__ import annotations

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
from hypothesis import given
from hypothesis import strategies as st

from ggufs import rewrite
from rerankd.errors import ModelFileError
from rerankd.formats import model_files, tokenizer, tokenizer_support
from rerankd.formats.tokenizer import Vocabulary
from rerankd.hub import builtin
from rerankd.scoring import prompt
from support import GOLDEN, golden

FILES = (
    *("xlmr-head", "bert-embedder", "modernbert-head", "qwen2-labels", "qwen3-headed", "qwen3-headless"),
    *("bert-pairs", "roberta-head"),
)
# Checkpoints, and the golden model that has the same tokenizer.
FOLDERS = {"xlmr-head": "xlmr-head", "modernbert-head": "modernbert-head", "bert-pairs": "bert-embedder"}
FACTS = {name: model_files.read(GOLDEN / golden(name)["model"]) for name in FILES}
READ = {name: tokenizer.read(metadata) for name, metadata in FACTS.items()}
FROM_FILES = {name: tokenizer.read(model_files.read(GOLDEN / name)) for name in (*FOLDERS, "roberta-head")}
ALL = [*READ.values(), *FROM_FILES.values()]
TOKENS = json.loads((GOLDEN / "tokens.json").read_text(encoding="utf-8"))
PAIRS = {pair["id"]: pair for pair in json.loads((GOLDEN / "pairs.json").read_text(encoding="utf-8"))}
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200)


@pytest.mark.parametrize("name", FILES)
def test_the_ids_of_every_golden_pair_are_those_of_the_reference(name: str) -> None:
    cases = [case for case in golden(name)["cases"] if case["fits"]]
    assert len(cases) >= 180
    for case in cases:
        assert read(name, PAIRS[case["id"]]) == case["ids"], case["id"]


def read(name: str, pair: dict[str, str]) -> list[Any]:
    """What the model reads of a pair."""
    said, vocabulary = golden(name), READ[name]
    start, between, end, alone = (ids.tolist() for ids in vocabulary.frame[:4])

    def ids(text: str) -> list[int]:
        return vocabulary.encode([text])[0].tolist()

    query, document = pair["query"], pair["document"]
    if said["way"] == "cosine":
        prefixed = (said["query_prefix"] + query, said["document_prefix"] + document)
        return [[*start, *ids(text), *alone] for text in prefixed]
    if said["way"] == "head":
        return [*start, *ids(query), *between, *ids(document), *end]
    found: list[int] = []
    for piece in said["pieces"]:
        if prompt.placeholders(piece):
            texts = {"instruction": said["instruction"] or "", "query": query, "document": document}
            found += ids(prompt.fill(piece, **texts))
        else:
            for part in prompt.split(piece, FACTS[name].control_tokens):
                found += ids(part) if isinstance(part, str) else [part]
    return found


@pytest.mark.parametrize("name", ["xlmr-head", "bert-embedder", "modernbert-head", "qwen2-labels", "builtin"])
def test_fresh_texts_of_many_scripts_get_the_ids_of_the_reference(name: str, home: Path) -> None:
    is_builtin = name == "builtin"
    vocabulary = (
        tokenizer.read(model_files.read(builtin.path_in(home / "models"))) if is_builtin else READ[name]
    )
    assert len(TOKENS) >= 126
    for row, ids in zip(TOKENS, vocabulary.encode([row["text"] for row in TOKENS]), strict=True):
        assert ids.tolist() == row[name], row["text"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_tokenizer_json_gives_the_ids_of_the_reference(name: str) -> None:
    for row, ids in zip(TOKENS, FROM_FILES[name].encode([row["text"] for row in TOKENS]), strict=True):
        assert ids.tolist() == row[FOLDERS[name]], row["text"]


@given(texts)
def test_no_text_becomes_a_control_token_or_an_id_that_is_not_there(text: str) -> None:
    for vocabulary in ALL:
        (ids,) = vocabulary.encode([text + "</s><s>[CLS][SEP]<|endoftext|><|im_end|>" + text])
        assert not set(ids.tolist()) & vocabulary.control_ids
        assert ((ids >= 0) & (ids < vocabulary.size)).all()


@given(texts)
def test_tokens_end_in_their_order_and_within_the_text(text: str) -> None:
    for vocabulary in ALL:
        (ids,), (ends,) = vocabulary.encode([text]), vocabulary.ends([text])
        assert len(ends) == len(ids) and ends.dtype == np.int32
        assert (np.diff(ends, prepend=0, append=len(text)) >= 0).all()


@pytest.mark.parametrize("vocabulary", ALL)
def test_a_text_up_to_a_tokens_end_is_read_as_the_tokens_up_to_there(vocabulary: Vocabulary) -> None:
    """But for a few: what follows decides on merges, on words that are not known whole, and on spaces."""
    whole = [row["text"] for row in TOKENS]
    cuts = [
        (text[:end], ids[: at + 1].tolist())
        for text, ids, ends in zip(whole, vocabulary.encode(whole), vocabulary.ends(whole), strict=True)
        for at, (end, following) in enumerate(itertools.pairwise(ends))
        if end < following
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
def test_no_token_ends_within_a_letter_that_is_put_together(name: str, text: str, inside: set[int]) -> None:
    (ends,) = READ[name].ends([text])
    assert not inside & {*ends.tolist()}
    assert ends[-1] == len(text)


def test_texts_are_tokenized_by_many_threads_at_a_time() -> None:
    whole = [row["text"] for row in TOKENS]
    for vocabulary in ALL:
        wanted = [ids.tolist() for ids in vocabulary.encode(whole)]
        with ThreadPoolExecutor(8) as threads:
            for found in threads.map(vocabulary.encode, [whole] * 40):
                assert [ids.tolist() for ids in found] == wanted


def test_what_stands_around_texts() -> None:
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
def test_the_flags_of_a_file_say_what_stands_around_a_text(
    tmp_path: Path, name: str, keys: dict[str, bool], start: list[int], alone: list[int]
) -> None:
    changed = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    path = rewrite(GOLDEN / f"{name}.gguf", tmp_path / "m.gguf", keys=changed)
    frame = tokenizer.read(model_files.read(path)).frame
    assert (frame.start.tolist(), frame.alone.tolist()) == (start, alone)


def test_what_can_be_read_is_known_beforehand() -> None:
    assert [tokenizer_support.refusal(metadata) for metadata in FACTS.values()] == [""] * len(FACTS)
    xlmr, qwen = FACTS["xlmr-head"], FACTS["qwen3-headless"]
    assert "normalisation map" in tokenizer_support.refusal(replace(xlmr, has_charsmap=False))
    assert tokenizer_support.refusal(replace(qwen, tokenizer_pre="llama-bpe")).startswith(
        "the tokenizer gpt2 llama"
    )
    assert tokenizer_support.refusal(replace(qwen, architecture="gemma")).endswith("gemma is not known")


def test_a_vocabulary_that_is_not_whole_is_named(tmp_path: Path) -> None:
    path = rewrite(
        GOLDEN / "qwen3-headless.gguf",
        tmp_path / "m.gguf",
        keys={"tokenizer.ggml.merges": ["no such", "pieces here"]},
    )
    with pytest.raises(ModelFileError, match=r"m\.gguf: its tokenizer can't be read"):
        tokenizer.read(model_files.read(path))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to return freed memory")
def test_a_vocabulary_that_is_dropped_returns_its_memory(home: Path) -> None:
    """An unloaded model held 230 MiB of the service for good."""
    program = f"""
import asyncio, os
from pathlib import Path
from rerankd import processes
from rerankd.formats import model_files, tokenizer
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
