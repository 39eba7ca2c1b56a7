"""The memory budget of all engines, by device, and the memory that one model uses of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rerankd import machine, processes
from rerankd.backends.base import Offer
from rerankd.config import Settings
from rerankd.memory import MEMORY, Bytes, Need, card, for_engines
from rerankd.serving import backend_offers
from rerankd.serving.prepare_model import Model


def budgets(settings: Settings) -> Bytes:
    """The memory budget of all engines, by device: the setting, as one budget for any device; else 80 % of
    the machine's memory and of each GPU, but at most the GPU's memory that is free now."""
    if settings.memory_budget is not None:
        return {MEMORY: settings.memory_budget}
    total = machine.read().memory_bytes
    found = {} if total is None else {MEMORY: for_engines(total)}
    # If the GPUs can't be measured, only the machine's memory has a budget.
    return {**found, **card_budgets(backend_offers.usable_cards(settings) or ())}


def card_budgets(gpus: Sequence[machine.Gpu]) -> Bytes:
    """(pure) The budget of each GPU."""
    return {
        card(at): for_engines(gpu.total_bytes, gpu.free_bytes)
        for at, gpu in enumerate(gpus)
        if gpu.total_bytes
    }


def needs(model: Model, budgets: Bytes) -> tuple[Need, Need]:
    """The memory that a model needs in any case, and an estimate of its maximum."""
    engine = model.engine
    # Weights that the engine converts may take less memory than their file.
    sizes = (min(model.metadata.size_bytes, engine.memory_bytes), engine.memory_bytes)
    if not budgets.keys() - {MEMORY} or engine.on_cpu:
        least, guess = map(Need, sizes)
        return least, guess
    parts = 0 if engine.spans_cards else engine.spec.replicas
    least, guess = (Need(0, size, parts, engine.cards) for size in sizes)
    return least, guess


def of_replica(at: int, engine: Offer, placed: Sequence[str]) -> tuple[str, ...]:
    """(pure) The GPUs that a replica may use, of those on which the model was placed (see memory.seats)."""
    if engine.spans_cards:
        return tuple(dict.fromkeys(placed))
    seats = placed or engine.cards
    return (seats[at % len(seats)],) if seats else ()


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
