"""What a collection gives to train and to measure with: queries, candidates and examples. Pure but for
`read`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rerankd.errors import CollectionError
from rerankd.evaluation import bm25
from rerankd.evaluation.collection import Collection, Faults, Ranking, read_with_unjudged
from rerankd.progress import Progress
from rerankd.tuning import queries
from rerankd.tuning.queries import Parts

# Takes a query and a document, and returns the teacher's label; None if it has none.
Label = Callable[[str, str], float | None]

# Documents without relevance that are learned for each relevant one, without a teacher. The first candidates
# are most like relevant ones, but some are relevant and were not judged, so these are drawn from all.
_NEGATIVES = 5
# The documents whose order the agreement with a teacher measures, as nDCG@10 reads ten.
_AGREED = 10


@dataclass(frozen=True, slots=True)
class Plan:
    """`collection` has all queries that are used, those without judgements with none. `candidates` are the
    first stage's documents of each query."""

    collection: Collection
    parts: Parts
    candidates: Ranking
    seed: int

    def to_label(self) -> dict[str, list[str]]:
        """The texts that the teacher must score: the documents of each query."""
        found: dict[str, list[str]] = {}
        for query in (*self.parts.training, *self.parts.validation, *self.parts.held_out):
            texts = (self.collection.documents[one] for one in self._documents(query))
            found.setdefault(self.collection.queries[query], []).extend(texts)
        return found

    def examples(self, label: Label | None) -> list[dict[str, Any]]:
        """The pairs to learn, with the teacher's labels or the judgements. Raises CollectionError if too few
        queries have any."""
        found: list[dict[str, Any]] = []
        used = 0
        for query in self.parts.training:
            text = self.collection.queries[query]
            pairs = self._judged_pairs(query) if label is None else self._labelled(query, label)
            some = [
                {"query": text, "document": self.collection.documents[one], "label": value}
                for one, value in pairs
            ]
            used += bool(some)
            found += some
        if used < queries.LEAST_TRAINED:
            raise CollectionError(
                f"Only {used} of {len(self.parts.training)} training queries share a word with a document, "
                f"but {queries.LEAST_TRAINED} are needed."
            )
        return found

    def validation(self, label: Label | None) -> list[dict[str, Any]]:
        """The queries that choose the best checkpoint: `documents`, and `grades` of these and of judged
        documents that are no candidates."""
        judgements = self.judgements(
            self.parts.validation, label if not self.parts.validation_is_judged else None
        )
        found = []
        for query in self.parts.validation:
            candidates, grades = self.candidates[query], judgements[query]
            if candidates:
                more = [grade for one, grade in grades.items() if one not in candidates]
                found.append(
                    {
                        "query": self.collection.queries[query],
                        "documents": [self.collection.documents[one] for one in candidates],
                        "grades": [grades.get(one, 0) for one in candidates] + more,
                    }
                )
        return found

    def judgements(self, part: Iterable[str], label: Label | None) -> dict[str, dict[str, int]]:
        """The judgements of queries, or with `label` the teacher's ten best candidates: grades 10 to 1."""
        if label is None:
            return {query: dict(self.collection.judgements[query]) for query in part}
        agreed = {}
        for query in part:
            best = sorted(self._labelled(query, label), key=lambda pair: -pair[1])[:_AGREED]
            agreed[query] = {document: _AGREED - at for at, (document, _) in enumerate(best)}
        return agreed

    def held_out(self) -> Ranking:
        """The candidates of the queries of the final measurement."""
        return {query: self.candidates[query] for query in self.parts.held_out}

    def _documents(self, query: str) -> Iterator[str]:
        yield from self.candidates[query]
        known = {*self.candidates[query]}
        yield from (one for one in self.collection.judgements[query] if one not in known)

    def _labelled(self, query: str, label: Label) -> Iterator[tuple[str, float]]:
        text = self.collection.queries[query]
        for document in self._documents(query):
            if (value := label(text, self.collection.documents[document])) is not None:
                yield document, value

    def _judged_pairs(self, query: str) -> list[tuple[str, float]]:
        grades = self.collection.judgements[query]
        relevant = [one for one, grade in grades.items() if grade > 0]
        others = [one for one, grade in grades.items() if grade < 1 and one not in relevant]
        unjudged = [one for one in self.candidates[query] if one not in grades]
        more = max(0, _NEGATIVES * len(relevant) - len(others))
        chosen = random.Random(f"{self.seed} {query}").sample(unjudged, min(more, len(unjudged)))
        return [*((one, 1.0) for one in relevant), *((one, 0.0) for one in (*others, *chosen))]


def read(
    folder: Path, split: str, faults: Faults, *, has_teacher: bool, depth: int, seed: int, progress: Progress
) -> Plan:
    """Read a collection, and find the candidates of its queries. Raises CollectionError."""
    judged, unjudged = read_with_unjudged(folder, split, faults)
    relevant = {
        query: text for query, text in judged.queries.items() if max(judged.judgements[query].values()) > 0
    }
    parts = queries.divide(relevant, unjudged, has_teacher=has_teacher, seed=seed)
    used = (*parts.training, *parts.validation, *parts.held_out)
    texts: Mapping[str, str] = {**unjudged, **relevant}
    collection = replace(
        judged,
        queries={query: texts[query] for query in used},
        judgements={query: judged.judgements.get(query, {}) for query in used},
    )
    return Plan(collection, parts, bm25.rank(collection, depth, progress), seed)
