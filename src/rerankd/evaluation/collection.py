"""Read collections with judgements in BEIR's layout, and first-stage runs in TREC's format.

    corpus.jsonl       {"_id": "d1", "title": "may be empty or missing", "text": "…"}
    queries.jsonl      {"_id": "q1", "text": "…"}
    qrels/test.tsv     query-id <tab> corpus-id <tab> score, with this line as its header
    a run              query-id Q0 corpus-id rank score tag

Layout: https://github.com/beir-cellar/beir/wiki/Load-your-custom-dataset. An invalid line is an error, since
a measure over the wrong queries can't be recognised as wrong. `Faults(lenient=True)` skips such lines and
keeps the reasons. A line that only repeats an earlier one is ignored.

An id may be a JSON number; its digits are the id, as in the other files.

In collections made from one set of texts (ArguAna, Quora), the document with the id of a query is the query
itself. As in BEIR's own evaluation, it is not a candidate, unless the judgements rate it relevant.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rerankd import text_files
from rerankd.errors import CollectionError

# The collection included in rerankd.
EVERYDAY = Path(__file__).with_name("everyday")

# The ids of each query's documents, best first.
Ranking = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Collection:
    """Texts of documents and queries by id; `judgements` by query and document, where 0 means not relevant.
    `queries` has only queries with a judgement; `unjudged` are the ids of the others."""

    name: str
    documents: Mapping[str, str]
    queries: Mapping[str, str]
    judgements: Mapping[str, Mapping[str, int]]
    unjudged: frozenset[str] = frozenset()

    @property
    def own(self) -> frozenset[str]:
        """The queries that are documents too, and are excluded from their own candidates."""
        return frozenset(query for query in self.queries if self._is_own(query))

    def candidates(self, query: str, documents: Iterable[str], depth: int) -> tuple[str, ...]:
        """Return the first `depth` of a query's documents, without the query itself."""
        itself = query if self._is_own(query) else None
        return tuple(islice((one for one in documents if one != itself), depth))

    def _is_own(self, query: str) -> bool:
        return query in self.documents and self.judgements[query].get(query, 0) < 1


class Faults:
    """Handles invalid lines: raises CollectionError, or with `lenient` adds the line and the reason to
    `skipped`."""

    def __init__(self, *, lenient: bool = False) -> None:
        self._lenient = lenient
        self.skipped: list[str] = []

    @contextlib.contextmanager
    def line(self, location: str) -> Iterator[None]:
        """Wrap the reading of one line; `location` names its file and number."""
        try:
            yield
        except _LineError as error:
            if not self._lenient:
                raise CollectionError(
                    f"{location}: {error} (--lenient skips and reports such lines.)"
                ) from None
            self.skipped.append(f"{location}: {error}")


class _LineError(Exception):
    """A line is invalid; the message is the reason."""


def read(folder: Path, split: str = "test", faults: Faults | None = None) -> Collection:
    """Read the collection in `folder` with the judgements of qrels/`split`.tsv. Raises CollectionError."""
    faults = faults or Faults()
    documents, queries = _documents_and_queries(folder, faults)
    judgements = _judgements(folder, split, queries, documents, faults)
    return _collection(folder, documents, queries, judgements)


def read_with_unjudged(folder: Path, split: str, faults: Faults) -> tuple[Collection, dict[str, str]]:
    """Read a collection as `read` does, and the queries that no split judges. In a folder without
    judgements these are all queries. Raises CollectionError."""
    documents, queries = _documents_and_queries(folder, faults)
    splits = {path.stem for path in (folder / "qrels").glob("*.tsv")}
    if not splits:
        return _collection(folder, documents, queries, {}), queries
    judged = {
        name: _judgements(folder, name, queries, documents, faults) for name in sorted(splits | {split})
    }
    unjudged = {
        query: text for query, text in queries.items() if not any(query in of for of in judged.values())
    }
    return _collection(folder, documents, queries, judged[split]), unjudged


def _documents_and_queries(folder: Path, faults: Faults) -> tuple[dict[str, str], dict[str, str]]:
    documents = _texts(folder / "corpus.jsonl", ("title", "text"), faults)
    return documents, _texts(folder / "queries.jsonl", ("text",), faults)


