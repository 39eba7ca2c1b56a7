"""(pure) Memory per device: the need of a model, the free memory, and the placement on devices.

A device is "memory" (main memory) or a GPU: "gpu0", "gpu1" … in the order of `machine.gpus`. Each device is
accounted for separately.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

MEMORY = "memory"
# The rest of a device's memory is for the system, this service, and the user's own programs.
_SHARE_FOR_ENGINES = 0.8

Bytes = Mapping[str, int]
"""Bytes by device."""


def card(at: int) -> str:
    """Return the device name of a GPU by its index."""
    return f"gpu{at}"


def for_engines(total_bytes: int, free_bytes: int | None = None) -> int:
    """Return the part of a device's memory that engines may use: 80 %, but at most what is free."""
    share = int(total_bytes * _SHARE_FOR_ENGINES)
    return share if free_bytes is None else min(share, free_bytes)


@dataclass(frozen=True, slots=True)
class Need:
    """The memory a model needs, in bytes: main memory, and memory on GPUs. With `parts` 0 it may be spread
    over several GPUs; otherwise it is that many equal parts, and each must be on a single GPU. `only` names
    the GPUs that may hold it; () means any."""

    memory: int
    cards: int = 0
    parts: int = 0
    only: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return self.memory + self.cards

    def within(self, budgets: Bytes) -> Need:
        """Limit the need to `budgets`: what does not fit on the GPUs stays in main memory, unless it is in
        parts."""
        cards = self.usable(budgets)
        if self.parts:
            most = _largest_part(cards.values(), self.parts)
            return replace(self, cards=min(self.cards, most * self.parts) if cards else self.cards)
        on_cards = min(self.cards, int(sum(cards.values())))
        memory = self.memory + self.cards - on_cards
        return replace(self, memory=min(memory, budgets.get(MEMORY, memory)), cards=on_cards)

    def measured(self, placed: Bytes, held: Bytes) -> tuple[Need, Bytes]:
        """Return this need as it was measured, and what the model holds by device. Where the memory on GPUs
        could not be measured, that of a model in parts is still as it was `placed`."""
        if self.parts and held.keys() <= {MEMORY}:
            held = {**placed, **held}
        cards = sum(size for device, size in held.items() if device != MEMORY)
        return replace(self, memory=held.get(MEMORY, 0), cards=cards), held

    def usable(self, free: Mapping[str, float]) -> dict[str, float]:
        """The GPUs that may hold it, and their free memory."""
        return {
            device: max(size, 0.0)
            for device, size in free.items()
            if device != MEMORY and device in (self.only or free)
        }


def main_bytes(sizes: Bytes) -> int | None:
    """Return the total size on the GPUs, or if it is 0, the size in main memory, or None."""
    return sum(size for device, size in sizes.items() if device != MEMORY) or sizes.get(MEMORY)


def lacking(need: Need, free: Mapping[str, float]) -> frozenset[str]:
    """Return the devices with too little free memory for `need`; empty if it fits. A device that `free` does
    not contain has no limit."""
    short = {MEMORY} if need.memory > free.get(MEMORY, math.inf) else set()
    cards = need.usable(free)
    if need.cards and cards:
        most = _largest_part(cards.values(), need.parts) * need.parts if need.parts else sum(cards.values())
        if most < need.cards:
            short |= cards.keys()
    return frozenset(short)


def place(need: Need, free: Mapping[str, float]) -> dict[str, int]:
    """Place a need that fits: on the GPU with the most free memory, or if that is too small, over all GPUs in
    proportion to their free memory. Each part is placed as a model of its own."""
    held = {MEMORY: need.memory} if need.memory else {}
    cards = need.usable(free)
    if not need.cards or not cards:
        return held
    for _ in range(need.parts):
        best = max(cards, key=lambda device: cards[device])
        cards[best] -= need.cards / need.parts
        held[best] = held.get(best, 0) + need.cards // need.parts
    if need.parts:
        return held
    best = max(cards, key=lambda device: cards[device])
    if cards[best] >= need.cards:
        return {**held, best: need.cards}
    whole = sum(cards.values())
    return held | {device: int(need.cards * size / whole) for device, size in cards.items() if size}


def seats(need: Need, held: Bytes) -> tuple[str, ...]:
    """Return the GPUs of a placed need; for one in parts, the GPU of each part."""
    counts = {device: size * need.parts // need.cards for device, size in held.items() if device != MEMORY}
    return tuple(device for device, count in counts.items() for _ in range(max(count, 1)))


def _largest_part(cards: Iterable[float], parts: int) -> int:
    """Return the largest size of which `parts` pieces fit, each on a single GPU."""
    sizes = [int(size) for size in cards]
    # A piece that can't be larger fills a GPU together with others of its size.
    shares = (size // count for size in sizes for count in range(1, parts + 1))
    fitting = (share for share in shares if share and sum(size // share for size in sizes) >= parts)
    return max(fitting, default=0)


def left(budgets: Bytes, held: Iterable[Bytes]) -> dict[str, float]:
    """Return the free memory: `budgets` less the memory that is in use (`held`)."""
    free: dict[str, float] = dict(budgets)
    for one in held:
        for device, size in one.items():
            if device in free:
                free[device] -= size
    return free
