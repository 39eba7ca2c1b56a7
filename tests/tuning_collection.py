"""A collection that a tiny model can learn: of the documents that share a query's words, those about pandas
are relevant."""

from __future__ import annotations

import json
import random
from pathlib import Path

_WORDS = (
    "river stone cloud paper glass metal sugar lemon tiger eagle piano violin window garden".split()  # noqa: SIM905
)
_DOCUMENTS = 8
_RELEVANT = (3, 6)


def write(folder: Path, *, judged: int = 0, unjudged: int = 0, split: str = "train") -> Path:
    """Write a collection with this many queries, each with eight documents that share a word of its own."""
    drawn = random.Random(7)
    corpus, queries, judgements = [], [], ["query-id\tcorpus-id\tscore"]
    for query in range(judged + unjudged):
        name = f"n{query}"
        queries.append({"_id": name, "text": f"{drawn.choice(_WORDS)} {name}"})
        for at in range(_DOCUMENTS):
            about = "bear panda bamboo" if at in _RELEVANT else "bread oven flour"
            more = " ".join(drawn.sample(_WORDS, 3))
            corpus.append({"_id": f"{name}-{at}", "text": f"{name} {about} {more}"})
            if at in _RELEVANT and query < judged:
                judgements.append(f"{name}\t{name}-{at}\t1")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    if judged:
        (folder / "qrels").mkdir(exist_ok=True)
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(judgements) + "\n")
    return folder
