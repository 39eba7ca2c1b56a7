"""The built-in first stage: BM25 over words, and over characters for languages written without spaces."""

from __future__ import annotations

import re
import unicodedata

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


def rank(collection: Collection, depth: int, progress: Progress) -> Ranking:
    """Return the best `depth` documents for each query, among those that share a token with it (Lucene's
    BM25, k1 1.5, b 0.75)."""
    import bm25s

    identifiers = list(collection.documents)
    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    with step(progress, "indexing the documents for BM25"):
        index.index([tokens(text) for text in collection.documents.values()], show_progress=False)
    ranking: dict[str, tuple[str, ...]] = {}
    for query, text in collection.queries.items():
        known = [token for token in tokens(text) if token in index.vocab_dict]
        scores = index.get_scores(known) if known else np.zeros(0, np.float32)
        # A stable sort keeps the order of the corpus for equal scores, so that runs are reproducible.
        best = np.argsort(-scores, kind="stable")[: depth + 1]  # one more, as the query may be among them
        found = [identifiers[at] for at in best if scores[at] > 0]
        ranking[query] = collection.candidates(query, found, depth)
    return ranking
