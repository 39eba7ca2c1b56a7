"""(pure) The size of a batch: how many tokens and inputs one call of an engine may hold."""

from __future__ import annotations

from typing import NamedTuple

from rerankd.backends.base import BatchPolicy

# On a slow engine a batch takes at most this long, unless a single input takes longer: other requests wait
# for the batch to end, and a request with a time budget loses what is not scored when its time is over.
_LONGEST_CALL_S = 1.0


class BatchLimits(NamedTuple):
    """The most that one batch may hold."""

    tokens: int
    inputs: int


class BatchSize:
    """The limits of the next batch: the backend's policy, fitted to the measured speed of an engine, and
    halved each time an engine has run out of memory."""

    def __init__(self) -> None:
        self._halvings = 0

    def limits(self, policy: BatchPolicy, tokens_per_s: float | None) -> BatchLimits:
        """The limits now. `tokens_per_s` is the speed of one engine; None while it is not measured."""
        tokens = policy.tokens
        if tokens_per_s is not None:
            tokens = max(tokens, min(policy.most_tokens, int(tokens_per_s * policy.call_s)))
            tokens = min(tokens, int(tokens_per_s * _LONGEST_CALL_S))
        return BatchLimits(max(tokens >> self._halvings, 1), max(policy.inputs >> self._halvings, 1))

    def halve(self) -> None:
        """An engine has run out of memory: batches hold half as much from now on."""
        self._halvings += 1

    def reset(self) -> None:
        """Batches hold what the policy says again."""
        self._halvings = 0
