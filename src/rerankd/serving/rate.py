"""(pure) How fast an engine is: what it scored while it had work, over the last minute or so of such time."""

from __future__ import annotations

_MEMORY_S = 60.0
# Before anything was measured: slow enough not to promise too much.
_FIRST_TOKENS = 1000.0


class Rate:
    """Tokens and inputs a second. `now` is in seconds of any clock."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._inputs = 0.0
        self._busy_s = 0.0
        self._busy_since: float | None = None

    @property
    def is_measured(self) -> bool:
        return self._tokens > 0 and self._busy_s > 0

    @property
    def tokens(self) -> float:
        """Tokens a second; a careful guess until they are measured."""
        return self._tokens / self._busy_s if self.is_measured else _FIRST_TOKENS

    @property
    def inputs(self) -> float:
        """Inputs a second; 0 until they are measured."""
        return self._inputs / self._busy_s if self.is_measured else 0.0

    def begun(self, now: float) -> None:
        """The engine has work."""
        if self._busy_since is None:
            self._busy_since = now

    def ended(self, now: float, tokens: int, inputs: int, *, has_more: bool) -> None:
        """The engine scored so much, and has more work or none."""
        seconds = now - (now if self._busy_since is None else self._busy_since)
        # What is older than the memory fades.
        keep = max(1 - seconds / _MEMORY_S, 0.0)
        self._tokens = self._tokens * keep + tokens
        self._inputs = self._inputs * keep + inputs
        self._busy_s = self._busy_s * keep + seconds
        self._busy_since = now if has_more else None
