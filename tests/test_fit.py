"""What goes to the engine for a request, with a tokenizer of our own: a token is a word or a Chinese
character."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.domain import Method, Normalization, Recipe, RerankRequest
from rerankd.errors import TooLong
from rerankd.scoring.inputs import Fitted, fit

FIXED = 4
WORDS = ("panda", "bear", "熊猫", "of", "China.", "{document}", "<|im_end|>")
texts = st.lists(st.sampled_from(WORDS), max_size=120).map(" ".join)
short = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)


def tokens(text: str) -> int:
    return len(re.findall(r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+", text))


async def count(asked: Sequence[str]) -> list[int]:
    return [tokens(text) for text in asked]


def run(
    query: str, documents: Sequence[str], method: Method = "cross_encoder", max_length: int = 64, **more: Any
) -> Fitted:
    template = "{instruction} {query} {document}" if method == "causal_lm" else ""
    scoring = Recipe(method, max_length, Normalization("sigmoid"), template=template, instruction="usual")
    exact = more.pop("exact", True)
    request = RerankRequest(query, tuple(documents), **more)
    return asyncio.run(fit(request, scoring, FIXED, count, exact=exact))


@given(
    short,
    st.lists(texts, min_size=1, max_size=6),
    st.sampled_from(["cross_encoder", "causal_lm", "embedding"]),
)
def test_documents_are_cut_and_queries_never(query: str, documents: list[str], method: Method) -> None:
    fitted = run(query, documents, method)
    assert fitted.query == query
    room = 64 - FIXED - (0 if method == "embedding" else tokens(query) + (method == "causal_lm"))
    for at, (document, parts) in enumerate(zip(documents, fitted.plan.parts, strict=True)):
        if not document:
            assert at in fitted.plan.blank
            continue
        (text,) = (fitted.plan.texts[part] for part in parts)
        assert document.startswith(text)
        assert tokens(text) <= room
        assert (text.strip() == document.strip()) == (at not in fitted.cut)
        if tokens(document) <= room:
            assert at not in fitted.cut


@given(short, st.lists(texts, min_size=1, max_size=6), st.integers(1, 5))
def test_equal_documents_are_one_text_and_chunks_join_again(
    query: str, documents: list[str], most: int
) -> None:
    once = run(query, documents, max_chunks_per_doc=most)
    twice = run(query, documents + documents, max_chunks_per_doc=most)
    assert twice.plan.texts == once.plan.texts
    assert twice.plan.parts == once.plan.parts * 2
    raw = [float(at) for at in range(len(once.plan.texts))]
    assert once.plan.merge(raw) == [max(map(float, parts), default=None) for parts in once.plan.parts]


@pytest.mark.parametrize("method", ["cross_encoder", "causal_lm", "embedding"])
def test_a_query_that_leaves_no_room_is_refused(method: Method) -> None:
    with pytest.raises(TooLong, match=r"The query has \d+ tokens"):
        run("panda " * 61, ["bear"], method)


def test_a_document_that_must_not_be_cut_is_named() -> None:
    with pytest.raises(TooLong, match="Document 1 has 100 tokens and there is room for 59 beside the query"):
        run("panda", ["a", "bear " * 100], truncate=False)


def test_nothing_is_counted_where_length_cannot_matter() -> None:
    async def forbidden(asked: Sequence[str]) -> list[int]:
        raise AssertionError(asked)

    scoring = Recipe("cross_encoder", 512, Normalization("sigmoid"))
    request = RerankRequest("what is a panda?", ("a bear " * 100, "", "熊猫"))
    fitted = asyncio.run(fit(request, scoring, FIXED, forbidden))
    assert fitted.cut == ()


def test_an_instruction_goes_only_where_it_has_a_place() -> None:
    told = run("panda", ["bear"], "causal_lm", instruction="mine")
    assert (told.instruction, told.warnings) == ("mine", ())
    assert run("panda", ["bear"], "causal_lm").instruction == "usual"
    unused = run("panda", ["bear"], "cross_encoder", instruction="mine")
    assert unused.instruction == ""
    assert "takes no instruction" in unused.warnings[0]


def test_what_was_cut_is_said() -> None:
    assert run("panda", ["bear"] * 3).warnings == ()
    (warning,) = run("panda", [f"{at} " + "bear " * 100 for at in range(25)]).warnings
    assert "documents 0, 1, 2" in warning
    assert "and 5 more" in warning


def test_a_bound_of_0_is_none() -> None:
    text = "bear " * 100
    assert run("panda", [text], max_tokens_per_doc=0).plan.texts == run("panda", [text]).plan.texts


def test_an_overlap_that_is_held_back_is_said() -> None:
    asked = {"max_chunks_per_doc": 9, "overlap_tokens": 10_000}
    warnings = run("panda", ["bear " * 300], **asked).warnings
    assert any("Chunks share" in warning and "overlap_tokens" in warning for warning in warnings)
    assert run("panda", ["bear"], **asked).warnings == ()


def test_blank_documents_are_named_and_not_counted() -> None:
    fitted = run("panda", ["bear", " " * 5000, "\ufeff\0"])
    assert (fitted.plan.texts, fitted.plan.blank, fitted.cut) == (("bear",), (1, 2), ())
    assert fitted.warnings == ("Blank, ranked last: documents 1, 2.",)
