"""Reads judged collections in BEIR's layout, and first-stage runs in TREC's.

    corpus.jsonl       {"_id": "d1", "title": "may be empty or missing", "text": "…"}
    queries.jsonl      {"_id": "q1", "text": "…"}
    qrels/test.tsv     query-id <tab> corpus-id <tab> score, with this line as its head
    a run              query-id Q0 corpus-id rank score tag

Layout: https://github.com/beir-cellar/beir/wiki/Load-your-custom-dataset. A wrong line is an error: a measure
over the wrong queries looks like any other. `Faults(lenient=True)` skips such lines and keeps the reasons. A
line that only repeats an earlier one is passed over.

An id may be a JSON number; its digits are the id, as the other files write it.

A document with the id of the query is the query itself in collections that were made of one set of texts
(ArguAna, Quora). It is no candidate, as in BEIR's own evaluation, unless the judgements call it relevant.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rerankd import text_files
from rerankd.errors import CollectionError

# The one that comes with rerankd.
EVERYDAY = Path(__file__).with_name("everyday")

# The documents of each query, the best first, by their ids.
Ranking = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Collection:
    """`documents` and `queries` by id; `judgements` by query and document, 0 being not relevant. Only queries
    that have a judgement are in `queries`; `unjudged` are the ids of the others."""

    name: str
    documents: Mapping[str, str]
    queries: Mapping[str, str]
    judgements: Mapping[str, Mapping[str, int]]
    unjudged: frozenset[str] = frozenset()

    @property
    def own(self) -> frozenset[str]:
        """The queries that are documents themselves, which are no candidates for themselves."""
        return frozenset(query for query in self.queries if self._is_own(query))

    def candidates(self, query: str, documents: Iterable[str], depth: int) -> tuple[str, ...]:
        """The first `depth` of a query's documents, without the query itself."""
        itself = query if self._is_own(query) else None
        return tuple(islice((one for one in documents if one != itself), depth))

    def _is_own(self, query: str) -> bool:
        return query in self.documents and self.judgements[query].get(query, 0) < 1


class Faults:
    """What happens to wrong lines: CollectionError, or with `lenient` they are skipped, and `skipped` says
    which and why."""

    def __init__(self, *, lenient: bool = False) -> None:
        self._lenient = lenient
        self.skipped: list[str] = []

    @contextlib.contextmanager
    def line(self, place: str) -> Iterator[None]:
        """Around the reading of one line, whose place it names in words."""
        try:
            yield
        except _LineError as error:
            if not self._lenient:
                raise CollectionError(
                    f"{place}: {error} (--lenient skips such lines and reports them.)"
                ) from None
            self.skipped.append(f"{place}: {error}")


class _LineError(Exception):
    """What is wrong with a line."""


def read(folder: Path, split: str = "test", faults: Faults | None = None) -> Collection:
    """The collection in `folder`, with the judgements of qrels/`split`.tsv. Raises CollectionError."""
    faults = faults or Faults()
    documents = _texts(folder / "corpus.jsonl", ("title", "text"), faults)
    queries = _texts(folder / "queries.jsonl", ("text",), faults)
    judgements = _judgements(folder, split, queries, documents, faults)
    return Collection(
        folder.name,
        documents,
        {query: queries[query] for query in queries if query in judgements},
        judgements,
        frozenset(queries) - frozenset(judgements),
    )


def read_run(path: Path, collection: Collection, depth: int, faults: Faults | None = None) -> Ranking:
    """The best `depth` documents of each query of the collection, by the scores of a TREC run, without the
    query itself.

    Documents with equal scores keep the order of the file; queries without a judgement in this split are
    passed over. Raises CollectionError.
    """
    faults = faults or Faults()
    scored: dict[str, dict[str, float]] = {query: {} for query in collection.queries}
    for place, line in _lines(path):
        with faults.line(place):
            _add_to_run(line.split(), scored, collection)
    if not any(scored.values()):
        raise CollectionError(f"{path} has no document for any query that the collection judges.")
    return {
        query: collection.candidates(query, sorted(found, key=found.__getitem__, reverse=True), depth)
        for query, found in scored.items()
    }


