"""The client of a rerank server over HTTP: rerankd itself, or another one to measure beside it.

Servers speak one of two bodies, at one of a few paths. A server is asked in each of these shapes until it
answers one with scores:

| path | body | who |
|---|---|---|
| /v1/rerank | documents | rerankd, llama-server, vLLM, Jina |
| /rerank | documents | Infinity, vLLM |
| /v2/rerank | documents | Cohere |
| /rerank | texts | Text Embeddings Inference (TEI) |
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from rerankd import network_errors
from rerankd.errors import RemoteError

_PROBE = ("what is a panda?", ("a bear of China", "a kind of bread"))

# What is measured needs a score of each document, whatever budget a rerankd's own settings give requests.
_ALL_SCORES = {b"x-rerank-budget-ms": b"0"}


@dataclass(frozen=True, slots=True)
class Shape:
    """One way to ask: a path, and the body's key for the documents."""

    path: str
    key: str


SHAPES = (
    Shape("/v1/rerank", "documents"),
    Shape("/rerank", "documents"),
    Shape("/v2/rerank", "documents"),
    Shape("/rerank", "texts"),
)


@dataclass(frozen=True, slots=True)
class Scores:
    """A score for each document in the order of the call; and where the server says so, the tokens read and
    the name of the model. `rows` has the place in the answer of each document."""

    values: tuple[float, ...]
    tokens: int | None = None
    model: str | None = None
    rows: tuple[int, ...] = ()

    def order(self) -> list[int]:
        """The places of the documents, the best first. Equal scores keep the answer's order: the server may
        rank by a value that its scores round."""
        rows = self.rows or range(len(self.values))
        return sorted(range(len(self.values)), key=lambda at: (-self.values[at], rows[at]))


def shapes(path: str) -> tuple[Shape, ...]:
    """The shapes to try for a URL with this path: at the path that it names, or at those of SHAPES."""
    if path.rstrip("/").endswith("rerank"):
        return tuple(Shape(path, key) for key in ("documents", "texts"))
    return tuple(Shape(path.rstrip("/").removesuffix("/v1") + shape.path, shape.key) for shape in SHAPES)


def body(shape: Shape, query: str, documents: Sequence[str], model: str | None) -> dict[str, Any]:
    """What to POST. `truncate` is TEI's: without it a text beyond its window is an error there."""
    asked: dict[str, Any] = {"query": query, shape.key: list(documents)}
    if shape.key == "texts":
        asked["truncate"] = True
    if model:
        asked["model"] = model
    return asked


def read(answer: Any, count: int) -> Scores:
    """The scores in an answer to `count` documents. Raises RemoteError."""
    rows = answer.get("results") if isinstance(answer, dict) else answer
    values = [math.nan] * count
    places = [0] * count
    try:
        for place, row in enumerate(rows or ()):
            places[row["index"]] = place
            values[row["index"]] = float(row["relevance_score"] if "relevance_score" in row else row["score"])
        facts = answer if isinstance(answer, dict) else {}
        usage = facts.get("usage")
        known = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0) if usage else 0
        tokens = usage["prompt_tokens"] - known if usage else None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise RemoteError(f"The answer has no scores that can be read ({error!r}).") from None
    if len(rows or ()) != count or any(math.isnan(value) for value in values):
        raise RemoteError(f"The answer leaves out scores of {count} documents.")
    return Scores(tuple(values), tokens, facts.get("model"), tuple(places))


class Remote:
    """One server. `model` goes into each request, for servers that ask for one. An async context manager,
    which finds the server's shape, and what it says it serves, at its start; raises RemoteError."""

    def __init__(
        self, url: str, *, api_key: str | None = None, model: str | None = None, timeout_s: float = 600
    ) -> None:
        self.url = url if "://" in url else f"http://{url}"
        self.model = model
        self.served: str | None = None
        self.shape = SHAPES[0]
        # TEI takes so many texts in a request; a client of it sends the rest in others at the same time.
        self.most_documents: int | None = None
        try:
            self._http = network_errors.async_client(
                headers=_ALL_SCORES | ({b"authorization": f"Bearer {api_key}".encode()} if api_key else {}),
                timeout=timeout_s,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
                # A proxy of the environment is for the hosts of other networks.
                trust_env=not network_errors.is_near(httpx.URL(self.url).host),
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise RemoteError(f"{self.url} can't be asked: {error}.") from error

    async def __aenter__(self) -> Remote:
        try:
            await self._find()
        except BaseException:
            await self._http.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def rerank(self, query: str, documents: Sequence[str]) -> Scores:
        """The scores of one request."""
        most = self.most_documents or len(documents)
        if len(documents) <= most:
            return await self._ask(self.shape, query, documents)
        parts = await asyncio.gather(
            *(
                self._ask(self.shape, query, documents[at : at + most])
                for at in range(0, len(documents), most)
            )
        )
        return Scores(tuple(value for part in parts for value in part.values))

    async def _find(self) -> None:
        refusals = []
        for shape in shapes(httpx.URL(self.url).path):
            try:
                self.served = (await self._ask(shape, *_PROBE)).model
            except RemoteError as error:
                refusals.append(f"  {shape.path} with {shape.key}: {error.message}")
                continue
            self.shape = shape
            if shape.key == "texts":
                self.most_documents = await self._tei_bound()
            return
        raise RemoteError(
            f"{self.url} answers no rerank request that is known here. Name the whole address of its "
            "endpoint, such as http://HOST:PORT/v1/rerank.\n" + "\n".join(refusals)
        )

    async def _tei_bound(self) -> int | None:
        try:
            answer = (await self._http.get(httpx.URL(self.url).join("/info"))).json()
        except network_errors.ERRORS:
            return None
        bound = answer.get("max_client_batch_size") if isinstance(answer, dict) else None
        return bound if isinstance(bound, int) and bound > 0 else None

    async def _ask(self, shape: Shape, query: str, documents: Sequence[str]) -> Scores:
        url = httpx.URL(self.url).copy_with(path=shape.path)
        try:
            answer = await self._http.post(url, json=body(shape, query, documents, self.model))
        except network_errors.ERRORS as error:
            raise RemoteError(f"{self.url} did not answer: {network_errors.explain(error)}.") from None
        if answer.status_code != 200:
            raise RemoteError(f"{self.url} answered {answer.status_code}: {answer.text[:300]}")
        try:
            value = answer.json()
        except ValueError:
            raise RemoteError(f"{self.url} answered something that is not JSON.") from None
        return read(value, len(documents))
