"""(pure) Which cards run a model: those whose memory holds its weights and has room for batches.

Each replica is on a single card. The memory of several cards is never added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rerankd.backends.torch import budget, devices
from rerankd.backends.torch.devices import Arithmetic, Device

if TYPE_CHECKING:
    from rerankd.backends.options import PrecisionOptions
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


def card_bytes(metadata: ModelMetadata, arithmetic: Arithmetic) -> int:
    """The memory of a card that one replica takes: weights, process, kept prefixes, room for batches."""
    a_number = devices.bytes_a_number(arithmetic.precision)
    width = metadata.embedding_length
    batches = budget.free_for(_TOKENS, budget.bytes_a_token(width, _INNER * width, a_number))
    return weight_bytes(metadata, arithmetic) + PROCESS_BYTES[False] + budget.PREFIX_BYTES + batches


def weight_bytes(metadata: ModelMetadata, arithmetic: Arithmetic) -> int:
    """The memory of the weights. With `eight_bits`, scales add about a thousandth, which is left out."""
    a_number = devices.bytes_a_number(arithmetic.precision)
    in_8_bits = metadata.block_weights if arithmetic.eight_bits else 0
    return (metadata.parameters - in_8_bits) * a_number + in_8_bits


def place(
    candidates: Sequence[Device],
    metadata: ModelMetadata,
    options: PrecisionOptions,
    replicas: int,
    *,
    may_compress: bool = True,
) -> Placement | str:
    """Place the replicas of a model on these devices, which are of one kind. Returns why there is not enough
    memory, as a clause, if that is so. With `may_compress`, weights are kept in 8 bits if the user wants
    that, or if they do not fit in full and the user has not set a precision.
    """
    if may_compress and options.weights == "compressed":
        return _place(candidates, metadata, options.precision, replicas, "set by the user")
    found = _place(candidates, metadata, options.precision, replicas)
    if isinstance(found, Placement) or options.precision != "auto" or not may_compress:
        return found
    smaller = _place(candidates, metadata, options.precision, replicas, "in full they do not fit")
    return smaller if isinstance(smaller, Placement) else found


def _place(
    candidates: Sequence[Device], metadata: ModelMetadata, wanted: str, replicas: int, in_8_bits: str = ""
) -> Placement | str:
    """Place a model whose weights are in full, or in 8 bits for this reason.

    The card with the most memory comes first, one that computes in bf16 before others. Replicas share their
    requests, so other cards are used only if they compute in the same precision.
    """
    kinds = {one: _arithmetic(one, metadata, wanted, in_8_bits) for one in candidates}
    sizes = {one: card_bytes(metadata, kinds[one]) for one in candidates}
    seats = {one: replicas if one.room_bytes is None else one.room_bytes // sizes[one] for one in candidates}
    best = max(candidates, key=lambda one: (seats[one] > 0, one.has_bf16, one.room_bytes or 0))
    same = sorted(
        (one for one in candidates if seats[one] and one.has_bf16 == best.has_bf16),
        key=lambda one: -(one.room_bytes or 0),
    )
    fitting = sum(seats[one] for one in same)
    if fitting >= replicas:
        return Placement(best, kinds[best], tuple(one.card for one in same if one.card))
    why = _lacks(best, sizes[best], metadata, kinds[best])
    return f"only {fitting} of {replicas} replicas fit: {why}" if fitting else why


def _arithmetic(device: Device, metadata: ModelMetadata, wanted: str, in_8_bits: str) -> Arithmetic:
    found = devices.arithmetic(device, metadata.architecture, wanted)
    if not in_8_bits or found.eight_bits:
        return found
    return replace(found, why=f"{found.why}; weights in 8 bits: {in_8_bits}", eight_bits="int8")


def _lacks(device: Device, size: int, metadata: ModelMetadata, arithmetic: Arithmetic) -> str:
    room, weights = device.room_bytes or 0, weight_bytes(metadata, arithmetic)
    return (
        f"PyTorch needs {size / _GIB:.1f} GiB of GPU memory for this model in {arithmetic.name} "
        f"({weights / _GIB:.1f} GiB of weights), and {device.title} ({device.name}) has "
        f"{room / _GIB:.1f} GiB for engines"
    )
