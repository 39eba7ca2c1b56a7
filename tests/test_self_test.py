"""The self-test against a second engine: its result, its consequences, and that it runs once."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import ggufs
from rerankd.backends.base import RawScores
from rerankd.backends.openvino import precision_choice
from rerankd.domain import Normalization
from rerankd.errors import EngineStartFailed, Unscorable
from rerankd.scoring import self_test
from rerankd.service import Reranker
from rerankd.serving import run_self_test
from rerankd.serving.model_tokenizer import ModelVocabulary
from rerankd.serving.prepare_model import prepare
from rerankd.state import StateStore
from support import GOLDEN, golden_settings, rerankd

SIGMOID = Normalization("sigmoid")
LOST = "token_types.weight"
RAW = [3.0, 2.0, -3.0, -4.0, -2.0]


def test_the_tolerance_depends_on_the_precision_of_the_weights() -> None:
    moved = [value + 0.3 for value in RAW]
    found = self_test.compare(RAW, moved, SIGMOID, "Q4_K")
    assert (found.passed, found.tolerance, found.disagreement) == (True, 0.1, 0.0)
    exact = self_test.compare(RAW, moved, SIGMOID, "F16")
    assert not exact.passed and not exact.is_fatal, "only a warning"


@pytest.mark.parametrize(
    "other",
    [[-value for value in RAW], [0.0, 2.0, 3.0, 4.0, 2.0], [*RAW[:4], math.nan], [*RAW[:4], None]],
    ids=["reversed", "nothing in common", "not a number", "no value"],
)
def test_scores_with_nothing_in_common_are_fatal(other: list[float | None]) -> None:
    assert self_test.compare(RAW, other, SIGMOID, "F16").is_fatal


@pytest.mark.parametrize(
    ("name", "kind", "against"),
    [
        ("xlmr-head", "openvino", "llama.cpp b"),
        ("xlmr-head", "llama", "OpenVINO 20"),
        ("bert-embedder", "openvino", "llama.cpp b"),
        ("modernbert-head", "llama", "OpenVINO 20"),
        ("roberta-head", "openvino", None),
        ("qwen3-headless", "llama", None),
    ],
)
async def test_a_model_is_compared_once_with_another_engine_that_can_run_it(
    name: str, kind: str, against: str | None, tmp_path: Path
) -> None:
    settings = golden_settings(name, tmp_path, engine=kind, precision="f32")
    state = StateStore(tmp_path)
    async with Reranker(settings) as reranker:
        found = reranker.registry.models[0].self_test.passed
        assert len(reranker.registry.models[0].pids) == 1
    if against is None:
        assert found is None and not state.entries(run_self_test.SECTION)
        return
    assert found is not None and found.against.startswith(against)
    assert found.comparison.passed and found.comparison.apart < 0.01
    (kept,) = state.entries(run_self_test.SECTION).values()
    async with Reranker(settings) as reranker:
        assert reranker.registry.models[0].self_test.passed == run_self_test.Result(
            found.against, found.comparison, kept.at
        )
    assert list(state.entries(run_self_test.SECTION).values()) == [kept], "the comparison ran again"


def test_a_model_that_openvino_computes_differently_is_not_compared_with_it(tmp_path: Path) -> None:
    """A ModernBERT with SiLU runs on llama.cpp. It was refused because OpenVINO's GELU gave other scores."""
    path = ggufs.rewrite(
        GOLDEN / "modernbert-head.gguf",
        tmp_path / "silu.gguf",
        keys={"modern-bert.hidden_activation": "silu"},
    )
    model = prepare(golden_settings("modernbert-head", tmp_path, model=[str(path)]))
    assert model.engine.backend.name == "llama"
    assert run_self_test.second_computation(model, model.engine) is None


async def test_a_model_whose_engines_disagree_is_refused_or_warns_in_each_answer(tmp_path: Path) -> None:
    settings = golden_settings("xlmr-head", tmp_path, engine="openvino", precision="f32")
    model, state = prepare(settings), StateStore(tmp_path)
    other = run_self_test.second_computation(model, model.engine)
    assert other is not None
    key = run_self_test.key(model, f"openvino {precision_choice.version()} f32 full", other)
    # The other engine computes correctly; the scores that it is compared with are wrong.
    log, socket = tmp_path / "log", tmp_path / "s.sock"
    values, vocabulary = [9.0, -9.0, 9.0, -9.0, 9.0], ModelVocabulary(model.metadata)
    answer = run_self_test.Answer(RawScores(values), model.recipe.normalization)
    wrong = await run_self_test.run(model, answer, other, vocabulary, socket, log, "")
    assert wrong is not None and wrong.is_fatal
    run_self_test.store(state, key, model, other, wrong)
    with pytest.raises(Unscorable, match=r"differs from llama\.cpp b.*--force"):
        async with Reranker(settings):
            pass
    forced = settings.model_copy(update={"force": True})
    async with Reranker(forced) as reranker:
        (warning,) = (await reranker.rerank("q", ["a", "b"])).warnings
    assert "failed the comparison with a second engine" in warning
    run_self_test.store(state, key, model, other, self_test.Comparison(0.1, 0.02, 0.0))
    async with Reranker(settings) as reranker:
        (warning,) = (await reranker.rerank("q", ["a", "b"])).warnings
    assert "scores differ by 0.1, tolerance 0.02" in warning


def test_inspect_shows_the_self_test_and_runs_it_on_demand(tmp_path: Path) -> None:
    model = str(GOLDEN / "xlmr-head.gguf")
    assert "self-test" not in rerankd("inspect", model, home=tmp_path).stdout
    checked = rerankd("inspect", "--check", model, home=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "self-test: passed\nsecond engine: agrees with llama.cpp b" in checked.stdout
    assert "self-test: agrees with llama.cpp b" in rerankd("inspect", model, home=tmp_path).stdout
    (state_before,) = StateStore(tmp_path).entries(run_self_test.SECTION).values()
    told = json.loads(rerankd("inspect", "--check", "--json", model, home=tmp_path).stdout)
    assert told["checks"][0] == "self-test: passed"
    (state_after,) = StateStore(tmp_path).entries(run_self_test.SECTION).values()
    assert state_after.at > state_before.at, "--check forces a new comparison"


@pytest.fixture
def without_token_types(tmp_path: Path) -> str:
    """A file without a tensor that llama.cpp treats as optional; its raw scores are off by 3.4."""
    return str(
        ggufs.rewrite(
            GOLDEN / "xlmr-head.gguf",
            tmp_path / "m.gguf",
            tensors=lambda held: {name: data for name, data in held.items() if name != LOST},
        )
    )


async def test_a_file_without_a_tensor_is_not_passed_on_to_an_engine_that_ignores_it(
    without_token_types: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineStartFailed, match=rf"(?s)a part of it was lost.*the tensor {LOST} is missing"):
        async with Reranker(model=without_token_types, home=tmp_path):
            pass


async def test_a_file_that_only_the_other_engine_rejects_is_served_with_a_warning(
    without_token_types: str, tmp_path: Path
) -> None:
    async with Reranker(model=without_token_types, home=tmp_path, engine="llama") as reranker:
        result = await reranker.rerank("q", ["a", "b"])
    assert any(
        f"file is damaged: {without_token_types}: the tensor {LOST} is missing" in one
        for one in result.warnings
    )
