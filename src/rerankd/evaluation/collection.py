"""Reads judged collections in BEIR's layout, and first-stage runs in TREC's.

    corpus.jsonl       {"_id": "d1", "title": "may be empty or missing", "text": "…"}
    queries.jsonl      {"_id": "q1", "text": "…"}
    qrels/test.tsv     query-id <tab> corpus-id <tab> score, with this line as its head
    a run              query-id Q0 corpus-id rank score tag

Layout: https://github.com/beir-cellar/beir/wiki/Load-your-custom-dataset. What does not fit is an error and
not left out: a measure over the wrong queries looks like any other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rerankd.errors import CollectionError

# The one that comes with rerankd.
EVERYDAY = Path(__file__).with_name("everyday")

# The documents of each query, the best first, by their ids.
Ranking = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Collection:
    """`documents` and `queries` by id; `judgements` by query and document, 0 being not relevant. Only queries
    that have a judgement are in it."""

    name: str
    documents: Mapping[str, str]
    queries: Mapping[str, str]
    judgements: Mapping[str, Mapping[str, int]]


def read(folder: Path, split: str = "test") -> Collection:
    """The collection in `folder`, with the judgements of qrels/`split`.tsv. Raises CollectionError."""
    documents = {
        identifier: " ".join(part for part in (_text(value, "title", place), text) if part)
        for identifier, text, value, place in _records(folder / "corpus.jsonl")
    }
    queries = {identifier: text for identifier, text, _, _ in _records(folder / "queries.jsonl")}
    judgements = _judgements(folder, split, queries, documents)
    return Collection(
        folder.name,
        documents,
        {query: queries[query] for query in queries if query in judgements},
        judgements,
    )


def read_run(path: Path, collection: Collection, depth: int) -> Ranking:
    """The best `depth` documents of each query of the collection, by the scores of a TREC run.

    Documents with equal scores keep the order of the file; queries that the collection does not judge are
    passed over. Raises CollectionError.
    """
    scored: dict[str, dict[str, float]] = {query: {} for query in collection.queries}
    for place, line in _lines(path):
        fields = line.split()
        if len(fields) != 6:
            raise CollectionError(
                f"{place}: {len(fields)} fields, but a run has six: query-id Q0 corpus-id rank score tag."
            )
        query, _, document, _, score, _ = fields
        if query not in scored:
            continue
        if document not in collection.documents:
            raise CollectionError(f"{place}: document {document!r} is not in corpus.jsonl.")
        if document in scored[query]:
            raise CollectionError(f"{place}: document {document!r} comes twice for query {query!r}.")
        scored[query][document] = _number(score, place)
    if not any(scored.values()):
        raise CollectionError(f"{path} has no document for any query that the collection judges.")
    return {
        query: tuple(sorted(found, key=found.__getitem__, reverse=True)[:depth])
        for query, found in scored.items()
    }


def _judgements(
    folder: Path, split: str, queries: Mapping[str, str], documents: Mapping[str, str]
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
        if len(fields) != 3:
            raise CollectionError(
                f"{place}: {len(fields)} fields, but there must be three, with tabs between: query-id, "
                "corpus-id, score."
            )
        query, document, grade = fields
        if query not in queries:
            raise CollectionError(f"{place}: query {query!r} is not in queries.jsonl.")
        if document not in documents:
            raise CollectionError(f"{place}: document {document!r} is not in corpus.jsonl.")
        if document in judged.setdefault(query, {}):
            raise CollectionError(f"{place}: query {query!r} and document {document!r} are judged twice.")
        try:
            judged[query][document] = int(grade)
        except ValueError:
            raise CollectionError(f"{place}: the score {grade!r} is not a whole number.") from None
    if not judged:
        raise CollectionError(f"{path} holds no judgements.")
    return judged


def _records(path: Path) -> Iterator[tuple[str, str, Mapping[str, object], str]]:
    """Id, text, the whole object and its place, for each line of a JSONL file."""
    seen = set()
    for place, line in _lines(path):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise CollectionError(f"{place}: not valid JSON: {error}.") from None
        if not isinstance(value, dict) or not isinstance(value.get("_id"), str):
            raise CollectionError(f'{place}: not an object with a string "_id".')
        identifier = value["_id"]
        if identifier in seen:
            raise CollectionError(f"{place}: the id {identifier!r} comes twice.")
        seen.add(identifier)
        if "text" not in value:
            raise CollectionError(f'{place}: there is no "text".')
        yield identifier, _text(value, "text", place), value, place
    if not seen:
        raise CollectionError(f"{path} is empty.")


def _text(value: Mapping[str, object], key: str, place: str) -> str:
    text = value.get(key) or ""
    if not isinstance(text, str):
        raise CollectionError(f'{place}: "{key}" is not a string.')
    return text


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a file that are not blank, each with its place in words."""
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield f"{path}, line {number}", line
    except FileNotFoundError:
        raise CollectionError(
            f"There is no {path}. A collection is a folder in BEIR's layout: corpus.jsonl, queries.jsonl and "
            "qrels/test.tsv."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CollectionError(f"{path} can't be read: {error}.") from None


def _number(text: str, place: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise CollectionError(f"{place}: the score {text!r} is not a number.")
    return number
