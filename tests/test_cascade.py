"""Cascades: which documents go on, the order and scores that result, and requests to a real one."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd import config
from rerankd.config import Settings
from rerankd.domain import RerankRequest
from rerankd.errors import ConfigError, EngineUnavailable, InvalidRequest, ModelUnavailable, UnknownModel
from rerankd.normalization import Normalization
from rerankd.rerank_result import RerankResult
from rerankd.scoring import stages
from rerankd.scoring.result import ranked
from rerankd.scoring.stages import Candidates, StageScores
from rerankd.service import Reranker
from rerankd.serving import request_images
from support import GOLDEN, golden, rerankd, suspend

SIGMOID = Normalization("sigmoid")
QUERY = "which bear lives in china?"
TEXTS = [
    "the panda is a bear of china",
    "bread is made of flour",
    "a river runs through the mountain",
    "the library lends a guitar",
    "pizza for dinner",
    "the weather of the mountain",
    "a ticket to china",
    "a bear in the river",
]


def of(*raw: float | None) -> StageScores:
    return StageScores(raw, SIGMOID)


# --- which documents go on, and what the order is ---------------------------------------------------------


def test_what_a_later_stage_has_scored_ranks_above_the_rest() -> None:
    first, second = of(3.0, 2.0, 1.0, None, 0.0), of(-5.0, -4.0, None, None, None)
    assert stages.order([first, second]) == [1, 0, 2, 4, 3]


def test_no_document_has_a_higher_score_than_one_that_ranks_above_it() -> None:
    """Many clients sort by score."""
    both = [of(3.0, 2.0, 1.0, None, 0.0), of(-5.0, -4.0, None, None, None)]
    for raw in (True, False):
        found = stages.shown(both, raw=raw)
        assert [found[at] for at in stages.order(both)] == sorted(found, reverse=True)
    assert stages.shown(both, raw=True) == [-5.0, -4.0, -5.0, -87.0, -5.0]


def test_equal_scores_keep_the_order_of_the_stage_before() -> None:
    assert stages.order([of(1.0, 2.0, 3.0, 3.0), of(0.5, 0.5, 0.5, None)]) == [2, 1, 0, 3]


def test_keep_counts_distinct_texts_so_that_equal_texts_keep_equal_scores() -> None:
    found = stages.candidates([of(1.0, 5.0, 4.0, 5.0, 3.0)], list("abcbd"), keep=2)
    assert found == Candidates((1, 3, 2))


def test_a_document_without_a_score_does_not_go_on() -> None:
    assert stages.candidates([of(None, 2.0, None)], list("abc"), keep=3).documents == (1,)


def test_a_stage_that_scored_nothing_changes_nothing() -> None:
    first = of(1.0, 3.0, 2.0)
    both = [first, of(None, None, None)]
    assert stages.order(both) == stages.order([first])
    assert stages.shown(both, raw=True) == stages.shown([first], raw=True)
    assert stages.candidates(both, list("abc"), keep=2).documents == (1, 2)


def test_the_margin_leaves_out_what_is_far_below_document_top_n() -> None:
    scores = [of(9.0, 8.0, 7.5, 3.0, 2.0)]
    find = lambda **more: stages.candidates(scores, list("abcde"), keep=4, **more)  # noqa: E731
    assert find(top_n=2, margin=1.0) == Candidates((0, 1, 2), skipped=1)
    assert find(top_n=2, margin=0.0) == Candidates((0, 1), skipped=2)
    assert find(top_n=2, margin=9.0) == Candidates((0, 1, 2, 3))
    assert find(margin=0.0) == find(top_n=2) == find(top_n=9, margin=0.0) == Candidates((0, 1, 2, 3))


@given(st.data())
def test_order_and_scores_agree_for_any_scores(data: st.DataObject) -> None:
    """What ranked returns is ordered by score, and what the last stage has scored comes first."""
    count = data.draw(st.integers(1, 9))
    one = st.lists(st.one_of(st.none(), st.floats(-20, 20)), min_size=count, max_size=count)
    scores = [of(*data.draw(one)) for _ in range(data.draw(st.integers(1, 3)))]
    raw = data.draw(st.booleans())
    rows = ranked(RerankRequest("q", ("d",) * count, raw_scores=raw), scores)
    assert sorted(row.index for row in rows) == list(range(count))
    assert [row.score for row in rows] == sorted((row.score for row in rows), reverse=True)
    has_score = [scores[-1].raw[row.index] is not None for row in rows]
    assert has_score == sorted(has_score, reverse=True)


def test_a_threshold_is_one_of_the_last_stages_scores() -> None:
    """What it has not scored is left out: the scores of another model can't be compared."""
    both = [of(9.0, 8.0, 7.0), of(1.0, None, -3.0)]
    request = RerankRequest("q", tuple("abc"), score_threshold=0.5)
    assert [row.index for row in ranked(request, both)] == [0]
    everything = dataclasses.replace(request, score_threshold=0.0)
    assert [row.index for row in ranked(everything, both)] == [0, 2, 1]


