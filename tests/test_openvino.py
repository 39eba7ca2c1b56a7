"""The OpenVINO worker: scores, tensor shapes, the choice of precision, damaged files."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufs import rewrite, write
from rerankd import machine
from rerankd.backends.base import Batch, EngineSpec
from rerankd.backends.openvino import backend, precision, precision_choice, shapes, trial
from rerankd.backends.openvino.architectures import ARCHITECTURES
from rerankd.backends.openvino.backend import OpenVinoBackend, OpenVinoOffer
from rerankd.backends.openvino.encoder import Encoder
from rerankd.backends.openvino.load import load
from rerankd.backends.openvino.options import OpenVinoOptions
from rerankd.backends.worker.methods import Logits
from rerankd.backends.worker.passes import split
from rerankd.backends.worker.scorer import Scorer, never
from rerankd.domain import Method, Normalization, Pooling, Recipe
from rerankd.errors import ModelFileError
from rerankd.formats import model_files
from rerankd.formats.weights import Weights
from rerankd.process.child import Child
from rerankd.process.failure_reasons import DAMAGED_FILE
from rerankd.scoring.engine_input import Input, Question
from rerankd.service import Reranker
from rerankd.serving.prepare_model import prepare
from rerankd.state import StateStore
from support import GOLDEN, children, golden, golden_settings


def test_passes_have_few_shapes_for_all_lengths() -> None:
    pick = random.Random(3)
    seen = set()
    for _ in range(400):
        lengths = [pick.randint(1, 512) for _ in range(pick.randint(1, 64))]
        for places in split(lengths, 512, lambda count, longest: shapes.whole(count, longest, 128)):
            longest = max(lengths[at] for at in places)
            seen.add((shapes.inputs(len(places)), shapes.tokens(longest, 512)))
    assert len(seen) < 120, "OpenVINO keeps memory for each"


@given(st.integers(1, 40_000), st.integers(1, 40_000))
def test_an_input_is_padded_a_little_and_never_beyond_the_context(longest: int, most: int) -> None:
    padded_to = shapes.tokens(longest, most)
    assert longest <= padded_to <= max(longest, most)
    assert padded_to <= longest + max(7, longest // 8)


@given(st.integers(1, 2000), st.integers(1, 512), st.integers(1, 256))
def test_a_large_pass_has_a_power_of_two_inputs(count: int, longest: int, enough: int) -> None:
    taken = shapes.whole(count, longest, enough)
    assert 1 <= taken <= count <= shapes.inputs(count) < 2 * count
    if taken < count:
        assert taken == shapes.inputs(taken) and taken * longest >= enough and 2 * taken > count


def test_the_faster_precision_is_chosen() -> None:
    assert precision.without_trial("auto", ["avx2"]) == precision.Choice(
        "f32", "this CPU has no bf16 arithmetic"
    )
    forced = precision.without_trial("bf16", ["avx2"])
    assert forced is not None and forced.precision == "f32"  # the CPU has no bf16
    assert precision.without_trial("bf16", ["avx512_bf16"]) == precision.Choice("bf16", "set by the user")
    assert precision.without_trial("f32", ["amx_bf16"]) == precision.Choice("f32", "set by the user")
    amx = ["amx_bf16", "avx512_bf16", "avx2"]
    assert precision.without_trial("auto", amx) is None
    fast = precision.after(precision.Trial(3.0, 0.001), amx)
    assert (fast.precision, "3.0 times" in fast.why) == ("bf16", True)
    assert precision.after(precision.Trial(1.0, None), amx).precision == "f32"
    assert precision.after(precision.Trial(0.03, None), amx).precision == "f32"


def test_bf16_that_swaps_documents_is_not_used_even_if_it_is_faster() -> None:
    choice = precision.after(precision.Trial(7.0, 0.012), ["amx_bf16"])
    assert choice.precision == "f32" and "differ by 0.012" in choice.why


def test_the_largest_swap_uses_raw_scores_if_scores_are_saturated() -> None:
    sigmoid, affine = Normalization("sigmoid"), Normalization("affine", 0.7, 0.9)
    assert precision.largest_swap([3.0, 1.0, -2.0], [2.9, 1.2, -1.9], sigmoid) == 0
    assert precision.largest_swap([0.9, 0.8, 0.2], [0.8, 0.85, 0.2], affine) == pytest.approx(0.5)
    assert precision.largest_swap([1.0, 1.0, 0.0], [0.9, 1.1, 0.0], sigmoid) == 0, "equal ones have no order"
    # All scores are below 0.001, but the order is wrong.
    assert precision.largest_swap([-8.0, -9.0, -12.0], [-9.0, -8.0, -12.0], sigmoid) == pytest.approx(0.125)


def subject(path: Path, scoring: Recipe, fingerprint: str = "1", **more: Any) -> precision_choice.Subject:
    spec = EngineSpec(path.stem, path, scoring, {}, fingerprint=fingerprint)
    return precision_choice.Subject(spec, OpenVinoOptions(**more))


@pytest.mark.anyio
async def test_a_precision_is_chosen_once_and_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pretend that the CPU has bf16: the results are correct, only slow.
    monkeypatch.setattr(machine, "instructions", lambda: ("avx2", "avx512_bf16"))
    model = subject(GOLDEN / "xlmr-head.gguf", Recipe("cross_encoder", 512, Normalization("sigmoid"), "rank"))
    state = StateStore(tmp_path)
    first = await precision_choice.choose(model, state, tmp_path / "log", 120)
    (entry,) = state.entries(precision_choice.SECTION).values()
    assert entry.value["precision"] == first.precision and "times as fast" in first.why
    # The stored choice is used without a trial: a second trial could not even start.
    kept = {**entry.value, "precision": "bf16", "why": "kept"}
    state.put(precision_choice.SECTION, model.key, kept)
    again = await precision_choice.choose(model, StateStore(tmp_path), tmp_path / "log", 0.001)
    assert again == precision.Choice("bf16", "kept")
    changed = subject(model.spec.path, model.spec.recipe, fingerprint="2")
    other_weights = subject(model.spec.path, model.spec.recipe, weights="compressed")
    assert len({model.key, changed.key, other_weights.key}) == 3
    assert precision_choice.known(
        subject(model.spec.path, model.spec.recipe, precision="f32"), state
    ) == precision.Choice("f32", "set by the user")
    state.put(precision_choice.SECTION, model.key, "what somebody wrote there")
    assert precision_choice.known(model, state) is None


@pytest.mark.anyio
async def test_all_replicas_and_restarts_use_the_stored_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "instructions", lambda: ("avx2", "avx512_bf16"))
    settings = golden_settings("xlmr-head", tmp_path, replicas=2, threads=1)
    for kept in ("bf16", "f32"):
        model = prepare(settings)
        state = StateStore(tmp_path)
        state.put(
            precision_choice.SECTION,
            precision_choice.Subject(model.engine.spec, model.engine.options).key,
            {"precision": kept, "why": "kept"},
        )
        for _ in range(2):
            async with Reranker(settings) as reranker:
                lines = [
                    Path(f"/proc/{pid}/cmdline").read_bytes() for pid in reranker.registry.models[0].pids
                ]
                assert [f"--precision\0{kept}\0".encode() in line for line in lines] == [True, True]
                assert f"{kept} (kept)" in reranker.registry.models[0].engine_name
                assert (await reranker.rerank("q", ["a", "b"])).results


@pytest.mark.anyio
async def test_after_a_failed_trial_the_model_uses_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "instructions", lambda: ("avx2", "amx_bf16"))
    broken = subject(tmp_path / "none.gguf", Recipe("cross_encoder", 512, Normalization("sigmoid"), "rank"))
    choice = await precision_choice.choose(broken, StateStore(tmp_path), tmp_path / "log", 120)
    assert choice.precision == "f32" and "a trial of bf16 failed: " in choice.why
    late = subject(GOLDEN / "xlmr-head.gguf", broken.spec.recipe)
    choice = await precision_choice.choose(late, StateStore(tmp_path), tmp_path / "log", 0.01)
    assert choice == precision.Choice("f32", "a trial of bf16 did not end within 0.01 s")


@pytest.mark.anyio
async def test_a_failed_trial_is_repeated_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "instructions", lambda: ("avx2", "amx_bf16"))
    model = subject(GOLDEN / "xlmr-head.gguf", Recipe("cross_encoder", 512, Normalization("sigmoid"), "rank"))
    failed = await precision_choice.choose(model, StateStore(tmp_path), tmp_path / "log", 0.01)
    # For a day, restarts keep the precision; then a new trial runs.
    assert precision_choice.known(model, StateStore(tmp_path)) == failed
    next_day = StateStore(tmp_path, now=lambda: time.time() + 24 * 3600 + 60)
    assert precision_choice.known(model, next_day) is None
    assert (
        "a trial of bf16" not in (await precision_choice.choose(model, next_day, tmp_path / "log", 120)).why
    )


def test_the_measured_speed_up_does_not_depend_on_other_load() -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        ratios = [trial.speed_ratio(64, 128) for _ in range(3)]
    finally:
        for one in busy:
            one.kill()
            one.wait()
    assert max(ratios) < 1.15 * min(ratios), ratios


def test_the_trial_uses_queries_in_both_languages() -> None:
    asked = trial.questions(4, 20)
    assert [len(documents) for _, documents in asked] == [20] * 4
    assert {query.isascii() for query, _ in asked} == {True, False}
    ((_, documents),) = trial.questions(1, 16, 90)
    assert len({*documents}) == 16 and max(map(len, documents)) <= 90


@pytest.mark.parametrize("name", ["xlmr-head", "bert-embedder"])
def test_the_trial_compares_raw_scores_of_the_models_own_inputs(name: str) -> None:
    is_cross_encoder = name == "xlmr-head"
    recipe = Recipe(
        "cross_encoder" if is_cross_encoder else "embedding",
        96,
        Normalization("sigmoid"),
        "rank" if is_cross_encoder else "mean",
        query_prefix="" if is_cross_encoder else "query: ",
    )
    path = GOLDEN / f"{name}.gguf"
    asked = trial.inputs(model_files.read(path), recipe, trial.questions(3, 5))
    assert max(one.tokens for own in asked for one in own) == recipe.max_length, "some are truncated"
    scorer = load(path, recipe.pooling, None, recipe.max_length, threads=1)
    values = [scorer.score(batch, never) for batch in asked]
    assert [len(own) for own in values] == [5] * 3
    assert values[1][2] == pytest.approx(scorer.score([asked[1][2]], never)[0], abs=1e-5)
    assert len({value for own in values for value in own}) == 15


def test_the_trial_compares_a_causal_models_prompts() -> None:
    values, path = golden("qwen3-headless"), GOLDEN / "qwen3-headless.gguf"
    recipe = Recipe(
        "causal_lm",
        512,
        Normalization("sigmoid"),
        template=values["template"],
        instruction=values["instruction"],
        labels=tuple(values["labels"]),
    )
    found = trial.tried(path, recipe, 1, compressed=False)
    assert found.ratio > 0
    if precision.is_worth_it(found.ratio):
        assert found.gap is not None and found.gap < 0.1
    (own,) = trial.inputs(model_files.read(path), recipe, trial.questions(1, 3))
    assert len({one.question for one in own}) == 1 and len(own[0].question.head) > 16


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("xlmr-head", "cls.bias"),
        ("xlmr-head", "cls.output.bias"),
        ("xlmr-head", "blk.0.attn_q.bias"),
        ("xlmr-head", "blk.1.layer_output_norm.bias"),
        ("xlmr-head", "token_embd_norm.bias"),
        ("xlmr-head", "token_types.weight"),
        ("xlmr-head", "position_embd.weight"),
        ("modernbert-head", "blk.1.attn_norm.weight"),
        ("modernbert-head", "output_norm.weight"),
    ],
)
def test_a_file_without_a_required_tensor_is_rejected(name: str, lost: str, tmp_path: Path) -> None:
    """Once, raw scores were wrong by up to 3.4 without an error."""
    path = rewrite(
        GOLDEN / f"{name}.gguf",
        tmp_path / "m.gguf",
        tensors=lambda held: {own: data for own, data in held.items() if own != lost},
    )
    with pytest.raises(ModelFileError, match=f"the tensor {lost} is missing"):
        Encoder(path, "rank", threads=1, precision="f32")


def test_missing_or_misshapen_weights_are_named() -> None:
    weights = Weights(GOLDEN / "xlmr-head.gguf")
    with pytest.raises(ModelFileError, match=r"tensor blk\.9\.attn_q\.weight is missing"):
        weights.array("blk.9.attn_q.weight", (64, 64))
    with pytest.raises(ModelFileError, match=r"blk\.0\.ffn_up\.weight has the shape \(64, 128\)"):
        weights.array("blk.0.ffn_up.weight", (64, 64))
    with pytest.raises(ModelFileError, match=r"key bert\.rope\.freq_base is missing"):
        weights.key("rope.freq_base")


def test_single_rows_of_a_table_equal_the_full_table() -> None:
    weights = Weights(GOLDEN / "bert-embedder.gguf")
    whole = weights.array("token_embd.weight", (1800, 64))
    rows = np.array([5, 1799, 5, 0])
    assert (weights.table("token_embd.weight", 1800, 64)[rows] == whole[rows]).all()


def test_the_service_and_the_worker_list_the_same_architectures() -> None:
    """The service has a list of its own, because it does not import OpenVINO."""
    assert tuple(ARCHITECTURES) == backend._ARCHITECTURES


def test_openvinos_telemetry_is_not_loaded() -> None:
    program = (
        "import sys; import rerankd.backends.openvino.encoder; "
        "print([name for name in sys.modules if 'telemetry' in name or name == 'openvino.tools.ovc.convert'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def golden_inputs(name: str, cases: list[dict[str, Any]]) -> list[Input]:
    """Return the inputs of golden cases, from their token ids."""
    made = []
    for ids in (case["ids"] for case in cases):
        if name == "bert-embedder":
            query, document = (np.array(one, np.int32) for one in ids)
            made.append(Input(Question("", ids=query), "", document, len(document)))
        else:
            # Only this model has two token types.
            second = ids.index(ids[-1]) + 1 if name == "bert-pairs" else None
            made.append(Input(Question("", second=second), "", np.array(ids, np.int32), len(ids)))
    return made


@pytest.mark.parametrize(
    "model", ["xlmr-head.gguf", "bert-embedder.gguf", "modernbert-head.gguf", "bert-pairs", "roberta-head"]
)
async def test_a_worker_returns_transformers_scores_and_loads_no_tokenizer(
    model: str, tmp_path: Path
) -> None:
    name = model.removesuffix(".gguf")
    pooling: Pooling = "mean" if name == "bert-embedder" else "rank"
    method: Method = "embedding" if name == "bert-embedder" else "cross_encoder"
    recipe = Recipe(method, 256, Normalization("sigmoid"), pooling)
    spec = EngineSpec(name, GOLDEN / model, recipe, {}, metadata=model_files.read(GOLDEN / model))
    backend = OpenVinoBackend()
    offer = backend.offer(spec, OpenVinoOptions(precision="f32"), True)
    assert isinstance(offer, OpenVinoOffer) and offer.capabilities.reads == "ids"
    launch = backend.launch(offer, (), (), tmp_path / "w.sock")
    child = await Child.start(launch.argv, tmp_path / "w.log")
    engine = launch.connect(tmp_path / "w.sock")
    try:
        async with asyncio.timeout(60):
            while not await engine.is_ready():
                assert child.exit_code is None, child.lines()
                await asyncio.sleep(0.02)
        cases = [case for case in golden(name)["cases"] if case["fits"]]
        random.Random(4).shuffle(cases)
        inputs = golden_inputs(name, cases)
        # One batch of some hundred inputs, then batches of one input.
        together = (await engine.score(Batch(tuple(inputs)))).values
        alone = [(await engine.score(Batch((one,)))).values[0] for one in inputs[:20]]
        assert together == pytest.approx([case["raw"] for case in cases], abs=1e-4)
        assert alone == pytest.approx(together[:20], abs=1e-5)
        if sys.platform == "linux":
            (pid,) = children(child.pid) or [child.pid]
            libraries = Path(f"/proc/{pid}/maps").read_text()
            assert "openvino" in libraries and "tokenizers" not in libraries
    finally:
        await child.stop(0)
        await engine.close()


@pytest.mark.parametrize("name", ["xlmr-head", "modernbert-head"])
def test_compressed_weights_change_scores_a_little(name: str) -> None:
    cases = [case for case in golden(name)["cases"] if case["fits"]]
    wanted = np.array([case["raw"] for case in cases])
    encoder = Encoder(GOLDEN / f"{name}.gguf", "rank", threads=1, precision="f32", compressed=True)
    assert "weights compressed" in encoder.about
    found = np.array(Scorer(encoder, 512, Logits()).score(golden_inputs(name, cases)))
    moved = np.abs(found - wanted).max() / (wanted.max() - wanted.min())
    assert 1e-4 < moved < 0.03  # 0.024 and 0.013 were seen, for models with only 64 weights per row
    assert np.corrcoef(found, wanted)[0, 1] > 0.999


def test_a_truncated_header_is_reported(tmp_path: Path) -> None:
    shapes = {"token_embd.weight": (10, 32), "token_embd_norm.weight": (32,), "token_embd_norm.bias": (32,)}
    shapes["position_embd.weight"] = (512, 32)
    numbers = {"feed_forward_length": 64, "attention.head_count": 4}
    extra = {f"bert.{key}": value for key, value in numbers.items()}
    path = write(tmp_path / "m.gguf", arch="bert", tensors=shapes, extra=extra)
    with pytest.raises(ModelFileError, match=r"key bert\.attention\.layer_norm_epsilon is missing"):
        Encoder(path, "mean", threads=1)
    flags = f"--model {path} --socket {tmp_path}/s --pooling mean --max-length 9 --threads 1".split()
    program = [sys.executable, "-m", "rerankd.backends.openvino", *flags]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=60)
    said = ended.returncode, "error: " in ended.stderr, "Traceback" in ended.stderr
    assert said == (DAMAGED_FILE, True, False)
