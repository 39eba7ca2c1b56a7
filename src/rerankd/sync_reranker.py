"""The Reranker for programs without an event loop.

with SyncReranker() as reranker:
    result = reranker.rerank("what is a panda?", ["a bear of China", "a kind of bread"])
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NoReturn, Self, TypeVar

from rerankd.config import Settings
from rerankd.content import Content
from rerankd.embedding import EmbedResult
from rerankd.engine_owner import check_process
from rerankd.errors import Misuse
from rerankd.rerank_result import RerankResult
from rerankd.service import Reranker
from rerankd.serving.prepare_model import Model

T = TypeVar("T")


class SyncReranker:
    """A Reranker with its own event loop in its own thread. Threads may share it.

    Use it as a context manager, or call `start` and `close`. It belongs to the process that started it, and
    can be started once. `rerank` and `run` raise Misuse in another process, before the start, and after
    `close`.
    """

    def __init__(
        self, settings: Settings | None = None, *, prepared: Sequence[Model] = (), **overrides: Any
    ) -> None:
        self._reranker = Reranker(settings, prepared=prepared, **overrides)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._is_closed = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("A SyncReranker can't be sent to another process. Start one in each process.")

    def start(self) -> None:
        """Start the engines, and wait until the preloaded models are ready. Raises Misuse if it was started
        before, and the first model's error if no model can be served."""
        if self._is_closed:
            raise Misuse("This SyncReranker is closed and can't be restarted. Create a new one.")
        if self._pid:
            check_process(self._pid)
            raise Misuse("This SyncReranker is already started. Start it once and share it.")
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        # The engine exits with the thread that started it, so this thread lives as long as the engine.
        self._thread = threading.Thread(target=self._loop.run_forever, name="rerankd", daemon=True)
        self._thread.start()
        try:
            self._call(self._reranker.start())
        except BaseException:
            self._end()
            raise

    def close(self) -> None:
        """Stop the engines. Safe to call again. In a forked process it does nothing, because the engines
        belong to the parent."""
        if self._is_closed or self._pid not in (0, os.getpid()):
            return
        if self._pid:
            self._call(self._reranker.close())
            self._end()
        self._is_closed = True

    def rerank(self, query: Content, documents: Sequence[Content], **options: Any) -> RerankResult:
        """Rank `documents` by relevance to `query`. `options` are RerankRequest's fields."""
        return self.run(lambda reranker: reranker.rerank(query, documents, **options))

    def embed(self, texts: Sequence[str], **options: Any) -> EmbedResult:
        """Return the vectors of texts. `options` are EmbedRequest's fields."""
        return self.run(lambda reranker: reranker.embed(texts, **options))

    def run(self, work: Callable[[Reranker], Coroutine[Any, Any, T]]) -> T:
        """Call `work` with the Reranker, in its event loop, and return what it returns."""
        if self._is_closed:
            raise Misuse("This SyncReranker is closed. Use it inside its block, or create a new one.")
        if not self._pid:
            raise Misuse(
                "This SyncReranker has not been started. Use `with SyncReranker() as reranker:`, or call "
                "start() first and close() at the end."
            )
        check_process(self._pid)
        return self._call(work(self._reranker))

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None, "started"
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end(self) -> None:
        assert self._loop is not None and self._thread is not None, "started"
        self._is_closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
