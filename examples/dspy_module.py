"""DSPy: a module that retrieves and reranks. Start `rerankd serve` first, or set RERANK_URL.

pip install dspy httpx

DSPy has no reranker of its own, so a module calls the server. In a program with an LLM, its passages are the
context of dspy.ChainOfThought("context, question -> answer").
"""

import os

import dspy
import httpx

URL = os.environ.get("RERANK_URL", "http://localhost:11440")
KEY = os.environ.get("RERANKD_API_KEY", "")

CORPUS = [
    "How long is the coast of Norway? It depends on the ruler.",
    "An egg with a soft yolk needs six minutes in boiling water, a hard one ten.",
    "An egg has about 70 calories, most of them in the yolk.",
    "How do I boil water on a mountain? It takes longer, as it is less hot.",
]


class SharedWords(dspy.Module):
    """Passages that share a word with the query; dspy.Embeddings or another retriever takes its place."""

    def forward(self, query: str) -> dspy.Prediction:
        words = set(query.lower().rstrip("?").split())
        return dspy.Prediction(passages=[one for one in CORPUS if words & set(one.lower().split())])


class Reranked(dspy.Module):
    """The best passages of a retriever, in rerankd's order."""

    def __init__(self, retrieve: dspy.Module, k: int = 3) -> None:
        super().__init__()
        self.retrieve = retrieve
        self.k = k

    def forward(self, query: str) -> dspy.Prediction:
        passages = self.retrieve(query=query).passages
        body = {"query": query, "documents": passages, "top_n": self.k}
        headers = {"Authorization": f"Bearer {KEY}"} if KEY else {}
        answer = httpx.post(f"{URL}/v1/rerank", json=body, headers=headers, timeout=60).raise_for_status()
        rows = answer.json()["results"]
        return dspy.Prediction(
            passages=[passages[row["index"]] for row in rows], scores=[row["relevance_score"] for row in rows]
        )


found = Reranked(SharedWords())(query="how long do I boil an egg?")
for score, passage in zip(found.scores, found.passages, strict=True):
    print(f"{score:.3f}  {passage}")
