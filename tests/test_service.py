"""Requests on real engines with tiny models: truncation, refusals and results."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import fake_engine
from rerankd.api.dialects.table import DEFAULT
from rerankd.config import Settings
from rerankd.domain import Normalization, RerankRequest
from rerankd.errors import ConfigError, InvalidRequest, ModelFileError, TooLong, UnknownModel, Unscorable
from rerankd.rerank_result import DocumentError, RerankResult
from rerankd.scoring import deduplicate, normalize
from rerankd.scoring.result import Scored, ranked
from rerankd.scoring.stages import StageScores
from rerankd.service import Reranker
from rerankd.serving.prepare_model import prepare
from support import GOLDEN, count_tokens, golden_settings, inputs

WORDS = ["panda", "bear", "river", "mountain", "bread", "ticket", "weather", "library", "guitar", "pizza"]
QUERY = "which bear lives in china?"


def prose(words: int, seed: int = 0) -> str:
    pick = random.Random(seed)
    return " ".join(pick.choice(WORDS) + ("." if at % 9 == 8 else "") for at in range(words))


def values(result: RerankResult) -> dict[int, float]:
    return {scored.index: scored.score for scored in result.results}


@pytest.fixture(params=["xlmr-head", "qwen3-headless", "bert-embedder"], scope="module")
async def reranker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Reranker]:
    """One model of each scoring method."""
    async with Reranker(golden_settings(request.param, tmp_path_factory.mktemp("home"))) as opened:
        yield opened


async def document_budget(reranker: Reranker) -> int:
    """The number of tokens of a document with QUERY."""
    return (await (await reranker.registry.find(None).reader()).prepare(QUERY)).document_budget


async def test_only_the_long_document_is_truncated(reranker: Reranker) -> None:
    long = prose(900)
    short = "the panda is a bear"
    result = await reranker.rerank(QUERY, [short, long], return_documents=True, raw_scores=True)
    (warning,) = result.warnings
    assert "document 1" in warning
    alone = await reranker.rerank(QUERY, [short], raw_scores=True)
    assert values(result)[0] == pytest.approx(values(alone)[0], abs=1e-3)
    # The document is read up to the limit, but returned whole.
    assert {scored.index: scored.text for scored in result.results}[1] == long
    one, other = await inputs(reranker, QUERY, [short, long])
    assert (one.tokens < 100, other.tokens) == (True, reranker.model.engine.spec.recipe.max_length)
    assert result.tokens == one.tokens + other.tokens + len(one.question.ids)


async def test_a_document_that_fits_exactly_is_not_truncated(reranker: Reranker) -> None:
    budget = await document_budget(reranker)
    text = "panda"
    while (await count_tokens(reranker, text + " a"))[0] <= budget:
        text += " a"
    assert (await reranker.rerank(QUERY, [text], truncate=False)).warnings == ()
    assert (await reranker.rerank(QUERY, [text + prose(9)])).warnings != ()


async def test_truncate_false_names_the_document_and_both_lengths(reranker: Reranker) -> None:
    long = prose(900)
    (length,) = await count_tokens(reranker, long)
    budget = await document_budget(reranker)
    with pytest.raises(TooLong, match=r"Document 1 has \d+ tokens, but the query leaves \d+\.") as caught:
        await reranker.rerank(QUERY, ["short", long], truncate=False)
    _, said, told = map(int, re.findall(r"\d+", caught.value.message))
    # Inside its prompt, a text may have a token or two less than alone.
    assert 0 <= length - said <= 2 and told == budget
    assert (await reranker.rerank(QUERY, ["short"], truncate=False)).warnings == ()


async def test_the_score_of_a_document_is_that_of_its_best_chunk(reranker: Reranker) -> None:
    text = prose(900)
    whole = await reranker.rerank(QUERY, [text], max_chunks_per_doc=50, raw_scores=True)
    assert whole.warnings == ()
    one = await reranker.rerank(QUERY, [text], raw_scores=True)
    assert values(whole)[0] > values(one)[0] - 1e-6
    assert whole.tokens > 1.5 * one.tokens
    overlapping = await reranker.rerank(
        QUERY,
        [text],
        max_chunks_per_doc=200,
        overlap_tokens=await document_budget(reranker) // 2,
        raw_scores=True,
    )
    assert overlapping.warnings == ()
    assert overlapping.tokens > 1.3 * whole.tokens


async def test_max_tokens_per_doc_limits_the_tokens_read(reranker: Reranker) -> None:
    text = prose(900)
    one = await reranker.rerank(QUERY, ["a"])
    for most in (1, 50):
        result = await reranker.rerank(QUERY, [text], max_tokens_per_doc=40, max_chunks_per_doc=most)
        assert "document 0" in result.warnings[0]
        assert 29 <= result.tokens - one.tokens <= 41
    small = await reranker.rerank(QUERY, ["a panda"], max_tokens_per_doc=40)
    assert small.warnings == ()


async def test_a_query_that_does_not_fit_is_refused_and_never_truncated(reranker: Reranker) -> None:
    with pytest.raises(TooLong, match="The query has"):
        await reranker.rerank(prose(900), ["a panda"])


async def test_text_with_unusually_many_tokens_per_character_is_truncated_too(reranker: Reranker) -> None:
    budget = await document_budget(reranker)
    dense = "!?" * (budget * 4 // 5)
    assert (await count_tokens(reranker, dense))[0] > budget
    result = await reranker.rerank(QUERY, ["a panda", dense])
    assert "document 1" in result.warnings[0]
    alone = await reranker.rerank(QUERY, ["a panda"])
    assert values(result)[0] == pytest.approx(values(alone)[0], abs=1e-3)


async def test_the_order_of_documents_does_not_matter(reranker: Reranker) -> None:
    texts = [prose(20, seed) for seed in range(40)] + [" ", "熊猫", "🐼", prose(900)]
    base = values(await reranker.rerank(QUERY, texts))
    shuffled = list(range(len(texts)))
    random.Random(2).shuffle(shuffled)
    again = await reranker.rerank(QUERY, [texts[at] for at in shuffled])
    assert {shuffled[at]: score for at, score in values(again).items()} == pytest.approx(base, abs=1e-3)
    scores = [scored.score for scored in again.results]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


async def test_top_n_and_empty_requests(reranker: Reranker) -> None:
    assert len((await reranker.rerank(QUERY, ["a", "b", "c"], top_n=2)).results) == 2
    assert len((await reranker.rerank(QUERY, ["a"], top_n=9)).results) == 1
    for query, documents, says in ((" \n", ["a"], "query is empty"), ("q", [], "list of documents is empty")):
        with pytest.raises(InvalidRequest, match=says):
            await reranker.rerank(query, documents)
    with pytest.raises(InvalidRequest, match="10001 documents"):
        await reranker.rerank("q", ["a"] * 10_001)


async def test_surrogates_and_control_characters_are_scored(reranker: Reranker) -> None:
    result = await reranker.rerank("wh\ud800at\0?", ["\ud83d", "a\0b", "\0", "\x1e", "\u202e"])
    assert len(result.results) == 5


@pytest.mark.parametrize("raw_scores", [False, True])
async def test_blank_documents_come_last_with_a_warning(reranker: Reranker, raw_scores: bool) -> None:
    """An embedding model scores an empty text above all others."""
    texts = ["", "a panda is a bear", " \n\u3000", "bread", "\ufeff\u200b\0"]
    result = await reranker.rerank(QUERY, texts, raw_scores=raw_scores, return_documents=True)
    assert [scored.index for scored in result.results][2:] == [0, 2, 4]
    assert result.results[-1].text == texts[4]
    assert result.blank == (0, 2, 4)
    assert result.warnings == ("Blank and ranked last: documents 0, 2, 4.",)
    shown = [scored.score for scored in result.results]
    assert shown == sorted(shown, reverse=True)
    if raw_scores:
        assert all(normalize.score(value, reranker.model.recipe.normalization) < 1e-37 for value in shown[2:])
    else:
        assert shown[2:] == [0, 0, 0]
    alone = await reranker.rerank(QUERY, ["a panda is a bear", "bread"], raw_scores=raw_scores)
    assert sorted(values(alone).values()) == pytest.approx(sorted(shown[:2]), abs=1e-3)


async def test_a_request_with_only_blank_documents_is_answered(reranker: Reranker) -> None:
    result = await reranker.rerank(QUERY, ["", " "])
    assert [(scored.index, scored.score) for scored in result.results] == [(0, 0), (1, 0)]
    with pytest.raises(InvalidRequest, match="query is empty"):
        await reranker.rerank("\ufeff\u200b", ["a"])


async def test_documents_with_equal_clipped_scores_are_ranked_by_raw_score(tmp_path: Path) -> None:
    """Both cosines are above the upper bound, so both scores are 1."""
    texts = [prose(12, seed) for seed in range(12)]
    scoring = {"low": -1.0, "high": -0.999}
    async with Reranker(golden_settings("bert-embedder", tmp_path, scoring=scoring)) as reranker:
        raw = values(await reranker.rerank(QUERY, texts, raw_scores=True))
        result = await reranker.rerank(QUERY, texts)
        best = await reranker.rerank(QUERY, texts, top_n=3)
    assert {scored.score for scored in result.results} == {1.0}
    order = sorted(raw, key=lambda index: -raw[index])
    assert order != sorted(order)
    assert [scored.index for scored in result.results] == order
    assert [scored.index for scored in best.results] == order[:3]


LOGITS = (48.0, 76.0, None, 52.0, -1.0)


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, [(1, 1.0), (3, 1.0), (0, 1.0), (4, 0.2689), (2, 0.0)]),
        ({"top_n": 2}, [(1, 1.0), (3, 1.0)]),
        ({"raw_scores": True}, [(1, 76), (3, 52), (0, 48), (4, -1), (2, -87)]),
        ({"score_threshold": 0.3}, [(1, 1.0), (3, 1.0), (0, 1.0)]),
        ({"score_threshold": 0.2, "raw_scores": True, "top_n": 9}, [(1, 76), (3, 52), (0, 48), (4, -1)]),
        ({"score_threshold": 1.1}, []),
        ({"score_threshold": 0.0}, [(1, 1.0), (3, 1.0), (0, 1.0), (4, 0.2689), (2, 0.0)]),
    ],
)
def test_rows_are_ordered_by_raw_score(options: dict[str, Any], rows: list[tuple[int, float]]) -> None:
    """Logits above 37 all have the score 1, but keep their order."""
    request = RerankRequest("q", tuple("abcde"), **options)
    found = ranked(request, [StageScores(LOGITS, Normalization("sigmoid"))])
    assert [row.index for row in found] == [index for index, _ in rows]
    assert [row.score for row in found] == pytest.approx([score for _, score in rows], abs=1e-4)


def test_documents_that_could_not_be_scored_are_named_with_the_reason() -> None:
    made = deduplicate.unique_texts(["a", "b", "c", "d"], 3)
    scored = Scored(
        made, [1.0, None, None, None], {2: "it hung", 1: "it crashed"}, partly=(0,), unscored=(3,)
    )
    assert scored.document_errors == (DocumentError(1, "it crashed"), DocumentError(2, "it hung"))
    assert scored.warnings() == (
        "Not scored and ranked last, in the order sent: document 3; max_scored_documents was reached.",
        "Not scored and ranked last: document 1. Reason: it crashed.",
        "Not scored and ranked last: document 2. Reason: it hung.",
        "Some chunks could not be scored, so the score is that of the others: document 0.",
    )


async def test_max_scored_documents_scores_only_the_first_documents(reranker: Reranker) -> None:
    texts = ["a panda is a bear", " ", "bread", "a ticket", "bread", "pizza"]
    whole = values(await reranker.rerank(QUERY, texts[:4], raw_scores=True))
    result = await reranker.rerank(QUERY, texts, raw_scores=True, max_scored_documents=3)
    assert result.unscored == (3, 5) and result.blank == (1,)
    order = [scored.index for scored in result.results]
    assert order[3:] == [1, 3, 5] and {*order[:3]} == {0, 2, 4}
    assert values(result)[0] == pytest.approx(whole[0], abs=1e-3)
    assert values(result)[2] == values(result)[4] == pytest.approx(whole[2], abs=1e-3)
    assert "max_scored_documents was reached" in result.warnings[-1]
    assert (await reranker.rerank(QUERY, texts, max_scored_documents=0)).unscored == ()


async def test_usage_counts_all_tokens_and_reports_cached_ones(tmp_path: Path) -> None:
    """It was 0 if all scores were cached."""
    texts = [prose(12, seed) for seed in range(6)]
    settings = golden_settings("xlmr-head", tmp_path)
    async with Reranker(settings, cache_entries=1000) as reranker:
        first = await reranker.rerank(QUERY, texts)
        again = await reranker.rerank(QUERY, texts)
        partly = await reranker.rerank(QUERY, [*texts, prose(12, 99)])
        twice = await reranker.rerank(WORDS[0], [texts[0], texts[0]])
    assert (first.requested_tokens, first.cached_tokens) == (first.tokens, 0)
    assert (again.tokens, again.requested_tokens, again.cached_tokens) == (0, first.tokens, first.tokens)
    assert partly.tokens > 0 and partly.cached_tokens == first.tokens
    assert twice.cached_tokens == twice.tokens > 0
    usage = DEFAULT.render(again, "id")["usage"]
    assert usage["prompt_tokens"] == usage["total_tokens"] == first.tokens
    assert usage["prompt_tokens_details"] == {"cached_tokens": first.tokens}


async def test_concurrent_requests_get_their_own_answers(reranker: Reranker) -> None:
    texts = [prose(12, seed) for seed in range(8)]
    alone = [values(await reranker.rerank(query, texts)) for query in WORDS]
    together = await asyncio.gather(*(reranker.rerank(query, texts) for query in WORDS))
    for expected, result in zip(alone, together, strict=True):
        assert values(result) == pytest.approx(expected, abs=1e-3)


async def test_an_engine_that_is_killed_is_replaced(tmp_path: Path) -> None:
    async with Reranker(golden_settings("xlmr-head", tmp_path)) as reranker:
        before = await reranker.rerank(QUERY, ["a panda", "bread"])
        pid = reranker.state.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        after = await reranker.rerank(QUERY, ["a panda", "bread"])
        assert values(after) == pytest.approx(values(before), abs=1e-6)
        assert reranker.state.pid != pid


async def test_an_instruction_reaches_a_causal_lm(tmp_path: Path) -> None:
    async with Reranker(golden_settings("qwen3-headless", tmp_path)) as reranker:
        usual, other = [
            (await reranker.rerank(QUERY, ["a panda"], instruction=text, raw_scores=True)).results[0].score
            for text in (None, "Find what contradicts the claim")
        ]
        named = await reranker.rerank(
            QUERY, ["a panda"], instruction=reranker.model.recipe.instruction, raw_scores=True
        )
        assert abs(usual - other) > 1e-3
        assert named.results[0].score == pytest.approx(usual, abs=1e-4)


async def test_an_unused_instruction_gives_a_warning(tmp_path: Path) -> None:
    async with Reranker(golden_settings("xlmr-head", tmp_path)) as reranker:
        usual = await reranker.rerank(QUERY, ["a panda"])
        told = await reranker.rerank(QUERY, ["a panda"], instruction="Find bears")
        assert usual.warnings == ()
        assert "takes no instruction" in told.warnings[0]
        assert values(told) == pytest.approx(values(usual), abs=1e-6)


@pytest.mark.parametrize(
    ("how", "says"), [("same", "the same raw score"), ("place", "its position in the request")]
)
async def test_a_model_that_fails_the_self_test_is_refused_unless_forced(
    tmp_path: Path, how: str, says: str
) -> None:
    program = fake_engine.install(tmp_path, "--bad-scores", how, "--bad-after", "0")
    settings = golden_settings("xlmr-head", tmp_path, llama_path=program)
    with pytest.raises(Unscorable, match=f"can't be trusted: .*{says}.*--force"):
        async with Reranker(settings):
            pass
    async with Reranker(settings, force=True) as forced:
        result = await forced.rerank(QUERY, ["a panda", "bread"])
    assert "failed the self-test" in result.warnings[0]
    assert says in result.warnings[0]


def model(path: Path | str, home: Path, **more: Any) -> Settings:
    return Settings.model_validate({"model": str(path), "home": home, **more})


def test_a_model_larger_than_memory_is_refused_before_the_start(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "huge.gguf", "bert")
    writer.add_context_length(512)
    writer.add_token_type_count(1)
    writer.add_classifier_output_labels(["LABEL_0"])
    writer.add_tokenizer_model("t5")
    for name, rows in (("token_embd", 2**24), ("cls", 1024), ("cls.output", 1)):
        writer.add_tensor_info(
            f"{name}.weight", (rows, 1024 * 2**6), np.dtype(np.float32), 4 * rows * 1024 * 2**6
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(tmp_path / "huge.gguf", 5 * 2**40)  # sparse: it takes no disk
    with pytest.raises(ModelFileError, match=r"but this machine has only .* GiB of memory"):
        prepare(model(tmp_path / "huge.gguf", tmp_path))


def test_the_error_says_why_a_model_cannot_be_served(tmp_path: Path) -> None:
    xlmr = (GOLDEN / "xlmr-head.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(xlmr[: len(xlmr) // 2])
    page = tmp_path / "page.gguf"
    page.write_text("<!doctype html><title>Sign in</title>")
    with pytest.raises(ModelFileError, match="does not exist"):
        prepare(model("/nowhere/m.gguf", tmp_path))
    with pytest.raises(ModelFileError, match="missing"):
        prepare(model(cut, tmp_path))
    with pytest.raises(ModelFileError, match="web page"):
        prepare(model(page, tmp_path))
    with pytest.raises(UnknownModel, match="builtin:e5"):
        prepare(model("some-model", tmp_path))
    with pytest.raises(UnknownModel, match="builtin:e5"):
        prepare(model("builtin:e6", tmp_path))
    with pytest.raises(Unscorable, match="template"):
        prepare(model(GOLDEN / "qwen2-labels.gguf", tmp_path))
    with pytest.raises(ConfigError, match="label"):
        prepare(golden_settings("qwen2-labels", tmp_path, scoring={"labels": ["relevant and so on", "0"]}))
