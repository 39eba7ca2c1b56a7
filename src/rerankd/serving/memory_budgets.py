"""What all engines may hold together, by device, and what those of one model take of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rerankd import machine, processes
from rerankd.config import Settings
from rerankd.memory import MEMORY, Bytes, Need, card
from rerankd.serving import backend_offers
from rerankd.serving.prepare_model import Model

# What is left of the machine's memory is for the system, this service, and the caller's own programs.
_SHARE_FOR_ENGINES = 0.8


def budgets(settings: Settings) -> Bytes:
    """What all engines may hold together, by device: what is set, wherever they hold it; else four fifths of
    the machine's memory and of each card, or what others leave of a card now."""
    if settings.memory_budget is not None:
        return {MEMORY: settings.memory_budget}
    total = machine.read().memory_bytes
    found = {} if total is None else {MEMORY: int(total * _SHARE_FOR_ENGINES)}
    # Where nothing is known of a GPU, what can be measured is the machine's own memory.
    return {**found, **card_budgets(backend_offers.usable_cards(settings) or ())}


def card_budgets(gpus: Sequence[machine.Gpu]) -> Bytes:
    """(pure) What engines may hold of each card."""
    return {
        card(at): min(int(gpu.total_bytes * _SHARE_FOR_ENGINES), gpu.free_bytes)
        for at, gpu in enumerate(gpus)
        if gpu.total_bytes
    }


def needs(model: Model, budgets: Bytes) -> tuple[Need, Need]:
    """What a model takes in any case, and what it may take."""
    on_cards = bool(budgets.keys() - {MEMORY}) and not model.engine.on_cpu
    sizes = (model.metadata.size_bytes, model.engine.memory_bytes)
    least, guess = (Need(0, size_bytes) if on_cards else Need(size_bytes) for size_bytes in sizes)
    return least, guess


class HeldMemory:
    """What the engines of a model hold, measured by process. What they hold of cards is asked once, since
    asking takes a while."""

    def __init__(self) -> None:
        self._on_cards: Bytes | None = None

    async def look_at_cards(self, pids: Sequence[int]) -> None:
        """Ask what these processes hold of the cards now."""
        self._on_cards = await asyncio.to_thread(lambda: machine.gpu_memory(pids, machine.gpus()))

    def by_device(self, pids: Sequence[int]) -> Bytes | None:
        """Bytes by device; of cards, as far as it is seen that they use one, what they held when they were
        loaded. None where there are no processes, or it can't be told."""
        if pids and self._on_cards is not None:
            # The file is mapped, and what of it is on a card need not stay in memory.
            private = [processes.private_bytes(pid) or 0 for pid in pids]
            return {MEMORY: sum(private), **self._on_cards}
        held = [size for pid in pids if (size := processes.memory_bytes(pid)) is not None]
        return {MEMORY: sum(held)} if held else None
