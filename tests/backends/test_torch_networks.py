"""PyTorch's networks against transformers' values, with attention, prefixes and passes of every shape.

Needs PyTorch: `make test-torch`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no PyTorch here: make test-torch")

from breaks import Change, tensor
from cases import PAIR_CHECKPOINTS
from test_causal_checkpoints import with_head
from test_encoders_can_fail import BREAKS as ENCODER_BREAKS
from test_goldens_can_fail import BREAKS, FAMILIES, FILE_BREAKS, copied
from test_modules import BREAKS as MODULE_BREAKS
from test_modules import SCALED, made

import checkpoints
import ggufs
from rerankd.backends.torch import attention, compiled, runtime
from rerankd.backends.torch.architecture import Unsupported
from rerankd.backends.torch.architectures import ARCHITECTURES
from rerankd.backends.torch.batch import Grid
from rerankd.backends.torch.devices import EightBits
from rerankd.backends.torch.network import Network
from rerankd.backends.torch.steps import Steps
from rerankd.backends.torch.support import ARCHITECTURES as NAMES
from rerankd.backends.worker import scorer
from rerankd.backends.worker.passes import Pending, Reading, Vectors
from rerankd.backends.worker.protocol import DeviceLost
from rerankd.errors import ModelFileError
from rerankd.formats import model_files, tokenizer
from rerankd.formats.weights import Weights
from support import GOLDEN, golden

BOUND = 1e-5
# A broken part must change scores by far more.
SEEN = 20 * BOUND
CPU = torch.device("cpu")
LABELED = ("qwen3-headed", "qwen3-headless", "qwen2-labels", "qwen3-yes", "qwen2-first", "gemma-yes")


def started(path: Path, labels: Sequence[int] = ()) -> Network:
    return runtime.start(path, "none" if labels else "rank", labels=labels)


def computed(network: scorer.Network, readings: Sequence[Reading]) -> Vectors:
    """The rows of one forward pass."""
    return network.start(readings)()


def values(network: scorer.Network, readings: Sequence[Reading]) -> Vectors:
    """The values in order, in the passes that the network divides them into."""
    found = np.zeros(len(readings), np.float32)
    for places in network.passes(readings):
        found[places] = computed(network, [readings[at] for at in places])[:, 0]
    return found


def worst(network: scorer.Network, readings: Sequence[Reading], wanted: Any) -> float:
    """The largest difference from the wanted values; alone, in passes and all together they must agree."""
    alone = np.array([computed(network, [one])[0, 0] for one in readings])
    assert np.abs(values(network, readings) - alone).max() < BOUND
    assert np.abs(computed(network, readings)[:, 0] - alone).max() < BOUND
    return float(np.abs(alone - wanted).max())


def pairs(name: str, path: Path, shared: int = 0, each: int = 6) -> tuple[list[Reading], Any]:
    """A part of a golden model's pairs, and their raw values."""
    cases = [case for case in golden(name)["cases"] if case["fits"]][::each]
    is_typed = tokenizer.read(model_files.read(path)).frame.first_typed is not None
    readings = []
    for case in cases:
        ids = np.array(case["ids"], np.int32)
        second = case["ids"].index(case["ids"][-1]) + 1 if is_typed else len(ids)
        readings.append(Reading(ids, second, shared))
    return readings, np.array([case["raw"] for case in cases])


@pytest.mark.parametrize("name", PAIR_CHECKPOINTS)
def test_encoders_have_the_values_of_transformers(name: str, tmp_path: Path) -> None:
    folder = GOLDEN / name
    assert worst(started(folder), *pairs(name, folder, each=1)) < BOUND


@pytest.mark.parametrize("name", ["qwen3-headless", "qwen2-labels"])
def test_causal_checkpoints_have_the_values_of_transformers(name: str) -> None:
    network = started(GOLDEN / name, golden(name)["label_ids"])
    assert worst(network, *pairs(name, GOLDEN / name, 20)) < BOUND


