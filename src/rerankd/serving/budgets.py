"""What all engines may hold together, by device."""

from __future__ import annotations

from collections.abc import Sequence

from rerankd import machine
from rerankd.config import Settings
from rerankd.memory import MEMORY, Bytes, card
from rerankd.serving import offers

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
    return {**found, **card_budgets(offers.cards(settings) or ())}


def card_budgets(gpus: Sequence[machine.Gpu]) -> Bytes:
    """(pure) What engines may hold of each card."""
    return {
        card(at): min(int(gpu.total_bytes * _SHARE_FOR_ENGINES), gpu.free_bytes)
        for at, gpu in enumerate(gpus)
        if gpu.total_bytes
    }
