"""The requests of a benchmark: reproducible by seed, and without repeated texts, so that no cache answers."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from rerankd.errors import ConfigError
from rerankd.evaluation.collection import EVERYDAY, read

QUERY_WORDS = 8


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of load: `concurrency` clients, each of which sends `documents` documents of `least_words` to
    `most_words` words and waits for the response."""

    documents: int
    concurrency: int
    least_words: int
    most_words: int

    @property
    def pairs(self) -> int:
        """Pairs of one round, in which each client sends one request."""
        return self.documents * self.concurrency

    @property
    def words(self) -> str:
        least, most = self.least_words, self.most_words
        return str(least) if least == most else f"{least}-{most}"


@dataclass(frozen=True, slots=True)
class Plan:
    """The requests to send: `rounds` of each case, until `within_s` seconds have passed."""

    cases: Sequence[Case]
    rounds: int
    within_s: float
    seed: int


@dataclass(frozen=True, slots=True)
class Request:
    query: str
    documents: tuple[str, ...]


def cases(documents: Sequence[int], concurrency: Sequence[int], words: tuple[int, int]) -> list[Case]:
    """Combine each number of documents with the first concurrency, and the median number of documents with
    each other concurrency."""
    middle = sorted(documents)[len(documents) // 2]
    return [Case(count, concurrency[0], *words) for count in documents] + [
        Case(middle, many, *words) for many in concurrency[1:]
    ]


def round_of(case: Case, seed: int, at: int) -> list[Request]:
    """Return the requests of round `at`, one per client."""
    made = []
    for client in range(case.concurrency):
        pick = random.Random(f"{seed} {case} {at} {client}")
        documents = tuple(
            text(pick, pick.randint(case.least_words, case.most_words)) for _ in range(case.documents)
        )
        made.append(Request(text(pick, QUERY_WORDS), documents))
    return made


def text(pick: random.Random, words: int) -> str:
    """Return `words` random English words."""
    return " ".join(pick.choices(english(), k=words))


@cache
def english() -> tuple[str, ...]:
    """Return the words of the English texts included in rerankd, whose lengths and token counts are those of
    real texts."""
    found: set[str] = set()
    for words in read(EVERYDAY).documents.values():
        if words.isascii():
            found.update(re.findall(r"[A-Za-z]+", words))
    return tuple(sorted(found))


def numbers(value: str, name: str) -> list[int]:
    """ "1,20,100" -> [1, 20, 100]. Raises ConfigError."""
    try:
        found = [int(part) for part in value.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise ConfigError(f"--{name} must be a list of positive numbers such as 1,20,100, not {value!r}.")
    return found


def word_range(value: str) -> tuple[int, int]:
    """ "100" -> (100, 100), "20-400" -> (20, 400). Raises ConfigError."""
    least, _, most = value.partition("-")
    try:
        found = int(least), int(most or least)
    except ValueError:
        found = (0, 0)
    if not 1 <= found[0] <= found[1]:
        raise ConfigError(f"--words must be a number such as 100 or a range such as 20-400, not {value!r}.")
    return found
