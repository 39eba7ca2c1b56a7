"""(pure) Memory by device: what a model needs, what is free, and where it goes.

A device is "memory" (the machine's own) or a card: "gpu0", "gpu1" … in the order of `machine.gpus`. What a
card holds says nothing of the machine's memory, nor of another card's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MEMORY = "memory"

Bytes = Mapping[str, int]
"""Bytes by device."""


def card(at: int) -> str:
    """The device that the card of this number is."""
    return f"gpu{at}"


@dataclass(frozen=True, slots=True)
class Need:
    """What a model takes: bytes of the machine's memory, and bytes that may lie on any card or be spread."""

    memory: int
    cards: int = 0

    @classmethod
    def of(cls, held: Bytes) -> Need:
        """The need of a model that was seen to hold this."""
        return cls(held.get(MEMORY, 0), sum(size for device, size in held.items() if device != MEMORY))

    @property
    def total(self) -> int:
        return self.memory + self.cards

    def within(self, budgets: Bytes) -> Need:
        """The need of an engine that is told to make do with `budgets`: what the cards have no room for stays
        in the machine's memory."""
        on_cards = min(self.cards, sum(size for device, size in budgets.items() if device != MEMORY))
        memory = self.memory + self.cards - on_cards
        return Need(min(memory, budgets.get(MEMORY, memory)), on_cards)


def main_bytes(sizes: Bytes) -> int | None:
    """What counts of sizes by device: those of the cards, else of the machine's memory; None without any."""
    return sum(size for device, size in sizes.items() if device != MEMORY) or sizes.get(MEMORY)


def lacking(need: Need, free: Mapping[str, float]) -> frozenset[str]:
    """The devices that have too little free for `need`; none where it fits. A device that `free` does not
    name has no bound."""
    short = {MEMORY} if need.memory > free.get(MEMORY, math.inf) else set()
    cards = {device: size for device, size in free.items() if device != MEMORY}
    if need.cards and cards and sum(max(size, 0) for size in cards.values()) < need.cards:
        short |= cards.keys()
    return frozenset(short)


def place(need: Need, free: Mapping[str, float]) -> dict[str, int]:
    """Where a need goes that fits: on the card with the most free memory, else spread over all cards in
    proportion to what is free there."""
    held = {MEMORY: need.memory} if need.memory else {}
    cards = {device: max(size, 0.0) for device, size in free.items() if device != MEMORY}
    if not need.cards or not cards:
        return held
    best = max(cards, key=lambda device: cards[device])
    if cards[best] >= need.cards:
        return {**held, best: need.cards}
    whole = sum(cards.values())
    return held | {device: int(need.cards * size / whole) for device, size in cards.items() if size}


def left(budgets: Bytes, held: Iterable[Bytes]) -> dict[str, float]:
    """What of `budgets` is free beside what is held."""
    free: dict[str, float] = dict(budgets)
    for one in held:
        for device, size in one.items():
            if device in free:
                free[device] -= size
    return free
