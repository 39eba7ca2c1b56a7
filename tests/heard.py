"""A Reranker without a model. It records the requests, and scores a fixed number of documents."""

from __future__ import annotations

from collections.abc import Sequence

from rerankd.client import ANONYMOUS, Client
from rerankd.config import Settings
from rerankd.content import text_of
from rerankd.domain import RerankRequest
from rerankd.rerank_result import RerankResult, ScoredDocument
from rerankd.service import Reranker
from rerankd.serving.pending_model import PendingModel


class Heard(Reranker):
    """Answers as if the time budget had ended after the first documents, whose scores are `scores`."""

    def __init__(self, settings: Settings, scores: Sequence[float] = (0.9,)) -> None:
        super().__init__(settings)
        self.scores = scores
        self.asked: list[tuple[RerankRequest, Client]] = []
        (wanted,) = settings.wanted("tiny")
        self.registry.entries = (PendingModel(wanted, ("tiny",)),)

    async def answer_all(
        self,
        requests: Sequence[RerankRequest],
        *,
        timeout_s: float | None = None,
        client: Client = ANONYMOUS,
    ) -> list[RerankResult]:
        self.asked += [(request, client) for request in requests]
        return [self._answered(request) for request in requests]

    def _answered(self, request: RerankRequest) -> RerankResult:
        texts = request.documents
        scores = [*self.scores, *[0.0] * len(texts)][: len(texts)]
        rows = [
            ScoredDocument(at, scores[at], text_of(texts[at]) if request.return_documents else None)
            for at in range(len(texts))
        ]
        return RerankResult(
            model="tiny",
            results=tuple(rows[: request.top_n or None]),
            tokens=9,
            normalization="sigmoid",
            unscored=tuple(range(len(self.scores), len(texts))),
        )