# --- the settings -----------------------------------------------------------------------------------------

CASCADE = '[models.both]\nstages = ["a", {model = "b", keep = 3}]\n'


def loaded(text: str, **more: Any) -> Settings:
    return config.load(text, {}, more)


def test_the_models_of_the_stages_are_served() -> None:
    settings = loaded(CASCADE + '[models.b]\nref = "b.gguf"\nthreads = 2\n')
    assert [(one.ref, one.threads) for one in settings.wanted("")] == [("a", None), ("b.gguf", 2)]
    assert [(one.name, one.is_first) for one in settings.cascades] == [("both", True)]
    chosen = loaded(CASCADE + '[models.other]\nref = "c"\n', model=("other",))
    assert chosen.cascades == () and [one.ref for one in chosen.wanted("")] == ["c"]


def test_alias_names_the_first_entry_also_if_that_is_a_cascade() -> None:
    settings = loaded('alias = "mine"\n' + CASCADE)
    assert settings.cascades[0].names == ("mine", "both")
    assert [one.names for one in settings.wanted("")] == [(), ()]


@pytest.mark.parametrize(
    ("stages", "more", "said"),
    [
        ('["a"]', "", "must list two or more models"),
        ('["a", "b"]', "", "the stage b needs keep"),
        ('["a", {model = "b", keep = 0}]', "", "greater than or equal to 1"),
        ('["a", {model = "b", kep = 3}]', "", "Did you mean keep?"),
        ('["a", {model = "a", keep = 3}]', "", "two stages have the model a"),
        ('[{model = "a", keep = 3}, {model = "b", keep = 3}]', "", "the first stage scores all documents"),
        ('["a", {model = "b", keep = 3}, {model = "c", keep = 4}]', "", "the stage c can't keep 4"),
        ('["a", {model = "both", keep = 3}]', "", "the stage both is a cascade itself"),
        ('["a", {model = "o", keep = 3}]', '[models.o]\nstages = ["x", {model = "y", keep = 1}]', "itself"),
        ('["a", {model = "b", keep = 3}]\nthreads = 2', "", "can't set threads"),
        ('["a", {model = "b", keep = 3}]\nref = "x"', "", "can't set ref"),
        ('["a", {model = "b", keep = 3}]\naliases = ["a"]', "[models.a]", "also a name of models.a"),
        ('["a", {model = "n", keep = 3}]', '[models.a]\naliases = ["n"]', "is an alias; write a"),
    ],
)
def test_stages_that_cannot_be_served_are_refused(stages: str, more: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        loaded(f"[models.both]\nstages = {stages}\n{more}\n")


# --- a real cascade ---------------------------------------------------------------------------------------


def section(name: str) -> dict[str, Any]:
    """A [models.NAME] section that serves a golden model."""
    values = golden(name)
    own = {"ref": str(GOLDEN / values["model"])}
    if values["way"] == "cosine":
        own |= {key: values[key] for key in ("query_prefix", "document_prefix")}
    return own


def cascade(home: Path, keep: int = 3, stage: Sequence[str] = ("small", "large"), **more: Any) -> Settings:
    first, second = stage
    later = {"model": second, "keep": keep, **more.pop("of_stage", {})}
    models = {
        "both": {"stages": [first, later], **more.pop("of_cascade", {})},
        "small": section("bert-embedder"),
        "large": section("xlmr-head") | more.pop("of_large", {}),
    }
    return Settings.model_validate({"models": models, "home": home, **more})


@pytest.fixture(scope="module")
async def reranker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Reranker]:
    async with Reranker(cascade(tmp_path_factory.mktemp("home"))) as opened:
        yield opened


