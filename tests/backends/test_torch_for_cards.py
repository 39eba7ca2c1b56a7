"""What PyTorch's networks do for cards, on the CPU: precisions, 8 bits, the compiler, memory, a lost device.

Needs PyTorch: `make test-torch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no PyTorch here: make test-torch")

from test_torch_networks import BOUND, CPU, LABELED, computed, pairs, started, values, worst

from rerankd.backends.torch import attention, compiled, runtime
from rerankd.backends.torch.batch import Grid
from rerankd.backends.torch.devices import EightBits
from rerankd.backends.torch.steps import Steps
from rerankd.backends.worker.passes import Pending, Reading
from rerankd.backends.worker.protocol import DeviceLost
from support import GOLDEN, golden


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


# PyTorch 2.13's compiler uses what PyTorch calls deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_steps_compute_the_same_and_are_not_compiled_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """For other sizes than those of the compiler, one token among them."""
    path = GOLDEN / "qwen3-headless.gguf"
    network = started(path, golden("qwen3-headless")["label_ids"])
    readings, wanted = pairs("qwen3-headless", path, 40)
    try:
        compiled.start(network).join()
        assert "not compiled" not in (said := capsys.readouterr().err) and "times as fast" in said
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
        for compiler, result in (
            (no_compiler, "not compiled (Failed to find C compiler.)"),
            (wrong, "compiled code is not used (its results differ by"),
        ):
            monkeypatch.setattr(torch, "compile", compiler)
            compiled.start(network).join()
            assert result in capsys.readouterr().err
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
    assert np.abs(np.stack(computed(network, readings))[:, 0] - wanted).max() < BOUND
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
        assert np.abs(np.stack(computed(network, readings))[:, 0] - wanted).max() < BOUND
    assert len(network.prefixes._held) == len({one.ids[:70].tobytes() for one in readings})
    own = max(len(one.ids) - 70 for one in readings)
    assert own < 70 and longest[0] == 70
    assert longest[-3] == (70 if uses_varlen else own)  # the queries of the last layer
