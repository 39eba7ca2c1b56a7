"""Send one request to one server, in the server's shape, and read the response."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rerankd import onward, tracing
from rerankd.client import Client
from rerankd.domain import RerankRequest
from rerankd.embedding import EmbedRequest, EmbedResult
from rerankd.errors import EngineError, InvalidRequest, RemoteError
from rerankd.rerank_result import RerankResult
from rerankd.upstreams import other_wire, rerankd_wire
from rerankd.upstreams.connection import Connection, Response
from rerankd.upstreams.discovery import Kind, Served
from rerankd.upstreams.refusals import TryAnother, error_of

T = TypeVar("T")

# The most bytes of a response: for a row with its index and score, with a reason why it has none, and for a
# vector of 16,384 numbers in base64, or of 6,000 in decimals.
_ROW_BYTES = 2**10
_VECTOR_BYTES = 2**17
_OTHER_BYTES = 2**21


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls for one request. `server` is the server's name, `base` its path; `identity` is that of the
    server that asks. All raise TryAnother, and the errors that every server would raise."""

    server: str
    base: str
    kind: Kind
    connection: Connection
    identity: str
    timeout_s: float
    client: Client

    async def rerank(self, model: Served, name: str, request: RerankRequest) -> RerankResult:
        """Answer a request with a model of this server; `name` is its name in the result."""
        shape, most = self.kind.shape, _OTHER_BYTES + _ROW_BYTES * len(request.documents)
        if shape is None:
            body = rerankd_wire.rerank_body(model.names[0], request)
            answer = await self._send(f"{self.base}{rerankd_wire.RERANK_PATH}", body, most)
            return self._read(
                lambda: rerankd_wire.rerank_result(name, request, json.loads(answer.data), answer.headers)
            )
        if model.is_embedder:
            raise InvalidRequest(
                f"{name} is an embedding model on an upstream server that is no rerankd, so it can't rank "
                "documents. Request a reranker."
            )
        call = other_wire.rerank_call(self.server, shape, self.kind.most, model.names[0], request)
        answers = await self._send_all(shape.path, call.bodies, most)
        return self._read(
            lambda: other_wire.rerank_result(
                name, shape, request, call, [json.loads(one.data) for one in answers]
            )
        )

    async def embed(self, model: Served, name: str, request: EmbedRequest) -> EmbedResult:
        """Return the vectors of texts."""
        most = _OTHER_BYTES + _VECTOR_BYTES * len(request.texts)
        if self.kind.shape is None:
            body = rerankd_wire.embed_body(model.names[0], request)
            answer = await self._send(f"{self.base}{rerankd_wire.EMBED_PATH}", body, most)
            return self._read(lambda: rerankd_wire.embed_result(name, request, json.loads(answer.data)))
        if not model.is_embedder:
            raise InvalidRequest(f"{name} is no embedding model. Request one to get vectors.")
        bodies, warnings = other_wire.embed_call(self.server, self.kind.most, request)
        answers = await self._send_all(f"{self.base}{other_wire.EMBED_PATH}", bodies, most)
        return self._read(
            lambda: other_wire.embed_result(
                name, request, [json.loads(one.data) for one in answers], warnings
            )
        )

    async def _send_all(self, path: str, bodies: Sequence[Any], most_bytes: int) -> list[Response]:
        """The responses to several parts of a request; the first error ends the other calls."""
        sent = [
            asyncio.ensure_future(self._send(path, rerankd_wire.encoded(one), most_bytes)) for one in bodies
        ]
        try:
            return await asyncio.gather(*sent)
        finally:
            for one in sent:
                one.cancel()
            await asyncio.gather(*sent, return_exceptions=True)

    async def _send(self, path: str, body: bytes, most_bytes: int) -> Response:
        answer = await self.connection.send(
            "POST", path, body=body, headers=self._headers(), most_bytes=most_bytes
        )
        if answer.status != 200:
            raise error_of(self.server, answer.status, answer.headers, answer.data)
        return answer

    def _headers(self) -> dict[str, str]:
        origin = onward.current()
        trace = tracing.current()
        found = {} if trace is None else dict(trace.onward())
        if origin.request_id:
            found["x-request-id"] = origin.request_id
        if self.kind.shape is None:
            found["x-request-timeout"] = f"{self.timeout_s:.3f}"
            found[onward.PASSED_HEADER] = " ".join((*origin.passed, self.identity))
            found |= rerankd_wire.client_headers(self.client)
        return found

    def _read(self, read: Callable[[], T]) -> T:
        """What `read` returns of a response. A response that is none of this request is a server's fault."""
        try:
            return read()
        except RemoteError as error:
            reason = error.message
        except (ValueError, RecursionError):
            reason = "The response is not JSON."
        raise TryAnother(
            EngineError(f"The upstream server {self.server} returned an invalid response. {reason}")
        )
