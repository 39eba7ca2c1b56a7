"""The built-in first stage: BM25 over words, and over characters for languages written without spaces."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable

import numpy as np

from rerankd.evaluation.collection import Collection, Ranking
from rerankd.progress import Progress, step

# Han, Hiragana, Katakana and Hangul.
_SPACELESS = (
    "\u3005-\u3007\u3041-\u309f\u30a1-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\U00020000-\U0003ffff"
)
_RUN = re.compile(rf"[{_SPACELESS}]+|[^\W_{_SPACELESS}]+")
_IS_SPACELESS = re.compile(f"[{_SPACELESS}]")


def tokens(text: str) -> list[str]:
    """Return the tokens for BM25: words in lower case, reduced to their English stem (Snowball), including
    stop words; for Chinese, Japanese and Korean, each character and each pair of adjacent characters.

    "大熊猫 eats Bamboo" -> ["大", "熊", "猫", "大熊", "熊猫", "eat", "bamboo"]
    """
    import Stemmer

    stem = Stemmer.Stemmer("english").stemWord
    found: list[str] = []
    for match in _RUN.finditer(unicodedata.normalize("NFKC", text).casefold()):
        run = match[0]
        if _IS_SPACELESS.match(run):
            found += run
            found += [run[at : at + 2] for at in range(len(run) - 1)]
        else:
            found.append(stem(run))
    return found


class Index:
    """Lucene's BM25 (k1 1.5, b 0.75) over texts, each given as its tokens."""

    def __init__(self, texts: Iterable[list[str]]) -> None:
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # its import sets DEBUG
        self._bm25 = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
        self._bm25.index(list(texts), show_progress=False)

    def best(self, query: str, depth: int) -> list[int]:
        """Return the positions of the best `depth` texts, among those that share a token with the query."""
        known = [token for token in tokens(query) if token in self._bm25.vocab_dict]
        scores = self._bm25.get_scores(known) if known else np.zeros(0, np.float32)
        # A stable sort keeps the order of the texts for equal scores, so that runs are reproducible.
        best = np.argsort(-scores, kind="stable")[:depth]
        return [int(at) for at in best if scores[at] > 0]


def rank(collection: Collection, depth: int, progress: Progress) -> Ranking:
    """Return the best `depth` documents for each query, among those that share a token with it."""
    identifiers = list(collection.documents)
    with step(progress, "indexing the documents for BM25"):
        index = Index(tokens(text) for text in collection.documents.values())
    ranking: dict[str, tuple[str, ...]] = {}
    for query, text in collection.queries.items():
        found = index.best(text, depth + 1)  # one more, as the query may be among them
        ranking[query] = collection.candidates(query, [identifiers[at] for at in found], depth)
    return ranking