def order(result: RerankResult) -> list[int]:
    return [row.index for row in result.results]


async def test_the_best_documents_of_the_first_stage_are_scored_by_the_second(reranker: Reranker) -> None:
    small = await reranker.rerank(QUERY, TEXTS, model="small")
    best = order(small)[:3]
    large = await reranker.rerank(QUERY, [TEXTS[at] for at in best], model="large")
    both = await reranker.rerank(QUERY, TEXTS, model="both")
    assert order(both) == [best[at] for at in order(large)] + order(small)[3:]
    scores = [row.score for row in both.results]
    assert scores[:3] == pytest.approx([row.score for row in large.results], abs=1e-5)
    assert scores == sorted(scores, reverse=True)
    assert [(one.model, one.documents, one.scored) for one in both.stages] == [
        ("small", 8, 8),
        ("large", 3, 3),
    ]
    assert (both.model, both.normalization) == ("both", "sigmoid")
    assert small.stages == large.stages == ()


async def test_each_stage_has_its_cache(reranker: Reranker) -> None:
    once = await reranker.rerank("what is bread?", TEXTS, model="both")
    assert once.tokens == sum(one.tokens for one in once.stages) and all(one.tokens for one in once.stages)
    again = await reranker.rerank("what is bread?", TEXTS, model="both")
    assert [one.cached for one in again.stages] == [8, 3] and again.tokens == 0


async def test_warnings_name_the_stage_and_the_documents_of_the_request(reranker: Reranker) -> None:
    texts = [*TEXTS[1:], "panda bear china " * 400, " "]
    result = await reranker.rerank(QUERY, texts, model="both", instruction="find animals")
    assert result.blank == (8,) and result.truncated == (7,) and order(result)[-1] == 8
    assert "small: Blank and ranked last: document 8." in result.warnings
    ignored = "This model takes no instruction. The instruction in the request was ignored."
    assert {f"small: {ignored}", f"large: {ignored}"} <= {*result.warnings}
    assert all(one.startswith(("small: ", "large: ")) for one in result.warnings)


async def test_a_document_that_is_too_long_for_the_second_stage_is_named_by_its_index(
    tmp_path: Path,
) -> None:
    texts = [*TEXTS, "panda bear china " * 12]
    async with Reranker(cascade(tmp_path, keep=9, of_large={"max_length": 32})) as short:
        with pytest.raises(InvalidRequest, match=r"[Dd]ocument 8"):
            await short.rerank(QUERY, texts, model="both", truncate=False)
        result = await short.rerank(QUERY, texts, model="both")
    assert result.truncated == (8,) and any(
        "large: " in one and "document 8" in one for one in result.warnings
    )


async def test_copies_of_a_text_keep_equal_scores(reranker: Reranker) -> None:
    result = await reranker.rerank(QUERY, [*TEXTS, *TEXTS], model="both")
    scores = {row.index: row.score for row in result.results}
    assert [scores[at] for at in range(8)] == [scores[at + 8] for at in range(8)]
    assert [(one.documents, one.scored) for one in result.stages] == [(16, 16), (6, 6)]


async def test_requests_without_a_model_go_to_the_first_entry_of_the_settings(reranker: Reranker) -> None:
    assert len((await reranker.rerank(QUERY, TEXTS)).stages) == 2
    assert len((await reranker.rerank(QUERY, TEXTS, model="BOTH:latest")).stages) == 2
    with pytest.raises(UnknownModel, match="both, small, large"):
        await reranker.rerank(QUERY, TEXTS, model="gpt-4")


async def test_a_single_cascade_answers_to_every_other_name(tmp_path: Path) -> None:
    settings = cascade(tmp_path).model_copy(update={"model": ("both",)})
    async with Reranker(settings) as alone:
        assert len((await alone.rerank(QUERY, TEXTS, model="rerank-v3.5")).stages) == 2
        assert (await alone.rerank(QUERY, TEXTS, model="small")).stages == ()


async def test_a_cascade_has_no_embeddings(reranker: Reranker) -> None:
    with pytest.raises(InvalidRequest, match=r"both is a cascade \(small for all documents, then large"):
        await reranker.embed(["a text"], model="both")


