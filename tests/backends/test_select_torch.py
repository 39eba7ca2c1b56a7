"""What is selected on machines with a GPU: by memory, by what PyTorch is installed, and after crashes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from test_select import CARD, CPU_ONLY, HEAD, LLAMA, OPENVINO, XLMR, chosen, spec

from rerankd.backends import select
from rerankd.backends.base import Backend, Offer, Rank
from rerankd.backends.llama.options import LlamaOptions
from rerankd.backends.openvino.options import OpenVinoOptions
from rerankd.backends.safer_steps import Step, after
from rerankd.backends.select import Selection
from rerankd.backends.torch.backend import TorchBackend
from rerankd.backends.torch.devices import Device, Survey
from rerankd.backends.torch.options import TorchOptions
from rerankd.domain import Refusal
from rerankd.serving import memory_budgets


def test_a_model_that_no_card_holds_runs_on_the_next_engine_with_the_reason() -> None:
    torch, cpu = TorchBackend(), Device("cpu", "a CPU")
    small = Device("cuda:0", "a card", 2**34, True, (9, 0), room_bytes=2**33)
    on_gpu = replace(CPU_ONLY, own=Path("/my/server"), gpus=(CARD,))
    large = spec(HEAD, "bert", ("t5", "default"), parameters=8 * 10**9, embedding_length=4096)
    for seen in ((small, cpu), (small, replace(small, name="cuda:1"), cpu)):  # their memory is not added up
        offered = torch.offer(large, TorchOptions(), Survey("2.14", seen))
        assert isinstance(offered, Offer) and offered.rank == Rank.LAST_ON_CPU and offered.on_cpu
        found = select.choose("auto", [(torch, offered), (LLAMA, LLAMA.offer(large, LlamaOptions(), on_gpu))])
        assert found.offer.backend is LLAMA and not found.offer.on_cpu
        assert "PyTorch needs 17.5 GiB of GPU memory" in found.offer.reason
        assert found.fallback is not None and found.fallback.backend is torch
    refusal = torch.offer(large, TorchOptions(device="cuda:0"), Survey("2.14", (small, cpu)))
    assert isinstance(refusal, Refusal) and "17.5 GiB" in refusal.reason
    named = select.choose(
        "torch", [(torch, torch.offer(large, TorchOptions(), Survey("2.14", (small, cpu))))]
    )
    assert "17.5 GiB" in named.offer.reason


def test_a_pytorch_for_cpus_beside_a_card_is_told() -> None:
    torch, cpu = TorchBackend(), Device("cpu", "a CPU")
    offered = torch.offer(XLMR, TorchOptions(), Survey("2.14+cpu", (cpu,), has_card=True))
    answers: list[tuple[Backend, Offer | Refusal]] = [
        (OPENVINO, OPENVINO.offer(XLMR, OpenVinoOptions(), True)),
        (torch, offered),
        (LLAMA, LLAMA.offer(XLMR, LlamaOptions(), CPU_ONLY)),
    ]
    found = select.choose("auto", answers)
    assert found.offer.backend is OPENVINO and "does not see the NVIDIA GPU" in found.offer.reason
    rows = {row["name"]: row["reason"] for row in select.describe("auto", answers)}
    assert "does not see the NVIDIA GPU" in rows["torch"] and "NVIDIA" not in rows["llama"]


def test_running_out_of_memory_leads_to_an_engine_that_takes_less() -> None:
    torch, llama = (replace(chosen("auto", XLMR).offer, memory_bytes=size) for size in (17, 5))
    for running, other, follows in ((torch, llama, 2), (llama, torch, 0)):
        (last,) = Selection(running, other, {}).last_steps
        assert after((Step("eager", "no compiler"), last), 0, "memory", loaded=False) == follows
    on_gpu = replace(llama, on_cpu=False)
    assert Selection(on_gpu, torch, {}).last_steps[0].saves_memory
    assert Selection(torch, None, {}).last_steps == ()


def test_replicas_of_pytorch_are_one_on_a_card() -> None:
    torch, cpu = TorchBackend(), Device("cpu", "a CPU")
    two = [Device(f"cuda:{at}", "a card", 2**34, True, (9, 0), room_bytes=2**33) for at in range(2)]
    offered = torch.offer(replace(XLMR, replicas=2), TorchOptions(), Survey("2.14", (*two, cpu)))
    assert isinstance(offered, Offer) and offered.cards == ("gpu0", "gpu1") and not offered.spans_cards
    for placed in ((), ("gpu0", "gpu1")):  # without and with budgets of the cards
        used = [memory_budgets.of_replica(at, offered, placed) for at in range(3)]
        assert used == [("gpu0",), ("gpu1",), ("gpu0",)]
    argv = [torch.launch(offered, (), cards, Path("/s")).argv for cards in used]
    assert [list(words)[list(words).index("--device") + 1] for words in argv] == [
        "cuda:0",
        "cuda:1",
        "cuda:0",
    ]
    on_llama = LLAMA.offer(XLMR, LlamaOptions(), CPU_ONLY)
    assert isinstance(on_llama, Offer)
    assert memory_budgets.of_replica(1, on_llama, ("gpu1", "gpu1", "gpu0")) == ("gpu1", "gpu0")
