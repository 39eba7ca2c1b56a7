"""(pure) Memory per device: the need of a model, the free memory, and the placement on devices.

A device is "memory" (main memory) or a GPU: "gpu0", "gpu1" … in the order of `machine.gpus`. Each device is
accounted for separately.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MEMORY = "memory"

Bytes = Mapping[str, int]
"""Bytes by device."""


def card(at: int) -> str:
    """Return the device name of a GPU by its index."""
    return f"gpu{at}"


@dataclass(frozen=True, slots=True)
class Need:
    """The memory a model needs, in bytes: main memory, and memory on any GPU or spread over several."""

    memory: int
    cards: int = 0

    @classmethod
    def of(cls, held: Bytes) -> Need:
        """Return the need of a model from its measured memory per device."""
        return cls(held.get(MEMORY, 0), sum(size for device, size in held.items() if device != MEMORY))

    @property
    def total(self) -> int:
        return self.memory + self.cards

    def within(self, budgets: Bytes) -> Need:
        """Limit the need to `budgets`: what does not fit on the GPUs stays in main memory."""
        on_cards = min(self.cards, sum(size for device, size in budgets.items() if device != MEMORY))
        memory = self.memory + self.cards - on_cards
        return Need(min(memory, budgets.get(MEMORY, memory)), on_cards)


def main_bytes(sizes: Bytes) -> int | None:
    """Return the total size on the GPUs, or if it is 0, the size in main memory, or None."""
    return sum(size for device, size in sizes.items() if device != MEMORY) or sizes.get(MEMORY)


def lacking(need: Need, free: Mapping[str, float]) -> frozenset[str]:
    """Return the devices with too little free memory for `need`; empty if it fits. A device that `free` does
    not contain has no limit."""
    short = {MEMORY} if need.memory > free.get(MEMORY, math.inf) else set()
    cards = {device: size for device, size in free.items() if device != MEMORY}
    if need.cards and cards and sum(max(size, 0) for size in cards.values()) < need.cards:
        short |= cards.keys()
    return frozenset(short)


def place(need: Need, free: Mapping[str, float]) -> dict[str, int]:
    """Place a need that fits: on the GPU with the most free memory, or if that is too small, over all GPUs in
    proportion to their free memory."""
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
    """Return the free memory: `budgets` less the memory that is in use (`held`)."""
    free: dict[str, float] = dict(budgets)
    for one in held:
        for device, size in one.items():
            if device in free:
                free[device] -= size
    return free