def _collection(
    folder: Path,
    documents: Mapping[str, str],
    queries: Mapping[str, str],
    judgements: Mapping[str, Mapping[str, int]],
) -> Collection:
    return Collection(
        Path(os.path.abspath(folder)).name,  # also of the folder "."
        documents,
        {query: queries[query] for query in queries if query in judgements},
        judgements,
        frozenset(queries) - frozenset(judgements),
    )


def read_run(path: Path, collection: Collection, depth: int, faults: Faults | None = None) -> Ranking:
    """Read a TREC run: the best `depth` documents for each query of the collection, without the query itself.

    Documents with equal scores keep the order of the file. Queries without a judgement in this split are
    ignored. Raises CollectionError.
    """
    faults = faults or Faults()
    scored: dict[str, dict[str, float]] = {query: {} for query in collection.queries}
    for location, line in _lines(path):
        with faults.line(location):
            _add_to_run(line.split(), scored, collection)
    if not any(scored.values()):
        raise CollectionError(f"{path} has no document for any query with a judgement.")
    return {
        query: collection.candidates(query, sorted(found, key=found.__getitem__, reverse=True), depth)
        for query, found in scored.items()
    }


def _add_to_run(fields: list[str], scored: dict[str, dict[str, float]], collection: Collection) -> None:
    if len(fields) != 6:
        raise _LineError(
            f"the line has {len(fields)} fields, but a run has six: query-id Q0 corpus-id rank score tag."
        )
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
        raise _LineError(f"document {document!r} occurs twice for query {query!r}, with different scores.")


def _judgements(
    folder: Path, split: str, queries: Mapping[str, str], documents: Mapping[str, str], faults: Faults
) -> dict[str, dict[str, int]]:
    path = folder / "qrels" / f"{split}.tsv"
    if not os.path.isfile(path):  # False also for a name that is too long
        there = ", ".join(sorted(found.stem for found in path.parent.glob("*.tsv"))) or "none"
        raise CollectionError(
            f"The file {path} does not exist. Name another split with --split; available splits: {there}."
        )
    judged: dict[str, dict[str, int]] = {}
    for at, (location, line) in enumerate(_lines(path)):
        fields = line.rstrip("\r\n").split("\t")
        if at == 0 and fields[-1:] == ["score"]:
            continue
        with faults.line(location):
            _add_judgement(fields, judged, queries, documents)
    if not judged:
        raise CollectionError(f"{path} has no judgements.")
    return judged


def _add_judgement(
    fields: list[str],
    judged: dict[str, dict[str, int]],
    queries: Mapping[str, str],
    documents: Mapping[str, str],
) -> None:
    if len(fields) != 3:
        raise _LineError(
            f"the line has {len(fields)} fields, but must have three, separated by tabs: query-id, "
            "corpus-id, score."
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
    """Read the texts of a JSONL file by id. `keys` are the fields that make up a text; the last one is
    required."""
    found: dict[str, str] = {}
    for location, line in _lines(path):
        with faults.line(location):
            identifier, text = _record(line, keys)
            if found.setdefault(identifier, text) != text:
                raise _LineError(f"the id {identifier!r} occurs twice, with different texts.")
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
        raise _LineError('expected an object with an "_id" that is a string or a number.')
    if keys[-1] not in value:
        raise _LineError(f'"{keys[-1]}" is missing.')
    parts = (_text(value, key) for key in keys)
    return str(value["_id"]), " ".join(part for part in parts if part)


def _text(value: Mapping[str, object], key: str) -> str:
    text = "" if value.get(key) is None else value[key]
    if not isinstance(text, str) or isinstance(text, _Digits):
        raise _LineError(f'"{key}" is not a string.')
    return text


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the lines of a file that are not blank, each with its file and line number."""
    try:
        with text_files.lines(path) as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield f"{path}, line {number}", line
    except FileNotFoundError:
        raise CollectionError(
            f"The file {path} does not exist. A collection is a folder in BEIR's layout: corpus.jsonl, "
            "queries.jsonl and qrels/SPLIT.tsv."
        ) from None
    except (OSError, ValueError) as error:
        raise CollectionError(f"{path} can't be read: {error}.") from None
