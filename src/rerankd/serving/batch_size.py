"""(pure) The batch size: the maximum number of tokens and inputs of one engine call."""

from __future__ import annotations

from typing import NamedTuple

from rerankd.backends.base import BatchPolicy

# On a slow engine, a batch takes at most this long unless a single input takes longer: other requests wait
# for the batch to end, and a request with a time budget loses the inputs that are not scored in time.
_LONGEST_CALL_S = 1.0


class BatchLimits(NamedTuple):
    """The limits of one batch."""

    tokens: int
    inputs: int


class BatchSize:
    """Computes the limits of the next batch: the backend's policy, adapted to the measured throughput of an
    engine, and halved each time an engine has run out of memory."""

    def __init__(self) -> None:
        self._halvings = 0

    def limits(self, policy: BatchPolicy, tokens_per_s: float | None) -> BatchLimits:
        """The current limits. `tokens_per_s` is the throughput of one engine; None until measured."""
        tokens = policy.tokens
        if tokens_per_s is not None:
            tokens = max(tokens, min(policy.most_tokens, int(tokens_per_s * policy.call_s)))
            tokens = min(tokens, int(tokens_per_s * _LONGEST_CALL_S))
        return BatchLimits(max(tokens >> self._halvings, 1), max(policy.inputs >> self._halvings, 1))

    def halve(self) -> None:
        """Halve the batch size, because an engine has run out of memory."""
        self._halvings += 1

    def reset(self) -> None:
        """Return to the batch size of the backend's policy."""
        self._halvings = 0
