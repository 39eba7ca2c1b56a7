"""The llama-server command line: slots, GPU layers and flags; and the cores and cards of a machine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rerankd import machine
from rerankd.backends.base import EngineSpec, Shape
from rerankd.backends.llama import bundled, launch
from rerankd.domain import Method, Normalization, Pooling, Recipe
from rerankd.machine import Gpu

SOCKET = Path("/run/e.sock")
GIB = 2**30


def spec(
    method: Method, pooling: Pooling, *, exact: bool, max_length: int = 512, shape: Shape | None = None
) -> EngineSpec:
    scoring = Recipe(method, max_length, Normalization("sigmoid"), pooling=pooling)
    return EngineSpec("m", Path("/m.gguf"), scoring, {}, exact, shape or Shape())


def flags(made: Any) -> dict[str, str]:
    words = list(made)[1:]
    return {
        word: words[at + 1] if at + 1 < len(words) and not words[at + 1].startswith("--") else ""
        for at, word in enumerate(words)
        if word.startswith("--")
    }


def card(free_gib: float, name: str = "RTX") -> Gpu:
    return Gpu(name, 24 * GIB, int(free_gib * GIB), "8.9", "570.1")


def on(*gpus: Gpu, threads: int = 8, **more: Any) -> launch.EngineOptions:
    return launch.EngineOptions(("llama-server",), threads, gpus, **more)


E5 = spec("embedding", "mean", exact=False, shape=Shape(80 * 2**20, 12, 384, 768))
BGE_M3 = spec("cross_encoder", "rank", exact=False, max_length=8192, shape=Shape(606 * 2**20, 24, 1024, 2048))
BGE_M3_F16 = replace(BGE_M3, exact=True, shape=Shape(1130 * 2**20, 24, 1024, 2048))
QWEN_06B = spec("causal_lm", "none", exact=False, max_length=8192, shape=Shape(610 * 2**20, 28, 1024, 2048))
QWEN_06B_F32 = replace(QWEN_06B, exact=True, shape=Shape(int(2.4 * GIB), 28, 1024, 2048))
QWEN_8B_Q4 = spec(
    "causal_lm", "none", exact=False, max_length=8192, shape=Shape(int(4.7 * GIB), 36, 4096, 2048)
)
UNKNOWN = spec("causal_lm", "none", exact=False, max_length=8192)

CPU_2 = on(threads=2)
LAPTOP = on(threads=8)
CARD_24 = on(card(23.5))
CARD_8 = on(card(7.8))
CARD_8_BUSY = on(card(0.5))
SHARED_MEMORY = on(Gpu("GB10", 0, 0, "12.1"))
CARD_6 = on(card(5.8))
TWO_CARDS = on(card(7.8), card(7.8))
BIG_CARD = on(card(139), threads=16)
UNSEEN = launch.EngineOptions(("llama-server",), 8, None)


@pytest.mark.parametrize(
    ("model", "machine", "slots", "layers"),
    [
        (E5, CPU_2, 4, 0),
        (BGE_M3, CPU_2, 4, 0),
        (BGE_M3_F16, CPU_2, 1, 0),
        (QWEN_06B, CPU_2, 1, 0),
        (QWEN_06B_F32, LAPTOP, 1, 0),
        (QWEN_8B_Q4, LAPTOP, 1, 0),
        (QWEN_8B_Q4, CARD_24, 4, launch.ALL_LAYERS),
        (QWEN_8B_Q4, CARD_8, 1, launch.ALL_LAYERS),
        (QWEN_8B_Q4, TWO_CARDS, 4, launch.ALL_LAYERS),
        (QWEN_8B_Q4, BIG_CARD, 4, launch.ALL_LAYERS),
        (QWEN_06B, CARD_8, 4, launch.ALL_LAYERS),
        (BGE_M3, CARD_8, 4, launch.ALL_LAYERS),
        (BGE_M3_F16, CARD_8, 4, launch.ALL_LAYERS),
        (BGE_M3_F16, replace(CARD_8, keeps_f32=True), 1, launch.ALL_LAYERS),
        (BGE_M3_F16, UNSEEN, 1, None),
        (BGE_M3_F16, SHARED_MEMORY, 4, None),
        (BGE_M3_F16, replace(CARD_8, gpu_layers=0), 1, 0),
        (E5, replace(CPU_2, keeps_f32=True), 1, 0),
        (QWEN_8B_Q4, CARD_8_BUSY, 1, 0),
        (BGE_M3, CARD_8_BUSY, 4, 0),
        (QWEN_8B_Q4, UNSEEN, 4, None),
        (QWEN_8B_Q4, SHARED_MEMORY, 4, None),
        (UNKNOWN, CARD_24, 4, None),
        (QWEN_8B_Q4, replace(CARD_24, gpu_layers=0), 1, 0),
        (QWEN_8B_Q4, replace(CARD_8, gpu_layers=20), 1, 20),
        (QWEN_8B_Q4, replace(UNSEEN, gpu_layers=20), 4, 20),
    ],
)
def test_slots_and_layers(
    model: EngineSpec, machine: launch.EngineOptions, slots: int, layers: int | None
) -> None:
    decided = launch.decide(model, machine)
    assert (decided.slots, decided.gpu_layers) == (slots, layers), decided.reason


def test_as_many_layers_as_fit() -> None:
    decided = launch.decide(QWEN_8B_Q4, CARD_6)
    assert decided.gpu_layers is not None
    assert 20 < decided.gpu_layers < 36
    assert decided.slots == 1
    assert f"{decided.gpu_layers} of 36 layers fit" in decided.reason
    # These layers fit: their weights and KV cache, and the buffers of a micro-batch.
    taken = decided.gpu_layers * (4.7 * GIB / 37 + 8448 * 2048 * 2)
    assert taken < 5.8 * GIB - 600 * 2**20


def test_more_free_memory_never_means_fewer_layers_or_slots() -> None:
    found = [launch.decide(QWEN_8B_Q4, on(card(gib / 4))) for gib in range(2, 100)]
    layers = [decided.gpu_layers or 0 for decided in found]
    slots = [decided.slots for decided in found]
    assert layers == sorted(layers)
    assert slots == sorted(slots)
    assert set(slots) == {1, 2, 4}


@pytest.mark.parametrize("model", [BGE_M3_F16, QWEN_06B_F32, E5, QWEN_06B])
def test_a_gpu_rounds_attention_to_half_precision_unless_float32_is_set(model: EngineSpec) -> None:
    for one in (CARD_24, SHARED_MEMORY, replace(CARD_24, gpu_layers=10)):
        decided = launch.decide(model, one)
        assert (decided.flash_attention, decided.cache_type) == ("auto", "f16")
        kept = launch.decide(model, replace(one, keeps_f32=True))
        is_causal_lm = model.recipe.method == "causal_lm"
        assert (kept.flash_attention, kept.cache_type) == ("off", "f32" if is_causal_lm else "f16")
    for one in (CPU_2, UNSEEN):  # the latter may be a llama-server for CPUs
        assert launch.decide(model, one).flash_attention == ("off" if model.exact else "auto")


def test_a_micro_batch_of_an_encoder_holds_several_texts_where_a_gpu_has_the_memory() -> None:
    found = [launch.decide(replace(E5, exact=exact), CARD_24) for exact in (True, False)]
    assert [(one.ubatch, one.batch, one.slots) for one in found] == [(2048, 2048, 4)] * 2
    assert launch.decide(E5, CPU_2).ubatch == 512
    assert launch.decide(BGE_M3, CARD_24).ubatch == 8192  # the longest text must fit
    # 600 MiB of the driver, 80 of the weights, and 36 or 9 of the buffers.
    assert launch.decide(E5, on(card(0.69))).ubatch == 512


@pytest.mark.parametrize(
    ("made_for", "options", "expected"),
    [
        (E5, CPU_2, {"--pooling": "mean", "--parallel": "4", "--ctx-size": "2048", "--ubatch-size": "512"}),
        (
            spec("cross_encoder", "rank", exact=True),
            CPU_2,
            {"--pooling": "rank", "--parallel": "1", "--ctx-size": "512", "--flash-attn": "off"},
        ),
        (
            QWEN_06B_F32,
            CPU_2,
            {"--parallel": "1", "--ctx-size": "8448", "--ubatch-size": "512", "--cache-type-k": "f32"},
        ),
        (
            QWEN_8B_Q4,
            CARD_24,
            {"--parallel": "4", "--ctx-size": "33792", "--n-gpu-layers": "999", "--threads": "8"},
        ),
    ],
)
def test_command_line(made_for: EngineSpec, options: launch.EngineOptions, expected: dict[str, str]) -> None:
    made = flags(launch.argv(made_for, options, SOCKET))
    assert expected.items() <= made.items()
    assert made["--cache-ram"] == "0"
    assert ("--embedding" in made) == (made_for.recipe.method != "causal_lm")
    assert ("--flash-attn" in made) == made_for.exact


def test_flags_of_the_user_override_rerankds() -> None:
    extra = ("--threads", "3", "--ctx-size=64", "--mlock")
    made = list(launch.argv(E5, replace(CPU_2, extra=extra), SOCKET))
    assert made[-4:] == list(extra)
    assert made.count("--threads") == 1
    assert "2048" not in made


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    ("method", "pooling"), [("cross_encoder", "rank"), ("embedding", "cls"), ("causal_lm", "none")]
)
def test_the_bundled_program_accepts_every_flag(method: Method, pooling: Pooling, exact: bool) -> None:
    for options in (CPU_2, CARD_24):
        words = list(launch.argv(spec(method, pooling, exact=exact), options, SOCKET))
        assert bundled.parser().parse_args(words[1:]).host == str(SOCKET)


@pytest.mark.parametrize(
    ("siblings", "logical", "quota", "cores"),
    [
        (["0", "1"], 2, "", 2),  # a small VM
        (["0,8", "1,9"] * 2, 4, "max 100000", 2),  # two threads per core
        ([], 6, "", 6),  # unknown topology
        ([str(at) for at in range(64)], 64, "400000 100000", 4),  # a container with a quota
        (["0", "1"], 2, "150000 100000", 1),
        (["0", "1"], 2, "50000 100000", 1),
    ],
)
def test_cores(siblings: list[str], logical: int, quota: str, cores: int) -> None:
    assert machine.count_cores(siblings, logical, quota) == cores


def test_nvidia_smis_list_of_cards_is_parsed() -> None:
    text = (
        "NVIDIA GeForce RTX 4090, 24564, 23802, 8.9, 570.133.07\n"
        "NVIDIA H200, 143771, 143000, 9.0, 580.1\n"
        "NVIDIA GB10, [N/A], [N/A], 12.1, 580.95\n"
        "No devices were found\n"
    )
    first, second, third = machine.parse_gpus(text)
    assert (first.name, first.free_bytes, first.compute_capability) == (
        "NVIDIA GeForce RTX 4090",
        23802 * 2**20,
        "8.9",
    )
    assert second.driver == "580.1"
    assert (third.total_bytes, third.compute_capability) == (0, "12.1")


@pytest.mark.parametrize(
    ("said", "left"),
    [(None, "ab"), ("0", "a"), ("1,0", "ba"), ("1,7,0", "b"), ("", ""), ("-1", ""), ("GPU-8a3f", "ab")],
)
def test_cuda_visible_devices_selects_cards(said: str | None, left: str) -> None:
    found = machine.visible((card(1, "a"), card(1, "b")), said)
    assert "".join(gpu.name for gpu in found) == left


@pytest.mark.parametrize(
    ("said", "left"),
    [("GPU-8b", "b"), ("GPU-8b, GPU-8a3f", "ba"), ("GPU-9,GPU-8b", ""), ("GPU-8b,1", "bb"), ("MIG-8b", "ab")],
)
def test_cuda_visible_devices_names_cards_by_uuid(said: str, left: str) -> None:
    two = [replace(card(1, name), uuid=f"GPU-8{name}3f-22") for name in "ab"]
    assert "".join(gpu.name for gpu in machine.visible(tuple(two), said)) == left


def test_a_single_card_of_several_is_selected_and_only_its_memory_counts() -> None:
    small, large = Gpu("small", 8 * GIB, 7 * GIB, "8.9"), Gpu("large", 24 * GIB, 23 * GIB, "8.9")
    spec = QWEN_8B_Q4
    options = replace(on(small, large), cards=("gpu1",))
    words = list(launch.argv(spec, options, Path("/s")))
    assert words[words.index("--main-gpu") + 1] == "1" and words[words.index("--split-mode") + 1] == "none"
    assert "the whole model fits on large" in launch.decide(spec, options).reason
    assert "--main-gpu" not in launch.argv(spec, on(small, large), Path("/s"))
    assert "--main-gpu" not in launch.argv(spec, replace(on(large), cards=("gpu0",)), Path("/s"))
