"""(pure) Form one batch: inputs of the request whose turn it is, and inputs of other requests that fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rerankd.backends.base import BatchPolicy
from rerankd.serving.batch_size import BatchLimits
from rerankd.serving.waiting_inputs import WaitingInputs


class Part(NamedTuple):
    """The part of a batch that one request contributes: the indexes of its inputs, and the tokens that the
    engine computes for them, including padding."""

    request: int
    indexes: Sequence[int]
    tokens: int


Others = Iterator[tuple[int, WaitingInputs]]
"""Requests that may add inputs to the batch of another request, in the order of their turns."""


def form(
    policy: BatchPolicy, limits: BatchLimits, lead: int, waiting: WaitingInputs, others: Others
) -> list[Part]:
    """Take the next batch from the waiting inputs. It holds at least one input of the request `lead`."""
    if waiting.blocks:
        block = waiting.take_block()
        return [Part(lead, block, sum(waiting.lengths[at] for at in block))]
    matching = (
        (request, other)
        for request, other in others
        if not other.blocks and not (policy.one_question and other.question != waiting.question)
    )
    waiting.arrange(policy.pads)
    if policy.pads:
        return _padded(limits, lead, waiting, matching)
    return _packed(limits, lead, waiting, matching)


def _packed(limits: BatchLimits, lead: int, waiting: WaitingInputs, others: Others) -> list[Part]:
    parts = [_packed_part(lead, waiting, max(waiting.packed(*limits), 1))]
    tokens = limits.tokens - parts[0].tokens
    inputs = limits.inputs - len(parts[0].indexes)
    while tokens > 0 and inputs > 0 and (other := next(others, None)):
        other[1].arrange(by_length=False)
        if count := other[1].packed(tokens, inputs):
            parts.append(_packed_part(*other, count))
            tokens -= parts[-1].tokens
            inputs -= count
    return parts


def _packed_part(request: int, waiting: WaitingInputs, count: int) -> Part:
    before = waiting.tokens
    indexes = waiting.take(count)
    return Part(request, indexes, before - waiting.tokens)


def _padded(limits: BatchLimits, lead: int, waiting: WaitingInputs, others: Others) -> list[Part]:
    own, longest = waiting.padded(*limits)
    if own < len(waiting) <= limits.inputs and waiting.tokens <= limits.tokens:
        # The rest of the request fits, but its lengths differ too much to pad. The engine splits them into
        # passes.
        return [_packed_part(lead, waiting, len(waiting))]
    capacity = min(max(limits.tokens // longest, 1), limits.inputs)
    counts = [(lead, waiting, own)]
    total = own
    while total < capacity and (other := next(others, None)):
        other[1].arrange(by_length=True)
        if count := other[1].fitting(longest, capacity - total):
            counts.append((*other, count))
            total += count
    total = whole(total, longest, limits.tokens // 4)
    if total < own:  # in the request's order, the longest input may be left for a later batch
        longest = waiting.padded(limits.tokens, total)[1]
    parts: list[Part] = []
    for request, source, count in counts:
        count = min(count, total)
        indexes = source.take_fitting(longest, count) if parts else source.take(count)
        total -= len(indexes)
        parts.append(Part(request, indexes, len(indexes) * longest))
        if not total:
            break
    return parts


def whole(count: int, longest: int, enough: int) -> int:
    """How many of `count` inputs go into a batch that is padded to `longest`: a power of two if that many
    hold `enough` tokens, because the engine also pads the number of inputs, and a larger batch is not
    faster."""
    fewer = 1 << (count.bit_length() - 1)
    return fewer if fewer * longest >= enough else count
