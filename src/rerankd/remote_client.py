"""HTTP client for rerank servers: rerankd itself, or another server to compare it with.

Servers accept one of two request bodies at one of a few paths. The client tries these until the server
returns scores:

| path | body | servers |
|---|---|---|
| /v1/rerank | documents | rerankd, llama-server, vLLM, Jina |
| /rerank | documents | Infinity, vLLM |
| /v2/rerank | documents | Cohere |
| /rerank | texts | Text Embeddings Inference (TEI) |
"""

from __future__ import annotations

import asyncio
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from rerankd import network_errors
from rerankd.errors import RemoteError

PROBE = ("what is a panda?", ("a bear of China", "a kind of bread"))

# Disables the time budget that a rerankd server may have in its settings: every document needs a score.
_ALL_SCORES = {b"x-rerank-budget-ms": b"0"}


@dataclass(frozen=True, slots=True)
class Shape:
    """A request format: the path, and the name of the documents in the body."""

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
    """The score of each document, in the order of the call.

    `tokens` and `model` are set if the server reports them. `rows` has the position of each document in the
    response.
    """

    values: tuple[float, ...]
    tokens: int | None = None
    model: str | None = None
    rows: tuple[int, ...] = ()

    def order(self) -> list[int]:
        """Return the document indexes, the best first.

        Equal scores keep the order of the response, because the server may rank by values that it rounds.
        """
        rows = self.rows or range(len(self.values))
        return sorted(range(len(self.values)), key=lambda at: (-self.values[at], rows[at]))


def shapes(path: str) -> tuple[Shape, ...]:
    """Return the shapes to try for a URL path: only this path if it ends with rerank, else those of
    SHAPES."""
    if path.rstrip("/").endswith("rerank"):
        return tuple(Shape(path, key) for key in ("documents", "texts"))
    return tuple(Shape(path.rstrip("/").removesuffix("/v1") + shape.path, shape.key) for shape in SHAPES)


def body(shape: Shape, query: str, documents: Sequence[str], model: str | None) -> dict[str, Any]:
    """Return the request body. TEI needs `truncate`, or a text that is too long is an error."""
    sent: dict[str, Any] = {"query": query, shape.key: list(documents)}
    if shape.key == "texts":
        sent["truncate"] = True
    if model:
        sent["model"] = model
    return sent


def rows(answer: Any, count: int) -> list[tuple[int, float]]:
    """Return the document index and the score of each row of a response for `count` documents, in its order.
    No index occurs twice. Raises RemoteError."""
    sent = answer.get("results") if isinstance(answer, dict) else answer
    try:
        found = [
            (
                operator.index(row["index"]),
                float(row["relevance_score"] if "relevance_score" in row else row["score"]),
            )
            for row in sent or ()
        ]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise RemoteError(f"The response has no valid scores ({error!r}).") from None
    indexes = {index for index, _ in found}
    if len(indexes) < len(found) or not all(0 <= index < count for index in indexes):
        raise RemoteError(f"The response has wrong document indexes for {count} documents.")
    if not all(math.isfinite(score) for _, score in found):
        raise RemoteError("The response has a score that is not a finite number.")
    return found


def tei_bound(info: Any) -> int | None:
    """Return the most texts of one request, by the server's /info; None if it does not tell."""
    bound = info.get("max_client_batch_size") if isinstance(info, dict) else None
    return bound if isinstance(bound, int) and bound > 0 else None


def read(answer: Any, count: int) -> Scores:
    """Return the scores in a response for `count` documents. Raises RemoteError."""
    found = rows(answer, count)
    if len(found) != count:
        raise RemoteError(f"The response does not have a score for each of the {count} documents.")
    values, places = [0.0] * count, [0] * count
    for place, (index, score) in enumerate(found):
        values[index], places[index] = score, place
    facts = answer if isinstance(answer, dict) else {}
    tokens, cached = usage(facts)
    model = facts.get("model")
    return Scores(
        tuple(values),
        None if tokens is None else tokens - cached,
        model if isinstance(model, str) else None,
        tuple(places),
    )


def usage(facts: Mapping[str, Any]) -> tuple[int | None, int]:
    """Return the tokens of the whole request, None if the response does not tell, and how many of them were
    cached. Raises RemoteError."""
    try:
        sent = facts.get("usage")
        if not sent:
            return None, 0
        cached = (sent.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        tokens, cached_tokens = operator.index(sent["prompt_tokens"]), operator.index(cached)
        if not 0 <= cached_tokens <= tokens:
            raise ValueError(f"{cached_tokens} of {tokens} tokens are cached")
        return tokens, cached_tokens
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RemoteError(f"The response has no valid number of tokens ({error!r}).") from None


class Remote:
    """A client for one server, as an async context manager.

    `model` is sent with each request if it is set. On entry, the client finds the server's request format
    (`shape`) and the name of its model (`served`). Raises RemoteError.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, model: str | None = None, timeout_s: float = 600
    ) -> None:
        self.url = url if "://" in url else f"http://{url}"
        self.model = model
        self.served: str | None = None
        self.shape = SHAPES[0]
        # The most texts that TEI accepts in one request; more are sent as several parallel requests.
        self.most_documents: int | None = None
        try:
            self._http = network_errors.async_client(
                headers=_ALL_SCORES | ({b"authorization": f"Bearer {api_key}".encode()} if api_key else {}),
                timeout=timeout_s,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
                # Proxies from the environment are used only for hosts outside the local network.
                trust_env=not network_errors.is_near(httpx.URL(self.url).host),
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise RemoteError(f"{self.url} can't be used: {error}.") from error

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
        """Return the scores of the documents for a query."""
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
                self.served = (await self._ask(shape, *PROBE)).model
            except RemoteError as error:
                refusals.append(f"  {shape.path} with {shape.key}: {error.message}")
                continue
            self.shape = shape
            if shape.key == "texts":
                self.most_documents = await self._tei_bound()
            return
        raise RemoteError(
            f"{self.url} accepts none of the known rerank requests. Give the full URL of its rerank "
            "endpoint, such as http://HOST:PORT/v1/rerank.\n" + "\n".join(refusals)
        )

    async def _tei_bound(self) -> int | None:
        try:
            answer = (await self._http.get(httpx.URL(self.url).join("/info"))).json()
        except network_errors.ERRORS:
            return None
        return tei_bound(answer)

    async def _ask(self, shape: Shape, query: str, documents: Sequence[str]) -> Scores:
        url = httpx.URL(self.url).copy_with(path=shape.path)
        try:
            answer = await self._http.post(url, json=body(shape, query, documents, self.model))
        except network_errors.ERRORS as error:
            raise RemoteError(f"The request to {self.url} failed: {network_errors.explain(error)}.") from None
        if answer.status_code != 200:
            raise RemoteError(f"{self.url} returned {answer.status_code}: {answer.text[:300]}")
        try:
            value = answer.json()
        except ValueError:
            raise RemoteError(f"The response of {self.url} is not JSON.") from None
        return read(value, len(documents))
