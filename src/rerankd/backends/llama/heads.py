"""Which build of llama.cpp computes a file right, where not every one does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rerankd.formats.metadata import ModelMetadata


# The build whose source was read for modern-bert.hidden_activation; older ones may compute GELU whatever it
# says.
_HIDDEN_ACTIVATION_BUILD = 11434


def needed_build(facts: ModelMetadata) -> int:
    """The oldest build that computes the model right, by what its file says; 0 for any."""
    return _HIDDEN_ACTIVATION_BUILD if facts.hidden_activation not in ("", "gelu") else 0
