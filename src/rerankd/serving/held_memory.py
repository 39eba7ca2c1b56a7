"""What the engines of a model hold of the machine's memory and of the cards."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rerankd import machine, processes
from rerankd.memory import MEMORY, Bytes


class HeldMemory:
    """Measured by process. What they hold of cards is asked once, since asking takes a while."""

    def __init__(self) -> None:
        self._on_cards: Bytes | None = None

    async def look_at_cards(self, pids: Sequence[int]) -> None:
        """Ask what these processes hold of the cards now."""
        self._on_cards = await asyncio.to_thread(lambda: machine.gpu_memory(pids, machine.gpus()))

    def total(self, pids: Sequence[int]) -> int | None:
        """Bytes of GPU memory, as far as it is seen that they use one (then what they held when they were
        loaded), else of the machine's. None where there are no processes, or it can't be told."""
        if pids and self._on_cards is not None:
            return sum(self._on_cards.values())
        held = [size for pid in pids if (size := processes.memory_bytes(pid)) is not None]
        return sum(held) if held else None

    def by_device(self, pids: Sequence[int]) -> Bytes | None:
        """The same by device."""
        if not pids or self._on_cards is None:
            size = self.total(pids)
            return None if size is None else {MEMORY: size}
        # The file is mapped, and what of it is on a card need not stay in memory.
        private = [processes.private_bytes(pid) or 0 for pid in pids]
        return {MEMORY: sum(private), **self._on_cards}
