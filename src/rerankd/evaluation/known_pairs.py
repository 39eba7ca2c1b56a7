"""(pure, except for `read`) Pairs of query and document with known scores: read them, compare with the scores
that a model returns."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerankd import text_files
from rerankd.errors import CollectionError

# Many model cards state values that were computed in bfloat16: a logit from 8 to 16 is a multiple of 0.0625.
# Where the sigmoid is steepest, it turns 0.05 into 0.0125.
RAW_TOLERANCE = 0.05
SCORE_TOLERANCE = 0.0125
_FIELDS = ("query", "document", "raw", "score", "instruction", "tolerance")
_EXAMPLE = '{"query": "…", "document": "…", "raw": 5.41}'


@dataclass(frozen=True, slots=True)
class Pair:
    """A pair and its `expected` score: a raw score if `is_raw`, else a score from 0 to 1. It passes if the
    model's score differs by at most `tolerance`. `instruction` None is the recipe's default."""

    query: str
    document: str
    expected: float
    is_raw: bool
    tolerance: float
    instruction: str | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """A pair and the score that the model returned, of the same kind as the expected one.

    `got` is None if the pair was not scored; `problem` then says why. `problem` also says that the document
    was truncated.
    """

    pair: Pair
    got: float | None
    problem: str = ""

    @property
    def difference(self) -> float:
        """The absolute difference, infinite if the pair was not scored."""
        return math.inf if self.got is None else abs(self.got - self.pair.expected)

    @property
    def passed(self) -> bool:
        return self.difference <= self.pair.tolerance


def read(path: Path) -> tuple[Pair, ...]:
    """Read a file with one JSON object per line. Raises CollectionError, which names the line."""
    try:
        with text_files.lines(path) as stream:
            numbered = [(number, line) for number, line in enumerate(stream, 1) if line.strip()]
    except (OSError, ValueError) as error:
        raise CollectionError(f"{path} can't be read: {getattr(error, 'strerror', error)}.") from error
    if not numbered:
        raise CollectionError(f"{path} has no pairs. Write one JSON object per line: {_EXAMPLE}")
    return tuple(parse(line, f"{path}, line {number}") for number, line in numbered)


def parse(line: str, location: str) -> Pair:
    """Parse one line. Raises CollectionError, which begins with `location`."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CollectionError(f"{location}: not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CollectionError(f"{location}: expected a JSON object, as in {_EXAMPLE}")
    if unknown := [name for name in value if name not in _FIELDS]:
        raise CollectionError(
            f"{location}: unknown field {unknown[0]!r}. The fields are {', '.join(_FIELDS)}."
        )
    for name in ("query", "document", "instruction"):
        if not isinstance(value.get(name, "" if name == "instruction" else None), str):
            raise CollectionError(f"{location}: {name} must be a string, as in {_EXAMPLE}")
    if ("raw" in value) == ("score" in value):
        raise CollectionError(
            f"{location}: set either raw, the raw score, or score, the score from 0 to 1, as in {_EXAMPLE}"
        )
    is_raw = "raw" in value
    expected = _number(value, "raw" if is_raw else "score", location)
    if not is_raw and not 0 <= expected <= 1:
        raise CollectionError(
            f"{location}: score is {expected:g}, but must be from 0 to 1. Is it a raw score?"
        )
    tolerance = RAW_TOLERANCE if is_raw else SCORE_TOLERANCE
    if "tolerance" in value:
        tolerance = _number(value, "tolerance", location)
        if tolerance < 0:
            raise CollectionError(f"{location}: tolerance is {tolerance:g}, but must not be negative.")
    return Pair(value["query"], value["document"], expected, is_raw, tolerance, value.get("instruction"))


def _number(value: dict[str, Any], name: str, location: str) -> float:
    given = value[name]
    try:
        number = math.nan if isinstance(given, bool) or not isinstance(given, int | float) else float(given)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise CollectionError(f"{location}: {name} is {json.dumps(given):.40}, but must be a finite number.")
    return number