async def test_a_budget_that_ends_in_the_second_stage_keeps_the_order_of_the_first(tmp_path: Path) -> None:
    async with Reranker(cascade(tmp_path)) as reranker:
        small = await reranker.rerank(QUERY, TEXTS, model="small")
        (pid,) = reranker.registry.find("large").pids
        suspend(pid)
        try:
            result = await reranker.rerank(QUERY, TEXTS, model="both", budget_ms=500)
            none = await reranker.rerank(QUERY, TEXTS, model="both", budget_ms=500, score_threshold=0.5)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert result.results == small.results and result.unscored == ()
    assert [one.scored for one in result.stages] == [8, 0]
    best = ", ".join(map(str, sorted(order(small)[:3])))
    late = f"Not scored and ranked by the stage before: documents {best}; the time budget was exhausted."
    assert result.warnings == (f"large: {late}",)
    assert none.results == () and none.warnings[1:] == (
        "No document reaches the score_threshold of the request.",
    )


async def test_a_budget_that_is_over_loads_no_model(tmp_path: Path) -> None:
    async with Reranker(cascade(tmp_path, of_large={"preload": False})) as reranker:
        (pid,) = reranker.registry.find("small").pids
        suspend(pid)
        try:
            result = await reranker.rerank(QUERY, TEXTS, model="both", budget_ms=200)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert reranker.registry.find("large").state.phase == "unloaded"
    assert result.unscored == tuple(range(8)) and order(result) == [*range(8)]


async def test_a_threshold_with_a_real_cascade(reranker: Reranker) -> None:
    whole = await reranker.rerank(QUERY, TEXTS, model="both")
    lowest = whole.results[2].score
    kept = await reranker.rerank(QUERY, TEXTS, model="both", score_threshold=lowest)
    assert order(kept) == order(whole)[:3]


async def test_the_margin_needs_top_n_and_reports_what_it_skipped(tmp_path: Path) -> None:
    async with Reranker(cascade(tmp_path, keep=6, of_stage={"margin": 0.0})) as early:
        whole = await early.rerank(QUERY, TEXTS)
        result = await early.rerank(QUERY, TEXTS, top_n=2)
    assert (whole.stages[1].documents, whole.stages[1].skipped) == (6, 0)
    assert (result.stages[1].documents, result.stages[1].skipped) == (2, 4)
    assert len(result.results) == 2


async def test_a_stage_that_is_refused_refuses_the_cascade_with_its_reason(tmp_path: Path) -> None:
    settings = cascade(tmp_path, stage=("small", "qwen3-rerankr-0.6b"))
    async with Reranker(settings) as broken:
        with pytest.raises(ModelUnavailable, match=r"qwen3-rerankr-0\.6b.*Did you mean"):
            await broken.rerank(QUERY, TEXTS, model="both")
        assert (await broken.rerank(QUERY, TEXTS, model="small")).results


async def test_a_later_stage_whose_engine_fails_leaves_the_order_before_with_a_warning(
    tmp_path: Path,
) -> None:
    copy = tmp_path / "large.gguf"
    shutil.copy(section("xlmr-head")["ref"], copy)
    async with Reranker(cascade(tmp_path, of_large={"ref": str(copy)})) as reranker:
        small = await reranker.rerank(QUERY, TEXTS, model="small")
        copy.unlink()
        (pid,) = reranker.registry.find("large").pids
        os.kill(pid, signal.SIGKILL)
        result = await reranker.rerank(QUERY, TEXTS, model="both")
        assert order(result) == order(small) and result.normalization == small.normalization
        assert "large.gguf is missing" in result.stages[1].error and result.stages[1].scored == 0
        assert any(one.startswith("large: This stage has scored nothing") for one in result.warnings)
        with pytest.raises(EngineUnavailable):
            await reranker.rerank(QUERY, TEXTS, model="both", score_threshold=0.5)


async def test_a_reload_changes_the_stages_without_restarting_an_engine(tmp_path: Path) -> None:
    async with Reranker(cascade(tmp_path)) as reranker:
        pids = [served.pids for served in reranker.registry.models]
        await reranker.apply(cascade(tmp_path, keep=5))
        result = await reranker.rerank(QUERY, TEXTS, model="both")
        assert result.stages[1].documents == 5
        assert [served.pids for served in reranker.registry.models] == pids