def test_a_causal_models_rank_head_has_the_values_of_transformers(tmp_path: Path) -> None:
    folder = with_head(tmp_path)
    assert worst(started(folder), *pairs("qwen3-headless", folder, 20)) < BOUND
    tensor("score.weight", lambda held: held[:, ::-1])(folder)
    assert worst(started(folder), *pairs("qwen3-headless", folder, 20)) > SEEN


@pytest.mark.parametrize("shared", [0, 20])
@pytest.mark.parametrize("name", LABELED)
def test_causal_models_have_the_values_of_transformers_with_and_without_a_prefix(
    name: str, shared: int
) -> None:
    path = GOLDEN / golden(name)["model"]
    network = started(path, golden(name)["label_ids"])
    readings, wanted = pairs(name, path, shared, each=1)
    assert worst(network, readings, wanted) < BOUND
    assert (network.prefixes.size_bytes > 0) == (shared > 0)


def test_a_split_file_has_the_values_of_the_whole(tmp_path: Path) -> None:
    part = ggufs.rewrite(GOLDEN / "qwen3-headless.gguf", tmp_path / "split.gguf", tensors_a_part=5)
    assert len([*tmp_path.iterdir()]) > 3
    values = golden("qwen3-headless")
    assert worst(started(part, values["label_ids"]), *pairs("qwen3-headless", part, 20)) < BOUND


def test_modern_bert_with_silu_has_the_values_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="make test-torch")
    keys = {"modern-bert.hidden_activation": "silu"}
    path = ggufs.rewrite(GOLDEN / "modernbert-head.gguf", tmp_path / "silu.gguf", keys=keys)
    readings, with_gelu = pairs("modernbert-head", path)
    kind = transformers.ModernBertForSequenceClassification
    model = kind.from_pretrained(GOLDEN / "modernbert-head", hidden_activation="silu", dtype=torch.float32)
    with torch.inference_mode():
        wanted = [float(model(torch.from_numpy(one.ids[None]).long()).logits) for one in readings]
    assert worst(started(path), readings, np.array(wanted)) < BOUND
    assert np.abs(np.array(wanted) - with_gelu).max() > SEEN


@pytest.mark.parametrize("name", SCALED)
def test_a_head_of_modules_has_the_values_of_the_library(name: str, tmp_path: Path) -> None:
    assert modules_distance(made(name, tmp_path)) < BOUND


def modules_distance(folder: Path) -> float:
    cases = json.loads((folder / "golden.json").read_text())["cases"]
    texts = [Reading(np.array(case["ids"], np.int32), case["second"]) for case in cases]
    return worst(started(folder), texts, np.array([case["raw"] for case in cases]))


@pytest.mark.parametrize(
    ("name", "what", "change"), MODULE_BREAKS, ids=[f"{name}: {what}" for name, what, _ in MODULE_BREAKS]
)
def test_a_broken_part_of_a_head_of_modules_is_noticed(
    name: str, what: str, change: Change, tmp_path: Path
) -> None:
    folder = made(name, tmp_path)
    change(folder)
    assert modules_distance(folder) > SEEN, what


def scaled_distance(folder: Path, second: int = 0) -> float:
    cases = json.loads((folder / "golden.json").read_text())
    texts = [Reading(np.array(case["ids"], np.int32), case["second"] + second) for case in cases]
    return worst(started(folder), texts, np.array([case["raw"] for case in cases]))


@pytest.mark.parametrize("family", FAMILIES)
def test_scaled_checkpoints_have_the_values_of_transformers(family: str, tmp_path: Path) -> None:
    assert scaled_distance(copied(family, tmp_path)) < BOUND


@pytest.mark.parametrize(
    ("family", "what", "change"), BREAKS, ids=[f"{family}: {what}" for family, what, _ in BREAKS]
)
def test_a_broken_part_is_noticed(family: str, what: str, change: Change, tmp_path: Path) -> None:
    folder = copied(family, tmp_path)
    change(folder)
    assert scaled_distance(folder) > SEEN, what


def test_a_second_text_that_begins_one_token_late_is_noticed(tmp_path: Path) -> None:
    assert scaled_distance(copied("bert", tmp_path), second=1) > SEEN


