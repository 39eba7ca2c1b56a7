"""(pure) Which cards run a model: those whose memory holds its weights and has room for batches.

Each replica is on a single card. The memory of several cards is never added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerankd.backends.torch import budget, devices
from rerankd.backends.torch.devices import Arithmetic, Device, Precision

if TYPE_CHECKING:
    from rerankd.formats.metadata import ModelMetadata

_GIB = 2**30
# The process itself, with PyTorch: 330 MiB on a CPU (measured); 600 MiB with CUDA's context.
PROCESS_BYTES = {True: 330 * 2**20, False: 600 * 2**20}
# A pass of fewer tokens leaves a card idle most of the time.
_TOKENS = 8192
# The inner width of most models' feed-forward network, in widths of their states; files do not state it.
_INNER = 4


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model runs. `cards` are the CUDA cards that a replica may be placed on (see memory.card), the
    best first; () on other devices."""

    device: Device
    arithmetic: Arithmetic
    cards: tuple[str, ...] = ()


def card_bytes(metadata: ModelMetadata, precision: Precision) -> int:
    """The memory of a card that one replica takes: weights, process, kept prefixes, room for batches."""
    a_number = devices.bytes_a_number(precision)
    width = metadata.embedding_length
    batches = budget.free_for(_TOKENS, budget.bytes_a_token(width, _INNER * width, a_number))
    return metadata.parameters * a_number + PROCESS_BYTES[False] + budget.PREFIX_BYTES + batches


def place(
    candidates: Sequence[Device], metadata: ModelMetadata, wanted: str, replicas: int
) -> Placement | str:
    """Place the replicas of a model on these devices, which are of one kind; `wanted` is the setting
    `precision`. Returns why there is not enough memory, as a clause, if that is so.

    The card with the most memory comes first, one that computes in bf16 before others. Replicas share their
    requests, so other cards are used only if they compute in the same precision.
    """
    sizes = {one: card_bytes(metadata, _arithmetic(one, metadata, wanted).precision) for one in candidates}
    seats = {one: replicas if one.room_bytes is None else one.room_bytes // sizes[one] for one in candidates}
    best = max(candidates, key=lambda one: (seats[one] > 0, one.has_bf16, one.room_bytes or 0))
    same = sorted(
        (one for one in candidates if seats[one] and one.has_bf16 == best.has_bf16),
        key=lambda one: -(one.room_bytes or 0),
    )
    arithmetic = _arithmetic(best, metadata, wanted)
    fitting = sum(seats[one] for one in same)
    if fitting >= replicas:
        return Placement(best, arithmetic, tuple(one.card for one in same if one.card))
    why = _lacks(best, sizes[best], metadata, arithmetic.precision)
    return f"only {fitting} of {replicas} replicas fit: {why}" if fitting else why


def _arithmetic(device: Device, metadata: ModelMetadata, wanted: str) -> Arithmetic:
    return devices.arithmetic(device, metadata.architecture, wanted)


def _lacks(device: Device, size: int, metadata: ModelMetadata, precision: Precision) -> str:
    room, weights = device.room_bytes or 0, metadata.parameters * devices.bytes_a_number(precision)
    return (
        f"PyTorch needs {size / _GIB:.1f} GiB of GPU memory for this model in {precision} "
        f"({weights / _GIB:.1f} GiB of weights), and {device.title} ({device.name}) has "
        f"{room / _GIB:.1f} GiB for engines"
    )