async def test_a_reload_lets_requests_finish_with_the_models_that_admitted_them(tmp_path: Path) -> None:
    """A later stage's model has no users yet while the first stage runs."""
    patient = {"health_poll_s": 3600}  # the engine that is stopped is not replaced, however long a load takes
    async with Reranker(cascade(tmp_path, **patient)) as reranker:
        old = reranker.registry.find("large")
        (pid,) = reranker.registry.find("small").pids
        suspend(pid)
        try:
            asked = asyncio.create_task(reranker.rerank(QUERY, TEXTS, model="both"))
            while not len(old.queue.scheduler):
                await asyncio.sleep(0)
            await reranker.apply(cascade(tmp_path, of_large={"max_length": 64}, **patient))
            assert reranker.registry.find("large") is not old
            await reranker.rerank(QUERY, TEXTS, model="large")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert [(one.scored, one.error) for one in (await asked).stages] == [(8, ""), (3, "")]


async def test_a_reload_while_images_are_fetched_serves_with_the_new_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, settings = request_images.readable, [cascade(tmp_path, of_large={"max_length": 64})]

    async def slow(*request: Any) -> RerankRequest:
        """A server of images that is slower than a reload."""
        if settings:
            await reranker.apply(settings.pop())
        return await read(*request)

    async with Reranker(cascade(tmp_path)) as reranker:
        monkeypatch.setattr(request_images, "readable", slow)
        result = await reranker.rerank(QUERY, TEXTS, model="both", score_threshold=0.01)
    assert [one.scored for one in result.stages] == [8, 3]


async def test_a_shutdown_waits_for_all_stages(tmp_path: Path) -> None:
    """The queue of the second stage admits the request before the first stage begins."""
    async with Reranker(cascade(tmp_path)) as reranker:
        asked = asyncio.create_task(reranker.rerank(QUERY, TEXTS, model="both"))
        while not len(reranker.registry.find("large").queue.scheduler):
            await asyncio.sleep(0)
        await reranker.drain()
        assert [one.scored for one in (await asked).stages] == [8, 3]


def test_settings_with_a_cascade_can_be_changed_by_arguments() -> None:
    """A validation of all values again took the defaults of its section for settings."""
    settings = config.override(loaded(CASCADE), {"port": 1})
    assert settings.port == 1 and settings.cascades[0].stages[1].keep == 3


# --- the commands for one model ---------------------------------------------------------------------------

WHOLE = """\
[models.both]
stages = ["a", {model = "b", keep = 20, margin = 1.5}, {model = "c d", keep = 5}]
aliases = ["good", "fast"]
budget_ms = 300
"""


@pytest.mark.parametrize("command", ["inspect", "show", "recipe show"])
def test_the_commands_that_show_a_model_show_a_cascade(command: str, tmp_path: Path) -> None:
    file = tmp_path / "rerankd.toml"
    file.write_text(WHOLE)
    text = rerankd(*command.split(), "both", "--config", str(file), home=tmp_path)
    values = rerankd(*command.split(), "both", "--json", "--config", str(file), home=tmp_path)
    assert text.returncode == values.returncode == 0, text.stderr + values.stderr
    shown = json.loads(values.stdout)
    assert shown["text"] == text.stdout.rstrip("\n")
    stages = shown["models"]["both"]["stages"] if command == "recipe show" else shown["stages"]
    assert [(one["model"], one.get("keep"), one.get("margin")) for one in stages] == [
        ("a", None, None),
        ("b", 20, 1.5),
        ("c d", 5, None),
    ]
    assert "300" in text.stdout
    if command == "recipe show":
        assert config.load(text.stdout, {}, {}).models == config.load(WHOLE, {}, {}).models


def test_the_commands_that_need_one_model_name_those_of_the_stages(tmp_path: Path) -> None:
    file, pairs = tmp_path / "rerankd.toml", tmp_path / "pairs.jsonl"
    file.write_text(WHOLE)
    pairs.write_text('{"query": "a", "document": "b", "score": 0.5}\n')
    at = ("--config", str(file))
    for command in (
        ("recipe", "new", "both", *at),
        ("recipe", "test", str(file), "--pairs", str(pairs)),
        ("pull", "both", *at),
        ("tune", str(tmp_path), "--base", "both", "--output", str(tmp_path / "new"), *at),
        ("tune", str(tmp_path), "--base", "a", "--teacher", "both", "--output", str(tmp_path / "new"), *at),
    ):
        ran = rerankd(*command, home=tmp_path)
        assert ran.returncode == 2 and "Name the model of a stage: a, b, c d." in ran.stderr, ran.stderr