@pytest.mark.parametrize(
    ("name", "what"), [(name, what) for name, changes in ENCODER_BREAKS.items() for what in changes]
)
def test_a_broken_part_of_another_encoder_is_noticed(name: str, what: str, tmp_path: Path) -> None:
    folder = checkpoints.copy(name, tmp_path / name)
    ENCODER_BREAKS[name][what](folder)
    assert worst(started(folder), *pairs(name, folder)) > SEEN, what


@pytest.mark.parametrize("what", FILE_BREAKS)
def test_a_broken_part_of_a_gguf_file_is_noticed(what: str, tmp_path: Path) -> None:
    name, change = FILE_BREAKS[what]
    broken = ggufs.rewrite(GOLDEN / golden(name)["model"], tmp_path / "broken.gguf", **change)  # type: ignore[arg-type]
    labels = golden(name)["label_ids"] if name in LABELED else ()
    assert worst(started(broken, labels), *pairs(name, broken, 40 if labels else 0)) > SEEN


def test_packed_attention_is_not_used_where_it_does_not_work() -> None:
    problem = attention.varlen_problem(CPU, torch.bfloat16)
    assert problem and "\n" not in problem and len(problem) < 200
    network = runtime.start(GOLDEN / "xlmr-head", "rank", wants_varlen=True)
    assert "padded attention" in network.about
    assert worst(network, *pairs("xlmr-head", GOLDEN / "xlmr-head")) < BOUND


@pytest.mark.parametrize("name", ["xlmr-head", "modernbert-head"])
def test_half_precision_is_close(name: str) -> None:
    network = runtime.start(GOLDEN / name, "rank", precision="bf16")
    readings, wanted = pairs(name, GOLDEN / name)
    assert np.abs(values(network, readings) - wanted).max() < 0.02 * np.ptp(wanted)
    assert "bf16" in network.about


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.04), ("fp8", 0.25)])
@pytest.mark.parametrize("name", ["xlmr-head", "qwen3-headless.gguf"])
def test_weights_in_8_bits_are_close(name: str, kind: EightBits, most: float) -> None:
    """Random weights are rounded worse than trained ones: 0.021 and 0.12 of the range were seen. With float8,
    states are rounded, too; a wrong scale changes values by more than their range."""
    stem = name.removesuffix(".gguf")
    labels = golden(stem)["label_ids"] if stem in LABELED else ()
    pooling, precision = ("none" if labels else "rank"), ("bf16" if kind == "fp8" else "f32")
    network = runtime.start(GOLDEN / name, pooling, labels=labels, precision=precision, eight_bits=kind)
    held = [layer for layer in network._loaded.layers for one in layer if one.endswith(".scale")]
    readings, wanted = pairs(stem, GOLDEN / name)
    apart = np.abs(values(network, readings) - wanted).max()
    assert held and 0 < apart < most * np.ptp(wanted)
    assert f"weights in {kind}" in network.about


def test_compiled_steps_compute_the_same_and_are_not_compiled_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """For other sizes than those of the compiler, one token among them."""
    path = GOLDEN / "qwen3-headless.gguf"
    network = started(path, golden("qwen3-headless")["label_ids"])
    readings, wanted = pairs("qwen3-headless", path, 40)
    try:
        compiled.start(network).join()
        assert "compiled" in capsys.readouterr().err
        # Used here also if it is no faster.
        network.steps = compiled.CompiledSteps(Steps(network._loaded.architecture))
        torch._dynamo.utils.counters.clear()
        assert worst(network, readings, wanted) < BOUND
        network.start([Reading(np.ones(1, np.int32), 1)])()
        assert not torch._dynamo.utils.counters["stats"]
    finally:
        torch.compiler.set_stance("default")


