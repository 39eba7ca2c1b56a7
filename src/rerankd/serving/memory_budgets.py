"""The memory budget of all engines, by device, and the memory that one model uses of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rerankd import machine, processes
from rerankd.config import Settings
from rerankd.memory import MEMORY, Bytes, Need, card
from rerankd.serving import backend_offers
from rerankd.serving.prepare_model import Model

# The rest of the memory is for the system, this service, and the user's own programs.
_SHARE_FOR_ENGINES = 0.8


def budgets(settings: Settings) -> Bytes:
    """The memory budget of all engines, by device: the setting, as one budget for any device; else 80 % of
    the machine's memory and of each GPU, but at most the GPU's memory that is free now."""
    if settings.memory_budget is not None:
        return {MEMORY: settings.memory_budget}
    total = machine.read().memory_bytes
    found = {} if total is None else {MEMORY: int(total * _SHARE_FOR_ENGINES)}
    # If the GPUs can't be measured, only the machine's memory has a budget.
    return {**found, **card_budgets(backend_offers.usable_cards(settings) or ())}


def card_budgets(gpus: Sequence[machine.Gpu]) -> Bytes:
    """(pure) The budget of each GPU."""
    return {
        card(at): min(int(gpu.total_bytes * _SHARE_FOR_ENGINES), gpu.free_bytes)
        for at, gpu in enumerate(gpus)
        if gpu.total_bytes
    }


def needs(model: Model, budgets: Bytes) -> tuple[Need, Need]:
    """The memory that a model needs in any case, and an estimate of its maximum."""
    on_cards = bool(budgets.keys() - {MEMORY}) and not model.engine.on_cpu
    sizes = (model.metadata.size_bytes, model.engine.memory_bytes)
    least, guess = (Need(0, size_bytes) if on_cards else Need(size_bytes) for size_bytes in sizes)
    return least, guess


class HeldMemory:
    """Measures the memory that a model's engines hold, by process. GPU memory is measured only once, because
    it takes a while."""

    def __init__(self) -> None:
        self._on_cards: Bytes | None = None

    async def measure_gpus(self, pids: Sequence[int]) -> None:
        """Measure the GPU memory of these processes now."""
        self._on_cards = await asyncio.to_thread(lambda: machine.gpu_memory(pids, machine.gpus()))

    def by_device(self, pids: Sequence[int]) -> Bytes | None:
        """The memory in bytes by device; for GPUs, as it was measured after loading. None if `pids` is empty
        or their memory can't be measured."""
        if pids and self._on_cards is not None:
            # The file is mapped into memory, and the part that is on a GPU need not stay there.
            private = [processes.private_bytes(pid) or 0 for pid in pids]
            return {MEMORY: sum(private), **self._on_cards}
        held = [size for pid in pids if (size := processes.memory_bytes(pid)) is not None]
        return {MEMORY: sum(held)} if held else None
