"""The engine of an actor, which ends with it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from rerankd.bulk.row_scorer import Kind, RowScorer
from rerankd.config import Settings
from rerankd.service import Reranker
from rerankd.serving.prepare_model import prepare
from rerankd.sync_reranker import SyncReranker

T = TypeVar("T")


class ActorEngine:
    """A model with an engine, in this process. Threads may share it; the requests of all of them fill the
    engine together.

    The engine ends when this object is deleted, and with the process, however that ends.
    """

    def __init__(self, settings: Settings, kind: Kind) -> None:
        """Load the first model of the settings; download it if it is missing. Raises the errors of the model,
        its download and its engine."""
        self.model = prepare(settings)
        self._reranker = SyncReranker(settings, prepared=[self.model])
        self._reranker.start()
        weakref.finalize(self, self._reranker.close)

        async def scorer(reranker: Reranker) -> RowScorer:
            return RowScorer(reranker, kind)

        self._scorer = self._reranker.run(scorer)

    def run(self, work: Callable[[RowScorer], Coroutine[Any, Any, T]]) -> T:
        """Return what `work` returns."""
        return self._reranker.run(lambda _: work(self._scorer))
