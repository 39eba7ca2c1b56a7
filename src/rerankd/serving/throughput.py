"""(pure) How fast an engine is, and when it will have done what it has.

The rate is what was scored while the engine had work, over the last minute or so of such time.
"""

from __future__ import annotations

_MEMORY_S = 60.0
# Before anything was measured: slow enough not to promise too much.
_FIRST_TOKENS = 1000.0
# How long before the engine is expected to be free its next batch is there: a share of the time that it works
# on what it has, which is how far that may be wrong, and the seconds that the service may be busy elsewhere.
# More gains nothing: 133, 133, 135 and 134 documents a second of a tiny causal model, 137, 136, 138 and 137
# of the built-in one, with (0.1, 0.01), (0.1, 0.02), (0.25, 0.02) and always (two cores).
_AHEAD = 0.1
_AHEAD_S = 0.01
# A batch that takes longer than it should by more than this was waiting for an engine that started.
_MOST_SLOWER = 10
_ROUNDING = 1e-6


class Throughput:
    """Of all engines together. `now` is in seconds of any clock."""

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
        """Tokens a second; a careful guess until they are measured."""
        return self._tokens / self._busy_s if self.is_measured else _FIRST_TOKENS

    @property
    def inputs_per_s(self) -> float:
        """Inputs a second; 0 until they are measured."""
        return self._inputs / self._busy_s if self.is_measured else 0.0

    def batch_begun(self, now: float, tokens: int) -> None:
        """A batch of `tokens` tokens has begun."""
        if not self._batches:
            self._busy_since = self._free_at = now
        self._batches += 1
        self._at_engine += tokens
        self._free_at = max(self._free_at, now) + tokens / self.tokens_per_s

    def batch_ended(self, now: float, tokens: int, inputs: int, *, is_scored: bool) -> None:
        """A batch of `tokens` tokens and `inputs` inputs has ended, with values or without."""
        seconds = min(now - self._busy_since, _MOST_SLOWER * tokens / self.tokens_per_s)
        # What is older than the memory fades.
        keep = max(1 - seconds / _MEMORY_S, 0.0)
        self._tokens = self._tokens * keep + tokens * is_scored
        self._inputs = self._inputs * keep + inputs * is_scored
        self._busy_s = self._busy_s * keep + seconds
        self._busy_since = now
        self._batches -= 1
        self._at_engine -= tokens
        self._free_at = now + self._at_engine / self.tokens_per_s

    def spare_capacity(self, now: float, until: float) -> int:
        """Tokens that can be scored by then, after all that the engines have."""
        return self.capacity(max(self._free_at, now), until)

    def capacity(self, since: float, until: float) -> int:
        """Tokens that can be scored in that time, by engines that have nothing else."""
        return int((until - since) * self.tokens_per_s + _ROUNDING)

    def next_batch_at(self) -> float:
        """When the engine should have its next batch. Sooner would be too soon: a small request that comes
        then has to wait for that batch."""
        work_s = self._at_engine / self.tokens_per_s
        return self._free_at - max(work_s * _AHEAD, _AHEAD_S)
