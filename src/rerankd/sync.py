"""The Reranker for programs without an event loop.

with SyncReranker() as reranker:
    result = reranker.rerank("what is a panda?", ["a bear of China", "a kind of bread"])
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from rerankd.config import Settings
from rerankd.domain import RerankResult
from rerankd.prepare import Model
from rerankd.service import Reranker

T = TypeVar("T")


class SyncReranker:
    """A Reranker on an event loop of its own, in a thread of its own; may be shared between threads."""

    def __init__(
        self, settings: Settings | None = None, *, prepared: Sequence[Model] = (), **overrides: Any
    ) -> None:
        self._reranker = Reranker(settings, prepared=prepared, **overrides)
        self._loop = asyncio.new_event_loop()
        # The engine is tied to the thread that started it, so this one lives as long as the engine.
        self._thread = threading.Thread(target=self._loop.run_forever, name="rerankd", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._call(self._reranker.__aenter__())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._reranker.close())
        self._end()

    def rerank(self, query: str, documents: Sequence[str], **options: Any) -> RerankResult:
        """Order `documents` by how well they answer `query`; `options` are RerankRequest's fields."""
        return self._call(self._reranker.rerank(query, documents, **options))

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
