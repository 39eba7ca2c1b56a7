"""The tools rerank and search. Models read these descriptions, so they are short."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated

import anyio.to_thread
from pydantic import BaseModel, ConfigDict, Field

from rerankd.errors import InvalidRequest
from rerankd.mcp_server import folder, search_index
from rerankd.mcp_server.scorer import Answer, Scorer
from rerankd.mcp_server.search_index import Located, SearchIndex

Report = Callable[[str], Awaitable[None]]
"""Tells the client what a call is doing."""

# How many passages the first stage passes on to the model, at most.
CANDIDATES = 50
_MOST_CHUNKS = 8

Query = Annotated[str, Field(description="A question or search terms.")]
ModelName = Annotated[
    str | None, Field(description="Name of a served model. Leave it out for the default model.")
]
Score = Annotated[float | None, Field(description="Relevance from 0 to 1; null if it was not scored.")]


class RerankArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    query: Query
    documents: Annotated[list[str], Field(description="The texts to order.", min_length=1)]
    top_n: Annotated[int | None, Field(description="Return only the best this many.", ge=1)] = None
    model: ModelName = None


class RankedDocument(BaseModel):
    index: Annotated[int, Field(description="Position in documents, counted from 0.")]
    score: Score


class RerankAnswer(BaseModel):
    """The documents, the most relevant first."""

    results: list[RankedDocument]
    model: str
    scored_by: str
    warnings: list[str]


class SearchArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    query: Query
    path: Annotated[
        str, Field(description="Search only this subfolder or file: a relative path, such as docs.")
    ] = ""
    top_n: Annotated[int, Field(description="Return this many passages.", ge=1, le=CANDIDATES)] = 5
    model: ModelName = None


class FoundPassage(BaseModel):
    path: str
    first_line: int
    last_line: int
    score: Score
    text: str


class SkippedFiles(BaseModel):
    reason: str
    count: int
    examples: list[str]


class SearchAnswer(BaseModel):
    """The passages, the most relevant first, and what was searched and skipped."""

    passages: list[FoundPassage]
    searched_files: int
    searched_passages: int
    reranked_passages: int
    skipped: list[SkippedFiles]
    model: str | None
    scored_by: str | None
    warnings: list[str]


class Tools:
    """The tools of one MCP server. `root` is the folder to search."""

    def __init__(self, scorer: Scorer, root: Path | None) -> None:
        self._scorer = scorer
        self._root = root
        self._building = asyncio.Lock()
        self._index: SearchIndex | None = None

    async def rerank(self, asked: RerankArguments, report: Report) -> RerankAnswer:
        """Order texts by their relevance to a query, with a reranker model. Returns positions and scores, the
        best first."""
        answer = await self._ask(asked, asked.documents)
        return RerankAnswer(
            results=[RankedDocument(index=index, score=score) for index, score in _rows(answer)],
            model=answer.value["model"],
            scored_by=answer.scored_by,
            warnings=_warnings(answer),
        )

    async def search(self, asked: SearchArguments, report: Report) -> SearchAnswer:
        """Find the passages of a folder's text files that answer a query: BM25 finds candidates, a reranker
        model orders them. Returns text, path and line numbers, the best first, and what was skipped."""
        if not asked.query.strip():
            raise InvalidRequest("The query is empty. Send a question or search terms.")
        index = await self._built(folder.components(asked.path), report)
        found = index.best(asked.query, CANDIDATES)
        if found:
            await report(f"reranking {len(found)} passages")
            # A passage that is too long for the model is read in parts rather than truncated.
            texts = [one.passage.text for one in found]
            answer = await self._ask(asked, texts, max_chunks_per_doc=_MOST_CHUNKS)
        none = "No passage shares a word with the query. Try other words."
        if not index.passages:
            none = "There is no text to search: see skipped."
        return SearchAnswer(
            passages=[_passage(found[at], score) for at, score in _rows(answer)] if found else [],
            searched_files=len({one.path for one in index.passages}),
            searched_passages=len(index.passages),
            reranked_passages=len(found),
            skipped=[
                SkippedFiles(reason=reason, count=count, examples=some.examples[reason])
                for some in (index.skipped, index.unread)
                for reason, count in some.counts.items()
            ],
            model=answer.value["model"] if found else None,
            scored_by=answer.scored_by if found else None,
            warnings=_warnings(answer) if found else [none],
        )

    async def _ask(
        self, asked: RerankArguments | SearchArguments, documents: Sequence[str], **options: int
    ) -> Answer:
        body = {"query": asked.query, "documents": list(documents), "top_n": asked.top_n, **options}
        return await self._scorer.rerank({**body, "model": asked.model} if asked.model else body)

    async def _built(self, start: tuple[str, ...], report: Report) -> SearchIndex:
        """Return the index of the folder as it is now. One call at a time builds it, the others wait."""
        assert self._root is not None, "search is offered only with a folder"
        async with self._building:
            with contextlib.closing(search_index.build(self._root, start, self._index)) as steps:
                while (step := await anyio.to_thread.run_sync(next, steps)).result is None:
                    await report(f"read {step.read:,} of {step.files:,} files")
            self._index = step.result
            return step.result


def _rows(answer: Answer) -> list[tuple[int, float | None]]:
    unscored = set(answer.value["meta"].get("unscored", ()))
    return [
        (row["index"], None if row["index"] in unscored else row["relevance_score"])
        for row in answer.value["results"]
    ]


def _warnings(answer: Answer) -> list[str]:
    meta = answer.value["meta"]
    return [
        *meta.get("warnings", ()),
        *(f"Document {one['index']} has no score: {one['reason']}" for one in meta.get("errors", ())),
    ]


def _passage(found: Located, score: float | None) -> FoundPassage:
    first, last, text = found.passage
    return FoundPassage(path=found.path, first_line=first, last_line=last, score=score, text=text)
