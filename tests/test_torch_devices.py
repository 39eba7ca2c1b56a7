"""PyTorch: devices, their precision and memory, the probe that lists them, and doctor's lines. Nothing here
needs PyTorch."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rerankd.backends.torch import checks, devices, placement, survey
from rerankd.backends.torch.devices import Arithmetic, Device, Survey
from rerankd.backends.torch.options import TorchOptions
from rerankd.backends.torch.placement import Placement
from rerankd.domain import Refusal
from rerankd.formats.metadata import ModelMetadata
from rerankd.machine import Gpu
from rerankd.state import StateStore

GIB = 2**30
CPU = Device("cpu", "a CPU")
H100 = Device("cuda:0", "H100", 80 * GIB, True, (9, 0))
T4 = Device("cuda:1", "T4", 16 * GIB, False, (7, 5))
MPS = Device("mps", "Apple GPU", 0, True)


@pytest.mark.parametrize(
    ("device", "architecture", "wanted", "precision"),
    [
        (CPU, "bert", "auto", "f32"),
        (CPU, "bert", "bf16", "f32"),
        (Device("cpu", "with AMX", has_bf16=True), "bert", "bf16", "bf16"),
        (Device("cpu", "with AMX", has_bf16=True), "bert", "auto", "f32"),
        (H100, "bert", "auto", "bf16"),
        (H100, "bert", "f32", "f32"),
        (T4, "bert", "auto", "f16"),
        (T4, "bert", "bf16", "f16"),
        (T4, "gemma2", "auto", "f32"),
        (T4, "t5encoder", "auto", "f32"),
        (MPS, "qwen3", "auto", "bf16"),
    ],
)
def test_the_precision_of_a_device(device: Device, architecture: str, wanted: str, precision: str) -> None:
    found = devices.arithmetic(device, architecture, wanted)
    assert found.precision == precision and found.why


def test_packed_attention_needs_a_card_of_ampere_or_newer_and_half_precision() -> None:
    assert devices.may_use_varlen(H100, "bf16")
    assert not devices.may_use_varlen(H100, "f32")
    assert not devices.may_use_varlen(T4, "f16")
    assert not devices.may_use_varlen(MPS, "bf16")


def test_the_setting_names_the_devices() -> None:
    found = Survey("2.14", (H100, T4, CPU))
    named = [devices.candidates(found, one) for one in ("auto", "cuda", "cuda:1", "cpu")]
    assert named == [(H100, T4), (H100, T4), (T4,), (CPU,)]
    assert devices.candidates(Survey("2.14", (MPS, CPU)), "auto") == (MPS,)
    refusal = devices.candidates(found, "mps")
    assert isinstance(refusal, Refusal)
    assert refusal.next_step == "set device to auto, cuda:0, cuda:1 or cpu"
    refusal = devices.candidates(Survey("2.14", (CPU,)), "cuda:3")
    assert isinstance(refusal, Refusal) and refusal.next_step == "set device to auto or cpu"
    broken = devices.candidates(Survey("2.14", (), "a library is missing"), "auto")
    assert isinstance(broken, Refusal) and "a library is missing" in broken.reason


def test_what_pytorch_would_bring_is_told_where_there_is_a_card() -> None:
    assert devices.candidates(Survey(""), "auto") == Refusal(
        "PyTorch is not installed", "install it: pip install 'rerankd[torch]'", is_minor=True
    )
    found = devices.candidates(Survey("", has_card=True, environment="/opt/rerankd"), "auto")
    assert isinstance(found, Refusal) and not found.is_minor
    assert found.reason == "PyTorch is not installed, which computes several times faster on a GPU"
    assert found.next_step == (
        "install it: pip install 'rerankd[torch]' in rerankd's own environment, /opt/rerankd (about 3 GB)"
    )


def test_a_pytorch_that_does_not_use_the_card_says_why() -> None:
    assert Survey("2.14", (CPU,)).shortfall == ""
    assert Survey("2.14", (H100, CPU), has_card=True, unused=("cuda:1 (K80): no kernel",)).shortfall == ""
    for_cpus = Survey("2.14+cpu", (CPU,), has_card=True)
    assert "2.14+cpu does not see the NVIDIA GPU" in for_cpus.shortfall and "3 GB" in for_cpus.shortfall
    old = replace(for_cpus, unused=("The NVIDIA driver on your system is too old",))
    assert old.shortfall == "PyTorch does not use the GPU: The NVIDIA driver on your system is too old"
    refusal = devices.candidates(old, "cuda")
    assert isinstance(refusal, Refusal) and "too old" in refusal.reason


def card(name: str, total: float, free: float) -> Gpu:
    return Gpu(name, int(total * GIB), int(free * GIB), "9.0", "580")


def test_engines_of_rerankd_do_not_count_as_occupying_a_card() -> None:
    two = (H100, replace(H100, name="cuda:1"), MPS)
    gpus = (card("H100", 80, 80), card("H100", 80, 10))
    share = int(0.8 * 80 * GIB)
    for held, rooms in (
        ({}, [share, 10 * GIB, None]),
        ({"gpu1": 30 * GIB}, [share, 40 * GIB, None]),
        (None, [share, share, None]),
    ):
        assert [one.room_bytes for one in devices.with_room(two, gpus, held)] == rooms
    # Without nvidia-smi (ROCm), or where a card shares main memory, PyTorch's own figure counts.
    for seen in ((), (Gpu("GB10", 0, 0, "12.1"),) * 2):
        assert [one.room_bytes for one in devices.with_room(two, seen, {})] == [share, share, None]
    # PyTorch sees a seventh of the first card, and slightly less than nvidia-smi of the second.
    part, whole = replace(two[0], total_bytes=11 * GIB), replace(two[1], total_bytes=79 * GIB)
    rooms = [one.room_bytes for one in devices.with_room((part, whole), gpus, {})]
    assert rooms == [int(0.8 * 11 * GIB), 10 * GIB]


def model(billions: float, width: int) -> ModelMetadata:
    return ModelMetadata(
        path=Path("m.gguf"),
        architecture="qwen3",
        parameters=int(billions * 1e9),
        embedding_length=width,
        block_weights=int(billions * 0.85e9),
    )


SMALL, LARGE = model(0.6, 1024), model(8.2, 4096)
BF16 = TorchOptions(precision="bf16")


def sized(at: int, room_gib: float, *, has_bf16: bool = True) -> Device:
    return Device(f"cuda:{at}", "a card", 2**40, has_bf16, (9, 0), int(room_gib * GIB))


@pytest.mark.parametrize(
    ("metadata", "seen", "replicas", "cards"),
    [
        (SMALL, [sized(0, 3)], 1, ["gpu0"]),
        (SMALL, [sized(0, 3), sized(1, 3)], 2, ["gpu0", "gpu1"]),
        (SMALL, [sized(0, 1), sized(1, 3)], 1, ["gpu1"]),
        (SMALL, [sized(0, 8)], 2, ["gpu0"]),
        (SMALL, [sized(0, 40, has_bf16=False), sized(1, 12)], 1, ["gpu1"]),
        (SMALL, [sized(0, 40, has_bf16=False), sized(1, 1)], 1, ["gpu0"]),
        (LARGE, [sized(0, 12), sized(1, 20)], 1, ["gpu1"]),
        (LARGE, [sized(0, 20), sized(1, 30)], 2, ["gpu1", "gpu0"]),
        (SMALL, [replace(H100, room_bytes=None), replace(H100, name="cuda:1")], 2, ["gpu0", "gpu1"]),
        (SMALL, [MPS], 2, []),
        (SMALL, [CPU], 2, []),
    ],
)
def test_a_model_goes_to_the_cards_that_hold_it(
    metadata: ModelMetadata, seen: list[Device], replicas: int, cards: list[str]
) -> None:
    found = placement.place(seen, metadata, TorchOptions(), replicas)
    assert isinstance(found, Placement), found
    assert list(found.cards) == cards
    assert not cards or found.device.card == cards[0]


def test_memory_of_several_cards_is_not_added_up() -> None:
    why = placement.place([sized(0, 12), sized(1, 14)], LARGE, BF16, 1)
    assert why == (
        "PyTorch needs 17.9 GiB of GPU memory for this model in bf16 (15.3 GiB of weights), and "
        "a card (cuda:1) has 14.0 GiB for engines"
    )
    why = placement.place([sized(0, 20), sized(1, 14)], LARGE, BF16, 2)
    assert isinstance(why, str) and why.startswith("only 1 of 2 replicas fit: PyTorch needs 17.9 GiB")
    assert isinstance(placement.place([sized(0, 0)], SMALL, BF16, 1), str)  # occupied, not unknown


def test_float32_takes_twice_the_weights() -> None:
    halved, full = (placement.card_bytes(LARGE, Arithmetic(precision, "")) for precision in ("bf16", "f32"))
    assert full - halved > LARGE.parameters * 2
    assert isinstance(placement.place([sized(0, 20)], LARGE, TorchOptions(precision="f32"), 1), str)


def test_weights_that_do_not_fit_are_kept_in_8_bits_unless_a_precision_is_set() -> None:
    small = [sized(0, 12)]
    found = placement.place(small, LARGE, TorchOptions(), 1)
    assert isinstance(found, Placement) and found.arithmetic.eight_bits == "int8"
    assert found.arithmetic.why == "on a card; weights in 8 bits: in full they do not fit"
    assert isinstance(placement.place(small, LARGE, BF16, 1), str)
    assert isinstance(placement.place(small, LARGE, TorchOptions(), 1, may_compress=False), str)
    assert isinstance(placement.place([sized(0, 8)], LARGE, TorchOptions(), 1), str)
    found = placement.place([sized(0, 40)], LARGE, TorchOptions(), 1)
    assert isinstance(found, Placement) and not found.arithmetic.eight_bits
    found = placement.place([sized(0, 40)], LARGE, TorchOptions(weights="compressed"), 1)
    assert isinstance(found, Placement) and found.arithmetic.eight_bits == "int8"


def test_float8_needs_a_card_that_has_it() -> None:
    ada, ampere = (replace(H100, capability=one) for one in ((8, 9), (8, 0)))
    assert devices.arithmetic(ada, "qwen3", "fp8").name == "bf16, weights in fp8"
    assert devices.arithmetic(ampere, "qwen3", "fp8").name == "bf16"
    assert devices.arithmetic(CPU, "qwen3", "fp8").name == "f32"
    assert "no float8" in devices.arithmetic(ampere, "qwen3", "fp8").why


SAID = {"devices": [{"name": "mps", "title": "M", "total_bytes": 0, "has_bf16": True, "capability": [0, 0]}]}


def test_the_devices_are_probed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def run(*_: Any, **more: Any) -> Any:
        asked.append(1)
        return SimpleNamespace(returncode=0, stdout='a warning\n{"devices": []}\n', stderr="")

    monkeypatch.setattr(survey, "version", lambda: "2.14")
    monkeypatch.setattr(subprocess, "run", run)
    for _ in range(2):
        found = survey.look(tmp_path)
        assert found.version == "2.14" and [one.name for one in found.devices] == ["cpu"]
    assert asked == [1]
    monkeypatch.setattr(survey, "version", lambda: "2.15")
    survey.look(tmp_path)
    assert asked == [1, 1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    survey.look(tmp_path)
    assert asked == [1, 1, 1]


def test_a_probe_that_fails_is_repeated_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "version", lambda: "2.14")
    said = "Traceback …\nOSError: libcudart.so.13: cannot open shared object file"
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **more: SimpleNamespace(returncode=1, stdout="", stderr=said)
    )
    found = survey.look(tmp_path)
    assert "libcudart" in found.problem and found.devices == ()
    (entry,) = StateStore(tmp_path).entries(survey.SECTION).values()
    assert entry.until is not None


@pytest.mark.parametrize("kept", [{}, [], "text", 3, {"devices": [{}]}, {"devices": [1]}])
def test_a_damaged_entry_is_a_problem_and_no_crash(kept: Any) -> None:
    assert survey.read(Survey("2.14"), kept, CPU).problem
    assert survey.read(Survey("2.14"), SAID, CPU).devices == (Device("mps", "M", 0, True), CPU)


def test_a_missing_driver_is_a_problem_only_where_there_is_a_card() -> None:
    said = {"devices": [], "unused": [], "driver": "Found no NVIDIA driver on your system"}
    assert survey.read(Survey("2.14"), said, CPU).shortfall == ""
    assert "no NVIDIA driver" in survey.read(Survey("2.14", has_card=True), said, CPU).shortfall


def lines(found: Survey, wanted: str = "auto") -> list[tuple[str, str, str]]:
    return [(one.status, one.says, one.step) for one in checks.diagnose(found, wanted)]


def test_doctor_names_devices_precision_attention_and_compiler() -> None:
    seen = (replace(H100, room_bytes=60 * GIB), T4, CPU)
    found = Survey("2.14", seen, environment="/opt/rerankd", compiler="/bin/gcc", cache=Path("/data/cache"))
    assert lines(found) == [
        (
            "ok",
            "2.14 in /opt/rerankd, on cuda:0 (H100, 60.0 GiB for engines): bf16, packed attention; "
            "cuda:1 (T4): f16, padded attention",
            "",
        ),
        ("ok", "/bin/gcc; compiled code is kept in /data/cache", ""),
    ]
    says = "2.14 in /opt/rerankd, on cpu (a CPU): f32, padded attention"
    assert lines(replace(found, devices=(CPU,))) == [("ok", says, "")]  # nothing is compiled there
    for lacking, words in (
        (replace(found, compiler=""), "no C compiler"),
        (replace(found, has_headers=False), "headers are missing"),
    ):
        status, says, step = lines(lacking)[1]
        assert (status, words in says, "apt install gcc g++ python3-dev" in step) == ("warn", True, True)


def test_doctor_warns_of_a_card_that_is_not_used() -> None:
    one = Survey("2.14", (H100, CPU), unused=("cuda:1 (K80): no kernel image",), compiler="gcc")
    assert ("warn", "does not use cuda:1 (K80): no kernel image", "") in lines(one)
    ((status, says, _),) = lines(Survey("2.14+cpu", (CPU,), has_card=True, compiler="gcc"))
    assert status == "warn" and "does not see the NVIDIA GPU" in says
    ((status, says, step),) = lines(Survey("", has_card=True, environment="/opt/rerankd"))
    assert (status, "faster on a GPU" in says) == ("warn", True)
    assert "rerankd[torch]" in step and "/opt/rerankd" in step
    ((status, _, step),) = lines(Survey(""))
    assert status == "ok" and "rerankd[torch]" in step
    ((status, says, _),) = lines(Survey("2.14", (), "no"))
    assert status == "warn"
    assert lines(one, "xpu")[0][0] == "warn"
