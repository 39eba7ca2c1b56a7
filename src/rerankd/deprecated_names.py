"""Deprecated names of release 0.1 and their replacements.

Each old name works for one more release; the log warns about those that the settings still use. The list is
complete: every other name is unchanged since 0.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Renamed:
    """One renamed setting, value or JSON field.

    `of` is its context: the section of a setting, the setting of a value, the path or command whose response
    has a JSON field. A response has both the old field, with the value as in 0.1, and the new one.
    """

    kind: Literal["setting", "value", "JSON field", "metric", "option"]
    of: str
    old: str
    new: str

    def __str__(self) -> str:
        if self.kind == "value":
            return f'{self.of} = "{self.old}" is now "{self.new}"'
        return f"{self.old} is now {self.new}"


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
    Renamed("JSON field", "rerankd doctor", "checks.verdict", "checks.status"),
)


def old_value(of: str, new: str) -> str:
    """The value as named in 0.1, for JSON fields that keep their name of 0.1; a newer value is itself."""
    found = (one.old for one in RENAMED if (one.kind, one.of, one.new) == ("value", of, new))
    return next(found, new)


def deprecated_in(section: str, values: Mapping[str, Any]) -> Iterator[Renamed]:
    """The deprecated names and values that a section of the settings uses."""
    names = {one.old: one for one in RENAMED if (one.kind, one.of) == ("setting", section)}
    for name, value in values.items():
        if name in names:
            yield names[name]
        setting = names[name].new if name in names else name
        yield from (one for one in RENAMED if (one.kind, one.of, one.old) == ("value", setting, value))


def with_current_names(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a section under their current names.

    Raises ValueError if a setting is present under both its old and its new name.
    """
    current = dict(values)
    for one in deprecated_in(section, values):
        if one.kind == "value":
            current[one.of] = one.new
        elif one.new in values:
            raise ValueError(f"{one.old} is the old name of {one.new}, which is set too; remove {one.old}")
        else:
            current[one.new] = current.pop(one.old)
    return current