def _add_to_run(fields: list[str], scored: dict[str, dict[str, float]], collection: Collection) -> None:
    if len(fields) != 6:
        raise _LineError(f"{len(fields)} fields, but a run has six: query-id Q0 corpus-id rank score tag.")
    query, _, document, _, text, _ = fields
    if query in collection.unjudged:
        return
    if query not in scored:
        raise _LineError(f"query {query!r} is not in queries.jsonl.")
    if document not in collection.documents:
        raise _LineError(f"document {document!r} is not in corpus.jsonl.")
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise _LineError(f"the score {text!r} is not a number.")
    if scored[query].setdefault(document, score) != score:
        raise _LineError(f"document {document!r} comes twice for query {query!r}, with different scores.")


def _judgements(
    folder: Path, split: str, queries: Mapping[str, str], documents: Mapping[str, str], faults: Faults
) -> dict[str, dict[str, int]]:
    path = folder / "qrels" / f"{split}.tsv"
    if not path.is_file():
        there = ", ".join(sorted(found.stem for found in path.parent.glob("*.tsv"))) or "none"
        raise CollectionError(f"There is no {path}. Name another split with --split; there are: {there}.")
    judged: dict[str, dict[str, int]] = {}
    for at, (place, line) in enumerate(_lines(path)):
        fields = line.rstrip("\r\n").split("\t")
        if at == 0 and fields[-1:] == ["score"]:
            continue
        with faults.line(place):
            _add_judgement(fields, judged, queries, documents)
    if not judged:
        raise CollectionError(f"{path} holds no judgements.")
    return judged


def _add_judgement(
    fields: list[str],
    judged: dict[str, dict[str, int]],
    queries: Mapping[str, str],
    documents: Mapping[str, str],
) -> None:
    if len(fields) != 3:
        raise _LineError(
            f"{len(fields)} fields, but there must be three, with tabs between: query-id, corpus-id, score."
        )
    query, document, text = fields
    if query not in queries:
        raise _LineError(f"query {query!r} is not in queries.jsonl.")
    if document not in documents:
        raise _LineError(f"document {document!r} is not in corpus.jsonl.")
    try:
        grade = int(text)
    except ValueError:
        raise _LineError(f"the score {text!r} is not a whole number.") from None
    if judged.setdefault(query, {}).setdefault(document, grade) != grade:
        raise _LineError(
            f"query {query!r} and document {document!r} are judged twice, with different scores."
        )


def _texts(path: Path, keys: Sequence[str], faults: Faults) -> dict[str, str]:
    """The texts of a JSONL file by their ids; `keys` are the parts of a text, the last of which must be
    there."""
    found: dict[str, str] = {}
    for place, line in _lines(path):
        with faults.line(place):
            identifier, text = _record(line, keys)
            if found.setdefault(identifier, text) != text:
                raise _LineError(f"the id {identifier!r} comes twice, with different texts.")
    if not found:
        raise CollectionError(f"{path} is empty.")
    return found


class _Digits(str):
    """A JSON number as the file writes it."""


def _record(line: str, keys: Sequence[str]) -> tuple[str, str]:
    try:
        value = json.loads(line, parse_int=_Digits, parse_float=_Digits)
    except (ValueError, RecursionError) as error:
        raise _LineError(f"not valid JSON: {error}.") from None
    if not isinstance(value, dict) or not isinstance(value.get("_id"), str):
        raise _LineError('not an object with an "_id" that is a string or a number.')
    if keys[-1] not in value:
        raise _LineError(f'there is no "{keys[-1]}".')
    parts = (_text(value, key) for key in keys)
    return str(value["_id"]), " ".join(part for part in parts if part)


def _text(value: Mapping[str, object], key: str) -> str:
    text = "" if value.get(key) is None else value[key]
    if not isinstance(text, str) or isinstance(text, _Digits):
        raise _LineError(f'"{key}" is not a string.')
    return text


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a file that are not blank, each with its place in words."""
    try:
        with text_files.lines(path) as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield f"{path}, line {number}", line
    except FileNotFoundError:
        raise CollectionError(
            f"There is no {path}. A collection is a folder in BEIR's layout: corpus.jsonl, queries.jsonl and "
            "qrels/test.tsv."
        ) from None
    except (OSError, ValueError) as error:
        raise CollectionError(f"{path} can't be read: {error}.") from None
