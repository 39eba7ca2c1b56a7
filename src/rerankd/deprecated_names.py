"""The names of 0.1 that are others now. Each works for one release, and the log names those it met.

The list is closed: what is not here has the name it had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Renamed:
    """`of` is where the name is: of a setting its section, of a value its setting, of a JSON field the path
    or the command that answers it, beside the new name and with a value of 0.1."""

    kind: Literal["setting", "value", "JSON field", "metric", "option"]
    of: str
    old: str
    new: str

    def __str__(self) -> str:
        if self.kind == "value":
            return f'{self.of} = "{self.old}" is "{self.new}" now'
        return f"{self.old} is {self.new} now"


RENAMED = (
    Renamed("setting", "scoring", "way", "method"),
    Renamed("setting", "scoring", "window", "max_length"),
    Renamed("setting", "scoring", "transform", "normalization"),
    Renamed("value", "method", "head", "cross_encoder"),
    Renamed("value", "method", "judge", "causal_lm"),
    Renamed("value", "method", "cosine", "embedding"),
    Renamed("JSON field", "/v1/status", "way", "method"),
    Renamed("JSON field", "/v1/status", "window", "max_length"),
    Renamed("JSON field", "/v1/status", "transform", "normalization"),
    Renamed("JSON field", "/v1/rerank", "meta.transform", "meta.normalization"),
    Renamed("JSON field", "rerankd list", "scored_as", "method"),
    Renamed("JSON field", "rerankd list", "window", "max_length"),
    Renamed("JSON field", "rerankd inspect", "scoring", "recipe"),
    Renamed("JSON field", "rerankd inspect", "scoring.way", "recipe.method"),
    Renamed("JSON field", "rerankd inspect", "scoring.window", "recipe.max_length"),
    Renamed("JSON field", "rerankd inspect", "scoring.transform", "recipe.normalization"),
    Renamed("JSON field", "rerankd inspect", "scoring.reason", "recipe.explanation"),
    Renamed("JSON field", "rerankd inspect", "reason", "refusal.reason"),
    Renamed("JSON field", "rerankd inspect", "next_step", "refusal.next_step"),
    Renamed("JSON field", "rerankd inspect", "settings", "refusal.settings"),
)


def old_value(of: str, new: str) -> str:
    """What 0.1 called a value, which a JSON field with a name of 0.1 still has."""
    return next(one.old for one in RENAMED if (one.kind, one.of, one.new) == ("value", of, new))


def met(section: str, values: Mapping[str, Any]) -> Iterator[Renamed]:
    """The old names and values among those of a section."""
    names = {one.old: one for one in RENAMED if (one.kind, one.of) == ("setting", section)}
    for name, value in values.items():
        if name in names:
            yield names[name]
        setting = names[name].new if name in names else name
        yield from (one for one in RENAMED if (one.kind, one.of, one.old) == ("value", setting, value))


def renewed(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a section under their names of today. Raises ValueError where one has both names."""
    found = dict(values)
    for one in met(section, values):
        if one.kind == "value":
            found[one.of] = one.new
        elif one.new in values:
            raise ValueError(f"{one.old} is the old name of {one.new}, which is set too; remove {one.old}")
        else:
            found[one.new] = found.pop(one.old)
    return found
