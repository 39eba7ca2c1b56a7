"""The retrieval of a RAG program, and what a reranker adds to it: nDCG@10 on rerankd's own collection.

pip install 'rerankd[eval]', then `rerankd serve` (or set RERANK_URL), then
python examples/rag.py               # first stage: BM25
python examples/rag.py embeddings    # first stage: vectors of the served model, if it is an embedding model
"""

import os
import sys

import httpx
import numpy as np

from rerankd.evaluation import bm25
from rerankd.evaluation.collection import EVERYDAY, read

URL = os.environ.get("RERANK_URL", "http://localhost:11440")
KEY = os.environ.get("RERANKD_API_KEY", "")
CANDIDATES = 50
HTTP = httpx.Client(base_url=URL, timeout=120, headers={"Authorization": f"Bearer {KEY}"} if KEY else {})

collection = read(EVERYDAY)  # 60 questions in English and Chinese, 400 passages, graded judgements
questions = collection.queries.items()
names, texts = list(collection.documents), list(collection.documents.values())


def embed(batch: list[str], kind: str) -> np.ndarray:
    answer = HTTP.post("/v1/embeddings", json={"input": batch, "input_type": kind}).raise_for_status()
    return np.array([row["embedding"] for row in answer.json()["data"]])


def rerank(question: str, found: list[int]) -> list[int]:
    body = {"query": question, "documents": [texts[at] for at in found]}
    answer = HTTP.post("/v1/rerank", json=body).raise_for_status()
    return [found[row["index"]] for row in answer.json()["results"]]


def dcg(grades: list[int]) -> float:
    return sum(grade / np.log2(rank + 2) for rank, grade in enumerate(grades[:10]))


def ndcg(query: str, ranking: list[int]) -> float:
    grades = collection.judgements[query]
    return dcg([grades.get(names[at], 0) for at in ranking]) / dcg(sorted(grades.values(), reverse=True))


if sys.argv[1:] == ["embeddings"]:
    vectors = embed(texts, "document")
    first = {q: list(np.argsort(-vectors @ embed([text], "query")[0])[:CANDIDATES]) for q, text in questions}
else:
    index = bm25.Index(bm25.tokens(text) for text in texts)
    first = {query: index.best(text, CANDIDATES) for query, text in questions}
second = {query: rerank(text, first[query]) for query, text in questions}

for stage, ranking in (("first stage", first), ("reranked", second)):
    print(f"{stage:12} nDCG@10 {np.mean([ndcg(query, found) for query, found in ranking.items()]):.3f}")
query, question = next(iter(questions))
context = "\n".join(f"- {texts[at]}" for at in second[query][:3])
print(f"\nThe prompt for your LLM:\n\nAnswer from these passages.\n{context}\n\nQuestion: {question}")
