"""What nvidia-smi says of processes, where there is no card to ask."""

from __future__ import annotations

from rerankd.engine.machine import gpu_memory_bytes, parse_gpu_memory


def test_a_process_holds_what_it_holds_on_all_cards() -> None:
    text = "101, 500\n202, 40\n101, 24\n303, [N/A]\nno such line\n"
    assert parse_gpu_memory(text, [101]) == 524 * 2**20
    assert parse_gpu_memory(text, [101, 202]) == 564 * 2**20
    # In a container the numbers are other ones: then it is not known, which is not the same as nothing.
    assert parse_gpu_memory(text, [9]) is None
    assert parse_gpu_memory("", [101]) is None


def test_without_nvidia_smi_nothing_is_known(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("PATH", "")
    assert gpu_memory_bytes([1]) is None
