"""(pure) Measure the throughput of engines (tokens/s), and estimate when they finish their work.

The throughput is measured only while an engine has work, over about the last minute of such time.
"""

from __future__ import annotations

_MEMORY_S = 60.0
# Used until the first measurement; low, so that estimates are pessimistic.
_FIRST_TOKENS = 1000.0
# An engine gets its next batch this long before it is expected to be free: a fraction of its remaining work,
# because the estimate may be wrong by that much, but at least the policy's `ahead_s`. Larger values gain
# nothing on a CPU. For (0.1, 0.01), (0.1, 0.02), (0.25, 0.02) and always, on two cores: 133, 133, 135 and 134
# documents/s with a tiny causal model; 137, 136, 138 and 137 with the built-in model.
_AHEAD = 0.1
# A batch that takes more than this many times as long as expected was waiting for an engine to start.
_MOST_SLOWER = 10
_ROUNDING = 1e-6


class Throughput:
    """The throughput of all engines together. `now` is in seconds of any one clock."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._inputs = 0.0
        self._busy_s = 0.0
        self._busy_since = 0.0
        self._batches = 0
        self._at_engine = 0
        self._free_at = 0.0

    @property
    def is_measured(self) -> bool:
        return self._tokens > 0 and self._busy_s > 0

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second; a low estimate until measured."""
        return self._tokens / self._busy_s if self.is_measured else _FIRST_TOKENS

    @property
    def inputs_per_s(self) -> float:
        """Inputs per second; 0 until measured."""
        return self._inputs / self._busy_s if self.is_measured else 0.0

    def batch_begun(self, now: float, tokens: int) -> None:
        """A batch of `tokens` tokens has started."""
        if not self._batches:
            self._busy_since = self._free_at = now
        self._batches += 1
        self._at_engine += tokens
        self._free_at = max(self._free_at, now) + tokens / self.tokens_per_s

    def batch_ended(self, now: float, tokens: int, inputs: int, *, is_scored: bool) -> None:
        """A batch of `tokens` tokens and `inputs` inputs has ended, with scores or without."""
        seconds = min(now - self._busy_since, _MOST_SLOWER * tokens / self.tokens_per_s)
        # Measurements older than _MEMORY_S fade out.
        keep = max(1 - seconds / _MEMORY_S, 0.0)
        self._tokens = self._tokens * keep + tokens * is_scored
        self._inputs = self._inputs * keep + inputs * is_scored
        self._busy_s = self._busy_s * keep + seconds
        self._busy_since = now
        self._batches -= 1
        self._at_engine -= tokens
        self._free_at = now + self._at_engine / self.tokens_per_s

    def spare_capacity(self, now: float, until: float) -> int:
        """Tokens that can be scored by `until`, after the work that the engines already have."""
        return self.capacity(max(self._free_at, now), until)

    def capacity(self, since: float, until: float) -> int:
        """Tokens that idle engines can score from `since` to `until`."""
        return int((until - since) * self.tokens_per_s + _ROUNDING)

    def next_batch_at(self, ahead_s: float) -> float:
        """When the engine should get its next batch, at least `ahead_s` before it is free. An earlier batch
        would delay a small request that arrives before the engine is free."""
        work_s = self._at_engine / self.tokens_per_s
        return self._free_at - max(work_s * _AHEAD, ahead_s)
