"""Shared by the tests of the clients: the server and the request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

QUERY = "What is the capital of the United States?"
DOCUMENTS = [
    "Carson City is the capital city of the American state of Nevada.",
    "The Commonwealth of the Northern Mariana Islands is a group of islands in the Pacific Ocean.",
    "Washington, D.C. is the capital of the United States. It is a federal district.",
    "华盛顿哥伦比亚特区是美国的首都。",
]


@dataclass(frozen=True)
class Server:
    """A running server: its root URL without a path, and its API key, empty if it needs none."""

    url: str
    key: str

    def client(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=30)

    def rows(self, query: str = QUERY, documents: list[str] = DOCUMENTS) -> list[tuple[int, float]]:
        """Return the server's own scores, which a client must get too: (index, score), best first."""
        with self.client() as http:
            answer = http.post("/v1/rerank", json={"query": query, "documents": documents})
        answer.raise_for_status()
        return [(row["index"], row["relevance_score"]) for row in answer.json()["results"]]


StartServer = Callable[..., Server]
Run = Callable[..., Any]
