"""What all engines may hold together, by device."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from rerankd import machine
from rerankd.backends.llama import installed
from rerankd.config import Settings
from rerankd.errors import EngineError
from rerankd.memory import MEMORY, Bytes, card

# What is left of the machine's memory is for the system, this service, and the caller's own programs.
_SHARE_FOR_ENGINES = 0.8


def budgets(settings: Settings) -> Bytes:
    """What all engines may hold together, by device: what is set, wherever they hold it; else four fifths of
    the machine's memory and of each card, or what others leave of a card now."""
    if settings.memory_budget is not None:
        return {MEMORY: settings.memory_budget}
    total = machine.read().memory_bytes
    found = {} if total is None else {MEMORY: int(total * _SHARE_FOR_ENGINES)}
    with contextlib.suppress(EngineError):  # each model that needs llama.cpp says what is wrong with it
        # Where nothing is known of a GPU, what can be measured is the machine's own memory.
        found |= card_budgets(installed.chosen(settings).gpus or ())
    return found


def card_budgets(gpus: Sequence[machine.Gpu]) -> Bytes:
    """(pure) What engines may hold of each card."""
    return {
        card(at): min(int(gpu.total_bytes * _SHARE_FOR_ENGINES), gpu.free_bytes)
        for at, gpu in enumerate(gpus)
        if gpu.total_bytes
    }
