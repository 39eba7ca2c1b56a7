"""Tokenization and truncation. With a simple tokenizer: a token is a word with the space before it, or a
Chinese character. With the vocabularies of golden models: the ids to which the reference library
truncates."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from rerankd.domain import Method, Normalization, Recipe
from rerankd.errors import TooLong
from rerankd.formats import model_files, tokenizer
from rerankd.scoring import truncate
from rerankd.scoring.engine_input import Frame, Ids
from rerankd.scoring.inputs import Reader, Reading
from rerankd.scoring.question import PLAIN, PreparedQuestion, Truncation
from rerankd.serving import model_tokenizer
from rerankd.serving.model_tokenizer import OwnTokenizer
from rerankd.serving.prepare_model import prepare
from support import GOLDEN, golden_settings

TOKEN = re.compile(r"[\u4e00-\u9fff]|\s*[^\s\u4e00-\u9fff]+|\s+")
MAX_LENGTH = 64
words = st.lists(
    st.sampled_from(["panda", "a", "the", "熊猫是", "Bär.", "End!", "x" * 30, "\n", "。", "{document}"]),
    min_size=1,
    max_size=150,
)
texts = words.map(" ".join).filter(str.strip)
short = st.lists(st.sampled_from(["panda", "熊猫", "of", "{document}"]), min_size=1, max_size=12).map(
    " ".join
)
methods = st.sampled_from(["cross_encoder", "causal_lm", "embedding"])


def ids(*numbers: int) -> Ids:
    return np.array(numbers, np.int32)


class Words:
    """A tokenizer with one id for each distinct token."""

    frame = Frame(ids(1), ids(2, 2), ids(2), ids(3))

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self.texts: list[str] = []

    async def encode(self, texts: Sequence[str]) -> list[Ids]:
        self.texts += texts
        return [
            ids(*(self.known.setdefault(token, 10 + len(self.known)) for token in TOKEN.findall(text)))
            for text in texts
        ]

    async def ends(self, texts: Sequence[str]) -> list[Ids]:
        return [ids(*(match.end() for match in TOKEN.finditer(text))) for text in texts]

    def text(self, found: Ids) -> str:
        by_id = {number: token for token, number in self.known.items()}
        return "".join(by_id[int(one)] for one in found)


def recipe(
    method: Method = "cross_encoder", template: str = "<|s|>Q:{query} I:{instruction}\nD:{document}"
) -> Recipe:
    return Recipe(
        method,
        MAX_LENGTH,
        Normalization("sigmoid"),
        template=template if method == "causal_lm" else "",
        instruction="usual" if method == "causal_lm" else "",
        query_prefix="query: " if method == "embedding" else "",
        document_prefix="passage: " if method == "embedding" else "",
    )


def reader(of: Recipe, *, reads_text: bool = False) -> Reader:
    return Reader(of, Words(), {"<|s|>": 7, "<|e|>": 8}, reads_text=reads_text)


def read(
    by: Reader, query: str, documents: Sequence[str], how: Truncation = PLAIN, **more: Any
) -> tuple[PreparedQuestion, Reading]:
    async def both() -> tuple[PreparedQuestion, Reading]:
        prepared = await by.prepare(query, how=how, **more)
        return prepared, await by.read(prepared, documents, how)

    return asyncio.run(both())


def tokens(text: str) -> int:
    return len(TOKEN.findall(text))


@given(short, st.lists(texts, min_size=1, max_size=5), methods)
def test_an_input_is_the_first_tokens_of_its_document(
    query: str, documents: list[str], method: Method
) -> None:
    by = reader(recipe(method))
    prepared, reading = read(by, query, documents)
    assert [list(part) for part in reading.parts] == [[at] for at in range(len(documents))]
    for at, (document, one) in enumerate(zip(documents, reading.inputs, strict=True)):
        assert one.tokens == len(one.whole) <= MAX_LENGTH
        whole = prepared.prefix + document + prepared.suffix
        (everything,) = asyncio.run(by.tokenizer.encode([whole]))
        assert one.ids.tolist() == everything[: prepared.ids_limit].tolist()
        left_out = by.tokenizer.text(everything[prepared.ids_limit :])  # type: ignore[attr-defined]
        assert (at in reading.truncated) == bool(left_out.strip())
        assert one.tokens == MAX_LENGTH or at not in reading.truncated


@given(short, texts, methods, st.integers(2, 6), st.integers(0, 40))
def test_chunks_cover_a_document_and_overlap_as_requested(
    query: str, document: str, method: Method, most: int, overlap: int
) -> None:
    by = reader(recipe(method))
    prepared, reading = read(by, query, [document], Truncation(chunks=most, overlap=overlap))
    assert 1 <= len(reading.inputs) <= most
    assert all(one.tokens <= MAX_LENGTH for one in reading.inputs)
    assert [one.chunk for one in reading.inputs] == list(range(len(reading.inputs)))
    found = [by.tokenizer.text(one.ids) for one in reading.inputs]  # type: ignore[attr-defined]
    chunks = [text.removeprefix(prepared.prefix) for text in found]
    covered = 0
    for chunk in chunks:
        matches = re.finditer(f"(?={re.escape(chunk)})", document)
        starts = [match.start() for match in matches if match.start() <= covered]
        assert starts, "a chunk begins inside or right after what came before"
        covered = max(covered, max(starts) + len(chunk))
    assert bool(reading.truncated) == bool(document[covered:].strip())
    room = prepared.document_budget
    assert reading.overlap == (room // 2 if len(chunks) > 1 and overlap > room // 2 else None)


@given(short, texts, methods, st.integers(1, 4), st.integers(1, 60))
def test_max_tokens_per_doc_limits_what_is_read(
    query: str, document: str, method: Method, most: int, limit: int
) -> None:
    by = reader(recipe(method))
    _, reading = read(by, query, [document], Truncation(max_tokens_per_doc=limit, chunks=most))
    _, whole = read(by, query, [document[:1] or "x"])
    beside = whole.inputs[0].tokens - 1
    assert sum(one.tokens - beside for one in reading.inputs) <= limit + 1
    if tokens(document) <= limit and tokens(document) + beside <= MAX_LENGTH:
        assert not reading.truncated


@given(short, texts, methods)
def test_an_engine_that_reads_text_gets_the_longest_prefix_with_the_same_tokens(
    query: str, document: str, method: Method
) -> None:
    by_text, by_ids = reader(recipe(method), reads_text=True), reader(recipe(method))
    (one,) = read(by_text, query, [document])[1].inputs
    prepared, reading = read(by_ids, query, [document])
    (other,) = reading.inputs
    assert document.startswith(one.text)
    assert not reading.truncated or not one.text[-1:].isspace()
    assert tokens(prepared.prefix + one.text + prepared.suffix) <= len(other.ids)
    if reading.truncated and not any(mark in document for mark in (" \n", "  ")):
        assert tokens(one.text) >= tokens(document[: len(one.text)]) == tokens(one.text)
        assert len(one.ids) + len(prepared.prefix) * 0 <= len(other.ids)


@given(texts, st.integers(8, 60))
def test_a_text_may_end_at_a_sentence_or_a_word(document: str, room: int) -> None:
    assume("x" * 30 not in document and "熊" not in document and "。" not in document)
    found = np.array([match.end() for match in TOKEN.finditer(document)], np.int32)
    (span,) = truncate.chunks(document, found, room, at_sentence=True)
    end = int(found[span.stop - 1])
    assert end == len(document) or document[end].isspace() or document[end - 1] in ".!\n "
    assert span.stop <= room


def test_the_end_of_a_sentence_is_preferred() -> None:
    document = "one two three four five six seven. eight nine ten eleven twelve " * 9
    by = reader(recipe())
    (plain,) = read(by, "panda", [document])[1].inputs
    (ended,) = read(by, "panda", [document], Truncation(at_sentence=True))[1].inputs
    assert plain.tokens == MAX_LENGTH > ended.tokens
    assert by.tokenizer.text(ended.ids).endswith("seven.")  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["cross_encoder", "causal_lm", "embedding"])
def test_a_query_that_leaves_too_few_tokens_is_refused_or_truncated(method: Method) -> None:
    by, query = reader(recipe(method)), "panda " * 70
    with pytest.raises(TooLong, match=r"The query has \d+ tokens.*truncate_query"):
        read(by, query, ["bear"])
    prepared, reading = read(by, query, ["bear " * 99], Truncation(query=True))
    assert prepared.query_tokens is not None
    assert (
        prepared.document_budget >= MAX_LENGTH // 4 - 6
        if method != "embedding"
        else prepared.query_tokens > 50
    )
    assert reading.inputs[0].tokens == MAX_LENGTH


@pytest.mark.parametrize("method", ["cross_encoder", "causal_lm", "embedding"])
def test_max_tokens_per_query_is_exact(method: Method) -> None:
    by = reader(recipe(method))
    prepared, _ = read(by, "what is a panda and where", ["bear"], Truncation(max_tokens_per_query=3))
    assert (prepared.question.query, prepared.query_tokens) == ("what is a", 3)
    prepared, _ = read(by, "what is a", ["bear"], Truncation(max_tokens_per_query=3))
    assert (prepared.question.query, prepared.query_tokens) == ("what is a", None)


def test_a_document_that_must_not_be_truncated_is_named() -> None:
    by = reader(recipe())
    with pytest.raises(TooLong, match="Document 7 has 100 tokens, but the query leaves 59"):
        prepared = asyncio.run(by.prepare("panda"))
        how = Truncation(is_allowed=False)
        asyncio.run(by.read(prepared, ["a", " ".join(["bear"] * 100)], how, [3, 7]))


def test_texts_are_tokenized_once() -> None:
    by = reader(recipe())
    read(by, "panda", ["a bear", "bread " * 99, "熊猫"])
    assert by.tokenizer.texts == ["panda", "a bear", "bread " * 99, "熊猫"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("reads_text", [False, True])
@pytest.mark.parametrize("word", ["bear ", "熊猫", "uncharacteristically, "])
def test_only_the_start_of_a_huge_document_is_tokenized(word: str, reads_text: bool) -> None:
    by, document = reader(recipe(), reads_text=reads_text), word * (2_000_000 // len(word))
    (one,) = read(by, "panda", [document])[1].inputs
    assert sum(map(len, by.tokenizer.texts)) < 400_000  # type: ignore[attr-defined]
    assert one.tokens == MAX_LENGTH
    assert document.startswith(by.tokenizer.text(one.ids))  # type: ignore[attr-defined]


def test_a_long_word_that_is_one_token_is_read_whole() -> None:
    by, document = reader(recipe()), "x" * 1_000_000
    _, reading = read(by, "panda", [document])
    assert (reading.inputs[0].tokens, reading.truncated) == (6, frozenset())
    with pytest.raises(TooLong, match=r"The query has more than 2\d\d tokens"):
        read(by, "panda " * 100_000, ["bear"])


def test_a_prompt_is_tokenized_piece_by_piece_and_keeps_the_text_after_the_document() -> None:
    by = reader(recipe("causal_lm", "<|s|>sys{query}<|e|>A: {document} B: {instruction}<|s|>end"))
    prepared, reading = read(by, "panda", ["bear", "bear " * 99], instruction="mine")
    text = by.tokenizer.text  # type: ignore[attr-defined]
    first, second = reading.inputs
    assert (prepared.question.before[0], prepared.question.before[-1]) == (7, 8)
    assert text(prepared.question.before[1:-1]) == "syspanda"
    assert prepared.question.after[0] == 7 and text(prepared.question.after[1:]) == "end"
    assert text(first.ids) == "A: bear B: mine"
    assert text(second.ids).startswith("A: bear bear") and text(second.ids).endswith(" B: mine")
    assert second.tokens == MAX_LENGTH
    assert read(by, "panda", ["bear"])[0].question.instruction == "usual"


def test_equal_questions_have_the_same_key() -> None:
    by = reader(recipe("causal_lm"))
    keys = [read(by, query, ["a"], instruction=told)[0].question.key for query, told in
            (("q", None), ("q", "usual"), ("q", "other"), ("r", None))]  # fmt: skip
    assert keys[0] == keys[1]
    assert len({*keys}) == 3


@given(st.lists(st.integers(0, 40_000), min_size=1, max_size=60), st.integers(1, 4))
def test_texts_are_divided_among_threads(lengths: list[int], threads: int) -> None:
    whole = [f"{at:05}" + "x" * length for at, length in enumerate(lengths)]
    parts = model_tokenizer.split(whole, threads)
    assert [*chain.from_iterable(parts)] == whole
    sizes = [sum(map(len, part)) for part in parts]
    longest = max(map(len, whole))
    assert all(size < 2**16 + longest for size in sizes)
    assert all(size >= 2**13 for size in sizes[:-1])
    if sum(sizes) <= threads * 2**16:
        assert len(parts) <= threads + 1


async def test_long_lists_of_texts_have_the_ids_of_each_text() -> None:
    """They are longer than one part, and other calls run at the same time."""
    vocabulary = tokenizer.read(model_files.read(GOLDEN / "xlmr-head"))
    own = OwnTokenizer(vocabulary)
    many = [f"{at} " + LONG[at:] for at in range(40)]
    expected = [vocabulary.encode([text])[0].tolist() for text in many]
    for found in await asyncio.gather(*(own.encode(many) for _ in range(4))):
        assert [one.tolist() for one in found] == expected


# The expected ids come from the truncation of the library that the models were trained with.


def _golden(name: str, tmp_path: Path) -> Reader:
    model = prepare(golden_settings(name, tmp_path, model=(str(GOLDEN / name),)))
    vocabulary = tokenizer.read(model_files.read(model.path))
    return Reader(model.recipe, OwnTokenizer(vocabulary), model.spec.control_tokens)


LONG = (
    "Pandas, it's said, eat  bamboo…\n\nDie Bären von China (熊猫) sind groß! 🐼 uncharacteristically " * 40
)


@pytest.mark.parametrize("name", ["xlmr-head", "modernbert-head", "bert-pairs", "roberta-head"])
@pytest.mark.parametrize("start", range(0, 40, 7))
async def test_a_truncated_pair_equals_the_tokenizers_library(name: str, start: int, tmp_path: Path) -> None:
    by = _golden(name, tmp_path)
    library = Library.from_file(str(GOLDEN / name / "tokenizer.json"))
    library.no_padding()
    library.enable_truncation(by.recipe.max_length, strategy="longest_first")
    for query in ("panda?", "which bear lives in china, and what does it eat"):
        text = LONG[start:]
        (one,) = await by.plain(query, [text])
        assert one.tokens == by.recipe.max_length
        assert one.whole.tolist() == library.encode(query, text).ids
