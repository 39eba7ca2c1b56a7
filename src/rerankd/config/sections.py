"""(pure) Put a section into the text of a settings file, and leave every other line as it is.

A section is a table with a header of its own, such as [models.NAME.calibration], which TOML allows at the
end of a file wherever its model's section is. So nothing but the section's own lines is ever rewritten, and
the user's comments and order stay.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from rerankd.errors import ConfigError

_NOT_ADDED = (
    "a model that is not a section of its own, such as models = {…}, must be made one first; the new section "
    "can't be added without changing other"
)


def with_section(text: str, path: tuple[str, ...], lines: str, missing: Mapping[str, str]) -> str:
    """The text of a settings file with the table at `path`, which `lines` define, in place of its former
    one. `missing` are lines to put before it, by the name of the table below `path[0]` that they begin, if
    the file has no such table.

    Raises ConfigError if the result would not be what was meant, as in a file that defines the model in one
    line (models = {…}).
    """
    try:
        values = tomllib.loads(text)
        kept = "".join(_without(text, path))
        there = tomllib.loads(kept).get(path[0], {})
        first = [more for name, more in missing.items() if name not in there]
        added = "\n\n".join((*first, lines)) + "\n"
        newline = "\r\n" if "\r\n" in text else "\n"
        gap = newline * (2 - kept.endswith("\n")) if kept.strip() and not kept.endswith(2 * newline) else ""
        changed = kept + gap + added.replace("\n", newline)
        found = tomllib.loads(changed)
    except (tomllib.TOMLDecodeError, AttributeError, TypeError) as error:
        raise ConfigError(f"{_NOT_ADDED} lines ({error})") from None
    if found != _merged(_removed(values, path), tomllib.loads(added)):
        raise ConfigError(f"{_NOT_ADDED} values")
    return changed


def _without(text: str, path: tuple[str, ...]) -> list[str]:
    """The lines of the text without those of a table, from its header to its last line that is not a
    comment."""
    kept: list[str] = []
    comments: list[str] = []
    is_inside = False
    for line in text.splitlines(keepends=True):
        if (header := _header(line)) is not None:
            is_inside = header == path
        if is_inside:
            comments = [*comments, line] if not line.strip() or line.lstrip().startswith("#") else []
        else:
            kept += [*comments, line]
            comments = []
    return kept + comments


def _header(line: str) -> tuple[str, ...] | None:
    """The keys of the table that begins at this line; None if it is no header, as "[0.7, 0.1]" in a list."""
    if not line.lstrip().startswith("["):
        return None
    try:
        values: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return None
    keys = []
    while isinstance(values, dict) and values:
        ((key, values),) = values.items()
        keys.append(key)
    return tuple(keys)


def _merged(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: value for key, value in values.items() if key not in more}
    for key, value in more.items():
        old = values.get(key)
        both[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def _removed(values: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    first, *rest = path
    kept = {key: value for key, value in values.items() if key != first}
    if rest and isinstance(inner := values.get(first), dict):
        kept[first] = _removed(inner, tuple(rest))
    return kept