def test_a_compiler_that_fails_or_is_wrong_is_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = started(GOLDEN / "xlmr-head")
    eager = network.steps

    def no_compiler(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Failed to find C compiler.\nMore words")

    def wrong(step: Any, **_: Any) -> Any:
        def changed(x: Any, *rest: Any) -> Any:
            x, projected = step(x, *rest)
            return x * 1.2, projected

        return changed

    try:
        for compiler, reason in ((no_compiler, "Failed to find C compiler."), (wrong, "its results differ")):
            monkeypatch.setattr(torch, "compile", compiler)
            compiled.start(network).join()
            assert f"not compiled ({reason}" in capsys.readouterr().err
            assert network.steps is eager
    finally:
        torch.compiler.set_stance("default")


def test_out_of_memory_halves_the_pass_and_nobody_gets_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    network = started(GOLDEN / "xlmr-head")
    readings, wanted = pairs("xlmr-head", GOLDEN / "xlmr-head")
    started_pass, before = network._started, network.tokens_a_pass

    def limited(some: Sequence[Reading]) -> Pending:
        if sum(len(one.ids) for one in some) > 500:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return started_pass(some)

    monkeypatch.setattr(network, "_started", limited)
    assert np.abs(computed(network, readings)[:, 0] - wanted).max() < BOUND
    assert network.tokens_a_pass < before
    with pytest.raises(torch.OutOfMemoryError):
        computed(network, [Reading(np.ones(501, np.int32), 501)])


@pytest.mark.parametrize("when", ["at the start", "when the rows are read"])
def test_a_lost_device_is_told_from_other_errors(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = started(GOLDEN / "xlmr-head")
    reading = Reading(np.ones(5, np.int32), 5)

    def failing(error: RuntimeError) -> Any:
        def fail(*_: Any) -> Any:
            raise error

        return fail if when == "at the start" else lambda *_: fail

    for error, kind in (
        (
            torch.AcceleratorError("CUDA error: an illegal memory access\nCUDA kernel …"),
            DeviceLost,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling …"), DeviceLost),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
    ):
        monkeypatch.setattr(network, "_started", failing(error))
        with pytest.raises(RuntimeError) as found:
            network.start([reading])()
        assert type(found.value) is kind
        assert "\n" not in str(found.value)


def test_the_table_and_the_names_that_the_service_knows_agree() -> None:
    assert (*ARCHITECTURES,) == NAMES


def test_scaled_rotary_positions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    key = Weights.key

    def changed(self: Weights, name: str, default: Any = None) -> Any:
        return "yarn" if name == "rope.scaling.type" else key(self, name, default)

    monkeypatch.setattr(Weights, "key", changed)
    with pytest.raises(Unsupported, match="yarn"):
        started(GOLDEN / "qwen3-headless.gguf", (1, 2))


def test_a_missing_bias_is_a_damaged_file(tmp_path: Path) -> None:
    def without(held: dict[str, Any]) -> dict[str, Any]:
        return {name: data for name, data in held.items() if name != "blk.0.attn_q.bias"}

    path = ggufs.rewrite(GOLDEN / "xlmr-head.gguf", tmp_path / "damaged.gguf", tensors=without)
    with pytest.raises(ModelFileError, match=r"attn_q\.bias is missing"):
        started(path)


@pytest.mark.parametrize("uses_varlen", [True, False])
def test_a_prefix_is_computed_in_the_pass_of_its_inputs_unless_attention_pads(uses_varlen: bool) -> None:
    """Padded attention would pad short documents to the length of a long query. The packed kernel, which
    needs a card, is imitated by the padded one."""
    path = GOLDEN / "qwen3-headless.gguf"
    network = started(path, golden("qwen3-headless")["label_ids"])
    readings, wanted = pairs("qwen3-headless", path, 70)
    short = [at for at, one in enumerate(readings) if len(one.ids) < 120]
    readings, wanted = [readings[at] for at in short], wanted[short]
    longest: list[int] = []
    padded = Grid.padded

    def seen(self: Grid, rows: Any) -> Any:
        longest.append(self.longest)
        return padded(self, rows)

    network._uses_varlen = uses_varlen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Grid, "padded", seen)
        patch.setattr(attention, "_varlen", attention._padded)
        assert np.abs(computed(network, readings)[:, 0] - wanted).max() < BOUND
    assert len(network.prefixes._held) == len({one.ids[:70].tobytes() for one in readings})
    own = max(len(one.ids) - 70 for one in readings)
    assert own < 70 and longest[0] == 70
    assert longest[-3] == (70 if uses_varlen else own)  # the queries of the last layer
