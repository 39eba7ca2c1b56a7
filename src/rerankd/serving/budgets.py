"""What all engines may hold together, by device, and what those of one model take of it."""

from __future__ import annotations

from collections.abc import Sequence

from rerankd import machine
from rerankd.config import Settings
from rerankd.memory import MEMORY, Bytes, Need, card
from rerankd.serving import offers
from rerankd.serving.loader import Acts
from rerankd.serving.prepare import Model
from rerankd.serving.served_model import ServedModel

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


def needs(model: Model, budgets: Bytes) -> tuple[Need, Need]:
    """What a model takes in any case, and what it may take."""
    on_cards = _has_cards(budgets) and not model.engine.on_cpu
    sizes = (model.facts.size_bytes, model.engine.memory_bytes)
    least, guess = (Need(0, size_bytes) if on_cards else Need(size_bytes) for size_bytes in sizes)
    return least, guess


def acts(served: ServedModel, budgets: Bytes) -> Acts:
    """How the loader has a model loaded, unloaded and measured."""

    def held() -> Bytes | None:
        if _has_cards(budgets):
            return served.held()
        size_bytes = served.memory_bytes()  # wherever that is: there is one budget for all
        return None if size_bytes is None else {MEMORY: size_bytes}

    async def load(cards: tuple[str, ...]) -> Bytes | None:
        await served.load(cards)
        return held()

    return Acts(load, served.unload, held)


def _has_cards(budgets: Bytes) -> bool:
    return budgets.keys() - {MEMORY} != set()
