"""GPU memory from nvidia-smi's output, and the check for memory for a second engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from rerankd import processes
from rerankd.machine import Gpu, gpu_memory, lack, parse_gpu_memory, parse_gpus
from rerankd.serving.memory_budgets import card_budgets

CARDS = [
    Gpu("A", 24 * 2**30, 23 * 2**30, "8.9", uuid="GPU-a"),
    Gpu("B", 8 * 2**30, 2**30, "8.9", uuid="GPU-b"),
]
MIB = 2**20


def test_gpu_memory_of_processes_per_card() -> None:
    text = "GPU-a, 101, 500\nGPU-b, 202, 40\nGPU-b, 101, 24\nGPU-a, 303, [N/A]\nGPU-x, 101, 7\nno such line\n"
    assert parse_gpu_memory(text, [101], CARDS) == {"gpu0": 500 * MIB, "gpu1": 24 * MIB}
    assert parse_gpu_memory(text, [101, 202], CARDS) == {"gpu0": 500 * MIB, "gpu1": 64 * MIB}
    # A container has other pids: the memory is then unknown, not 0.
    assert parse_gpu_memory(text, [9], CARDS) is None
    assert parse_gpu_memory("", [101], CARDS) is None


def test_cards_are_identified_by_uuid_and_budgeted_by_their_free_memory() -> None:
    (found,) = parse_gpus("RTX 4090, 24564, 24000, 8.9, 570.1, GPU-a\n")
    assert (found.uuid, found.driver) == ("GPU-a", "570.1")
    assert card_budgets(CARDS) == {"gpu0": int(24 * 2**30 * 0.8), "gpu1": 2**30}


def test_without_nvidia_smi_gpu_memory_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert gpu_memory([1], CARDS) is None


def test_a_second_engine_needs_free_memory_on_each_device() -> None:
    held = {"memory": 100 * MIB, "gpu0": 500 * MIB}
    assert lack(held, {"memory": 200 * MIB, "gpu0": 500 * MIB, "gpu1": 0}) == ""
    assert lack(held, {"memory": 200 * MIB}) == ""  # an unknown device is no obstacle
    assert lack(held, {"memory": 99 * MIB}) == "memory has 99 MiB free, too little for another 100 MiB"
    assert "gpu0 has 10 MiB free" in lack(held, {"memory": 200 * MIB, "gpu0": 10 * MIB})


def test_a_process_uses_a_gpu_if_it_has_its_device_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pid, opened in (("7", "/dev/null"), ("8", "/dev/nvidia0"), ("9", "/dev/dxg")):
        (tmp_path / pid / "fd").mkdir(parents=True)
        (tmp_path / pid / "fd" / "3").symlink_to(opened)
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    assert [processes.uses_gpu(pid) for pid in (7, 8, 9, 10)] == [False, True, True, False]
