"""(pure) Rows of a file of pairs, and the requests that score them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rerankd.errors import BulkError

# The most characters of the documents of one request, or one document.
_MOST_CHARACTERS = 1_000_000


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns: the query, the document and, unless "", the instruction of a pair, which are
    read, and the score and the error, which are added."""

    query: str = "query"
    document: str = "document"
    instruction: str = ""
    score: str = "score"
    error: str = "error"

    @property
    def read(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.query, self.document, self.instruction)))

    def __post_init__(self) -> None:
        names = (self.query, self.document, self.score, self.error)
        if "" in names:
            raise BulkError("The name of a column is empty. Only --instruction-column may be.")
        if self.score == self.error:
            raise BulkError(
                f"--score-column and --error-column are both {self.score!r}. Give them two names."
            )

    @property
    def added(self) -> tuple[str, str]:
        return self.score, self.error


@dataclass(frozen=True, slots=True)
class Pair:
    """The texts of a row; `instruction` None: the model's default."""

    query: str
    document: str
    instruction: str | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """The outcome of a row: a score, or the reason why it has none. `is_row`: the row itself is valid."""

    score: float | None = None
    error: str | None = None
    is_row: bool = True


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of a file, each a pair or the reason why it is none. `payload` is the rows as their
    format keeps them, of about `size` characters or bytes, `read` the share of the file up to their end, from
    0 to 1."""

    pairs: Sequence[Pair | str]
    payload: Any
    size: int
    read: float


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of one request: pairs with the same query and instruction, by their index in the chunk.
    `characters`: those of its documents."""

    query: str
    instruction: str | None
    rows: tuple[int, ...]
    characters: int


def groups(pairs: Sequence[Pair | str]) -> Iterator[Group]:
    """Yield the requests for these rows. Rows with the same query need not follow each other."""
    found: dict[tuple[str, str | None], list[int]] = {}
    for at, pair in enumerate(pairs):
        if isinstance(pair, Pair):
            found.setdefault((pair.query, pair.instruction), []).append(at)
    for (query, instruction), rows in found.items():
        together: list[int] = []
        characters = 0
        for at in rows:
            pair = pairs[at]
            assert isinstance(pair, Pair)
            if together and characters + len(pair.document) > _MOST_CHARACTERS:
                yield Group(query, instruction, tuple(together), characters)
                together, characters = [], 0
            together.append(at)
            characters += len(pair.document)
        yield Group(query, instruction, tuple(together), characters)


def pair_of(values: Sequence[object], columns: Columns) -> Pair | str:
    """Return the pair of a row, given the values of `columns.read`, or the reason why it is none."""
    for name, value in zip(columns.read, values, strict=True):
        if value is None and name == columns.instruction:
            continue
        if value is None:
            return f"The column {name} is empty."
        if not isinstance(value, str):
            return f"The column {name} is a {_kind(value)}, but must be a text."
        if not _is_unicode(value):
            return f"The column {name} is not valid Unicode."
    query, document, *instruction = values
    return Pair(str(query), str(document), str(instruction[0]) if instruction and instruction[0] else None)


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    kinds: dict[type, str] = {list: "list", dict: "structure", bytes: "binary value"}
    return kinds.get(type(value), "value")


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
