"""The ONNX Runtime backend: rotations, int8 products that are exact, scores near those of transformers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_causal_can_fail as scaled
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_causal import sampled
from test_refusals import SPECS

import checkpoints
from rerankd.backends import select
from rerankd.backends.onnx import __main__ as program
from rerankd.backends.onnx import checks, exact_sums, folding, quantise
from rerankd.backends.onnx.backend import OnnxBackend
from rerankd.backends.onnx.causal import CausalModel
from rerankd.backends.onnx.encoder import Encoder
from rerankd.backends.onnx.graph import Precision
from rerankd.backends.onnx.options import OnnxOptions
from rerankd.backends.onnx.rotation import Rotation, orthogonal
from rerankd.backends.openvino.encoder import Encoder as OpenVinoEncoder
from rerankd.backends.table import BACKENDS
from rerankd.backends.worker.methods import Logits
from rerankd.backends.worker.passes import Reading, padded
from rerankd.backends.worker.scorer import Scorer
from rerankd.config import Settings
from rerankd.domain import Refusal
from rerankd.errors import ConfigError
from rerankd.formats import model_files, tokenizer
from rerankd.scoring.engine_input import Input, Question
from rerankd.service import Reranker
from rerankd.serving import backend_offers
from support import GOLDEN, golden, golden_settings
from twins import write_wordpiece

# ONNX Runtime in float32, with rotated weights, comes within 1.1e-5 of values up to 4.9.
BOUND = 2e-5
# In int8, scores of these models move by 0.03 to 0.13 standard deviations in the mean, by 0.4 at most. With
# trained weights that is 0.01 (e5), and 0.23 to 0.41 for small language models (docs/performance.md).
MEAN, MOST = 0.2, 0.6
CAUSAL = ("qwen3-headless", "qwen3-headed", "qwen2-labels", "gemma-yes")
ENCODERS = ("xlmr-head", "bert-pairs", "roberta-head", "jina-v2", "electra", "camembert", "distilbert")
Product = Callable[[Any, Any], Any]


def causal(path: Path, labels: Sequence[int], precision: Precision) -> Scorer:
    return Scorer(CausalModel(path, labels, threads=1, precision=precision), 512, Logits())


def deviations(found: Any, wanted: Any) -> tuple[float, float]:
    """The mean and the largest difference in standard deviations."""
    apart = np.abs(np.array(found) - wanted) / np.std(wanted)
    return float(apart.mean()), float(apart.max())


# Rotations and scales


@pytest.mark.parametrize("size", [1, 2, 6, 64, 96, 576, 640, 896, 1024, 1152, 3072])
@pytest.mark.parametrize("kind", [Rotation.whole, Rotation.of_blocks])
def test_a_rotation_keeps_products(size: int, kind: Callable[[int], Rotation]) -> None:
    random = np.random.default_rng(1)
    x, weights = random.standard_normal((3, size), np.float32), random.standard_normal((5, size), np.float32)
    rotation = kind(size)
    assert rotation.turned(x) @ rotation.turned(weights).T == pytest.approx(
        x @ weights.T, abs=1e-4 * size**0.5
    )


def test_rows_are_rotated_as_columns_are() -> None:
    rotation, matrix = Rotation.whole(96), np.random.default_rng(1).standard_normal((96, 5), np.float32)
    assert rotation.turned_rows(matrix) == pytest.approx(rotation.turned(matrix.T).T, abs=1e-5)


def test_a_rotation_spreads_an_outlier() -> None:
    for size in (576, 1024):
        outlier = np.eye(1, size, 7, dtype=np.float32)
        assert np.abs(Rotation.whole(size).turned(outlier)).max() < 0.3
    assert np.abs(Rotation.of_blocks(1536).turned(np.eye(1, 1536, dtype=np.float32))).max() < 0.1


def test_values_are_rotated_in_each_head_and_read_back() -> None:
    random = np.random.default_rng(1)
    v, out = random.standard_normal((24, 10)), random.standard_normal((10, 24))
    assert folding.reading_values(out, 8) @ folding.values(v, 8) == pytest.approx(out @ v, abs=1e-4)
    assert folding.values(v, 8) != pytest.approx(v, abs=0.1)
    assert orthogonal(8) @ orthogonal(8).T == pytest.approx(np.eye(8), abs=1e-6)


rows_of_weights = arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9).map(lambda one: 2 * one)),
    elements=st.floats(-1e3, 1e3, width=32),
)  # fmt: skip


@given(rows_of_weights)
def test_no_pair_of_neighbours_exceeds_16_bits(matrix: Any) -> None:
    numbers, scales = quantise.int8(matrix)
    pairs = numbers.T.astype(int).reshape(len(matrix), -1, 2)
    assert 255 * np.maximum(pairs, 0).sum(2).max() < 2**15
    assert 255 * np.minimum(pairs, 0).sum(2).min() >= -(2**15)
    assert np.abs(numbers.T * scales[:, None] - matrix).max() <= scales.max() * 0.501 + 1e-6


def test_a_scale_is_no_larger_than_needed() -> None:
    largest = quantise.pair_scales(np.array([[127, 0], [100, 27], [127, -127], [-64, -63]], np.float32))
    assert largest.tolist() == [1, 1, 1, 1]


def clipped(groups: Callable[[int], Sequence[Sequence[int]]]) -> Product:
    """A product u8 · s8 whose kernel adds the products of each group of columns in 16 bits, with
    saturation."""

    def product(states: Any, weights: Any) -> Any:
        unsigned = states + 128
        found = -128 * weights.sum(1)
        for group in groups(weights.shape[1]):
            sums = (unsigned[:, None, group] * weights[None, :, group]).sum(2)
            found = found + np.clip(sums, -(2**15), 2**15 - 1)
        return found

    return product


def test_sums_are_exact_on_this_cpu_and_with_pairs_in_16_bits() -> None:
    exact_sums.check()
    exact_sums.check(clipped(lambda columns: [[at, at + 1] for at in range(0, columns, 2)]))


@pytest.mark.parametrize(
    "groups",
    [
        lambda columns: [[at, (at + 1) % columns] for at in range(1, columns, 2)],
        lambda columns: [[at + one, at + one + 2] for at in range(0, columns, 4) for one in (0, 1)],
        lambda columns: [[at, at + 1, at + 2, at + 3] for at in range(0, columns, 4)],
        lambda columns: [[at, at + columns // 2] for at in range(columns // 2)],
    ],
    ids=["other neighbours", "every second", "four", "far apart"],
)
def test_a_kernel_that_adds_others_in_16_bits_is_refused(groups: Any) -> None:
    with pytest.raises(exact_sums.InexactSums, match="sums of int8 products are wrong on this CPU"):
        exact_sums.check(clipped(groups))


def test_a_worker_on_such_a_cpu_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    four = clipped(lambda columns: [[at, at + 1, at + 2, at + 3] for at in range(0, columns, 4)])
    monkeypatch.setattr(exact_sums, "product_of_int8", four)
    path = str(GOLDEN / "qwen3-headless.gguf")
    arguments = ["--model", path, "--socket", "/none/s", "--pooling", "none", "--labels", "1", "2"]
    assert program.main([*arguments, "--max-length", "64", "--threads", "1"]) == 1
    assert "leave precision at auto" in capsys.readouterr().err


# Scores


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("shared", [0, 33, 90])
def test_rotated_weights_in_float32_give_the_scores_of_transformers(name: str, shared: int) -> None:
    inputs, wanted = sampled(name, shared=shared)
    scorer = causal(GOLDEN / f"{name}.gguf", golden(name)["label_ids"], "f32")
    assert scorer.score(inputs) == pytest.approx(wanted, abs=BOUND)


@pytest.mark.parametrize("name", CAUSAL)
def test_int8_scores_are_near_and_depend_on_no_other_text(name: str) -> None:
    inputs, wanted = sampled(name, shared=60)
    scorer = causal(GOLDEN / f"{name}.gguf", golden(name)["label_ids"], "int8")
    found = scorer.score(inputs)
    mean, most = deviations(found, wanted)
    assert 0 < mean < MEAN and most < MOST
    alone = [scorer.score([one])[0] for one in inputs[::5]]
    assert alone == pytest.approx(found[::5], abs=1e-5)


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "llama"])
def test_other_families_have_the_scores_of_transformers(family: str, tmp_path: Path) -> None:
    folder = scaled.copied(family, tmp_path)
    cases = json.loads((folder / "golden.json").read_text())
    wanted = np.array([case["raw"] for case in cases])
    for shared in (0, 17, 50):
        inputs = []
        for case in cases:
            whole = np.array(case["ids"], np.int32)
            question = Question("", before=whole[: shared // 2], head=whole[shared // 2 : shared])
            inputs.append(Input(question, "", whole[shared // 2 :], len(whole)))
        found = causal(folder, cases[0]["labels"], "f32").score(inputs)
        assert found == pytest.approx(wanted, abs=BOUND)
    mean, _ = deviations(causal(folder, cases[0]["labels"], "int8").score(inputs), wanted)
    assert 0 < mean < MEAN


def test_one_label_and_a_checkpoint_are_scored() -> None:
    inputs, wanted = sampled("qwen3-headless", shared=60)
    first, second = golden("qwen3-headless")["label_ids"]
    one, other = (
        np.array(causal(GOLDEN / "qwen3-headless", [label], "f32").score(inputs)) for label in (first, second)
    )
    assert one - other == pytest.approx(wanted, abs=BOUND)


def read(name: str) -> tuple[Path, list[Reading], Any]:
    """Every sixth golden text of an encoder."""
    path = GOLDEN / golden(name)["model"] if name == "bert-embedder" else GOLDEN / name
    cases = [case for case in golden(name)["cases"] if case["fits"]][::6]
    frame = tokenizer.read(model_files.read(path)).frame
    texts = []
    for case in cases:
        ids = np.array(case["ids"], np.int32)
        is_typed = frame.first_typed is not None
        texts.append(Reading(ids, case["ids"].index(case["ids"][-1]) + 1 if is_typed else len(ids)))
    return path, texts, np.array([case["raw"] for case in cases])


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_have_the_scores_of_transformers(name: str) -> None:
    path, texts, wanted = read(name)
    exact = Encoder(path, "rank", threads=1, precision="f32")
    assert exact.forward(*padded(texts))[:, 0] == pytest.approx(wanted, abs=BOUND)
    mean, most = deviations(
        Encoder(path, "rank", threads=1, precision="int8").forward(*padded(texts))[:, 0], wanted
    )
    assert 0 < mean < MEAN and most < MOST


@pytest.mark.parametrize("folder", ["bert-normalized", "xlmr-residual"])
def test_heads_of_modules_are_those_of_another_engine(folder: str, tmp_path: Path) -> None:
    made = checkpoints.with_modules(folder, tmp_path / folder)
    write_wordpiece(made / "tokenizer.json")
    texts = [Reading(np.arange(5, 5 + length, dtype=np.int32), length) for length in (12, 7, 3)]
    found = Encoder(made, "rank", threads=1, precision="f32").forward(*padded(texts))
    assert found == pytest.approx(OpenVinoEncoder(made, "rank", threads=1).forward(*padded(texts)), abs=BOUND)


# The service


@pytest.mark.parametrize("name", ["qwen3-headless", "xlmr-head", "bert-embedder"])
async def test_a_model_in_int8_is_served_and_restarted(name: str, tmp_path: Path) -> None:
    texts = ["The giant panda is a bear that eats bamboo.", "The train to Lyon leaves at nine.", "hi"]

    async def scores(reranker: Reranker) -> list[float]:
        rows = (await reranker.rerank("What is a panda?", texts, raw_scores=True)).results
        return [row.score for row in sorted(rows, key=lambda row: row.index)]

    async with Reranker(golden_settings(name, tmp_path, precision="f32")) as reranker:
        wanted = await scores(reranker)
    async with Reranker(golden_settings(name, tmp_path, precision="int8")) as reranker:
        model = reranker.registry.models[0]
        assert "int8" in model.engine_name and "ONNX Runtime" in model.engine_name
        first = await scores(reranker)
        assert first != wanted and first == pytest.approx(wanted, abs=0.2)
        (pid,) = model.pids
        os.kill(pid, signal.SIGKILL)
        assert await scores(reranker) == first
        assert pid not in model.pids


def answers(name: str, **settings: Any) -> select.Answers:
    wanted = golden_settings(name.removesuffix(".gguf"), Path("/none"), **settings).wanted("")[0]
    return backend_offers.all_offers(SPECS[name], wanted, Path("/none"))


def test_int8_is_used_only_if_it_is_set() -> None:
    chosen = select.choose("auto", answers("qwen3-headless.gguf", precision="int8"))
    assert chosen.offer.backend.name == "onnx" and chosen.fallback is None
    assert "precision = int8 is set" in chosen.offer.reason
    for precision in ("auto", "f32", "bf16", "fp8"):
        others = answers("qwen3-headless.gguf", precision=precision)
        (refusal,) = [one for backend, one in others if backend.name == "onnx"]
        assert isinstance(refusal, Refusal) and 'precision = "int8"' in refusal.next_step
        assert select.choose("auto", others).offer.backend.name != "onnx"
    with pytest.raises(ConfigError, match=r'Leave it at auto, or set precision = "int8" to try it\.$'):
        select.choose("onnx", answers("qwen3-headless.gguf"))
    for name in ("openvino", "llama"):
        with pytest.raises(ConfigError, match="it does not compute in int8"):
            select.choose(name, answers("qwen3-headless.gguf", precision="int8"))


def test_int8_is_refused_with_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as raised:
        select.choose("auto", answers("modernbert-head.gguf", precision="int8"))
    assert str(raised.value) == (
        "ONNX Runtime can't run this model: the ONNX Runtime backend does not support the architecture "
        "modern-bert. Leave precision at auto."
    )
    (unasked,) = [one for backend, one in answers("modernbert-head.gguf") if backend.name == "onnx"]
    assert isinstance(unasked, Refusal) and unasked.is_minor and not unasked.next_step
    monkeypatch.setattr(OnnxBackend, "survey", lambda *_: False)
    with pytest.raises(ConfigError, match=r"not installed. Install it: pip install 'rerankd\[onnx\]'"):
        select.choose("auto", answers("qwen3-headless.gguf", precision="int8"))


def test_listwise_models_and_late_interaction_are_refused() -> None:
    (backend,) = [one for one in BACKENDS if one.name == "onnx"]
    for method in ("listwise", "late_interaction"):
        spec = SPECS["qwen3-headless.gguf"]
        spec = replace(spec, recipe=replace(spec.recipe, method=method))
        found = backend.offer(spec, OnnxOptions(precision="int8"), True)
        assert isinstance(found, Refusal) and method in found.reason


def test_doctor_says_what_int8_would_be_on_this_cpu() -> None:
    installed, missing = checks.package("1.32.0", ["avx2", "avx_vnni"]), checks.package("", ["avx512_bf16"])
    assert "no bf16, int8 is the fastest" in installed.says and 'precision = "int8"' in installed.step
    assert "not installed; this CPU has bf16" in missing.says and "rerankd[onnx]" in missing.step
    assert "not been measured" in checks.package("1.32.0", ["asimd"]).says


def test_the_setting_is_read() -> None:
    assert Settings.model_validate({"model": "x", "precision": "int8"}).precision == "int8"
