"""The teacher's scores, on disk: a stop loses at most the queries under way, and another run reuses them.

The file has a line for each pair, `DIGEST LOGIT`; it belongs to one teacher (its file, recipe and backend).
The label is the logit of the teacher's normalized score, so that the sigmoid of the tuned model's raw score
has the teacher's scale: for a teacher with a logit of its own it is that logit (with its calibration), for
one with cosines the logit to which its range corresponds.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Self

from rerankd.progress import Progress
from rerankd.rerank_result import RerankResult
from rerankd.service import Reranker
from rerankd.serving.prepare_model import Model

# Scores at the ends of a range have no finite logit. A sigmoid in float64 reaches 1e-13 only beyond ±30.
_EDGES = {"sigmoid": 1e-13}
_EDGE = 1e-3
# Queries under way at a time: so many fill the batches of a GPU.
_AT_A_TIME = 4


class Labels:
    """The labels of one teacher. A context manager, which holds the file open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[bytes, float] = {}
        self._file: BinaryIO | None = None

    @classmethod
    def of(cls, teacher: Model, home: Path) -> Self:
        """The labels of a teacher, in the data folder."""
        identity = f"{teacher.fingerprint} {teacher.recipe} {teacher.engine.build}"
        name = hashlib.blake2b(identity.encode(errors="surrogatepass"), digest_size=8).hexdigest()
        return cls(home / "cache" / "teachers" / f"{name}.labels")

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+b")
        self._file.seek(0)
        whole = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            with contextlib.suppress(ValueError):
                key, value = line.split()
                self._known[key] = float(value)
        if self._file.tell() > whole:
            self._file.truncate(whole)  # a line that was being written at a crash
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    def get(self, query: str, document: str) -> float | None:
        """The label of a pair, None if it is not known."""
        return self._known.get(_key(query, document))

    def missing(self, query: str, documents: Sequence[str]) -> list[str]:
        """Those of the documents that have no label for the query, each once."""
        return [one for one in dict.fromkeys(documents) if _key(query, one) not in self._known]

    def add(self, query: str, documents: Sequence[str], result: RerankResult) -> None:
        """Keep the scores of a result. Documents without a score get no label."""
        assert self._file is not None
        without = {*result.blank, *result.unscored, *(one.index for one in result.errors)}
        for scored in result.results:
            if scored.index in without:
                continue
            key = _key(query, documents[scored.index])
            self._known[key] = logit(scored.score, result.normalization)
            self._file.write(b"%s %r\n" % (key, self._known[key]))
        self._file.flush()


def logit(score: float, normalization: str) -> float:
    """(pure) The logit of a normalized score, finite also for 0 and 1."""
    edge = _EDGES.get(normalization, _EDGE)
    score = min(max(score, edge), 1 - edge)
    return math.log(score / (1 - score))


async def label(
    labels: Labels, reranker: Reranker, pairs: Mapping[str, Sequence[str]], progress: Progress
) -> None:
    """Get the labels that are missing from a teacher; `pairs` has the documents of each query. Raises what
    `Reranker.rerank` raises."""

    async def ask(query: str, documents: list[str]) -> None:
        if documents:
            result = await reranker.rerank(query, documents, truncate_query=True, budget_ms=0)
            labels.add(query, documents, result)

    queries = list(pairs)
    for done in range(0, len(queries), _AT_A_TIME):
        progress("labelling by the teacher", done, len(pairs))
        some = queries[done : done + _AT_A_TIME]
        await asyncio.gather(*(ask(query, labels.missing(query, pairs[query])) for query in some))
    progress("labelling by the teacher", done, len(pairs))


def _key(query: str, document: str) -> bytes:
    text = f"{len(query)} {query}{document}".encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=16).hexdigest().encode()
