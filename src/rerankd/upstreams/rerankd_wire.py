"""(pure) Requests to another rerankd and its responses: every option and every field goes through.

The path /jina/v1/rerank selects the dialect whatever the body contains, and /v1/embeddings sends vectors as
float32. Documents are never requested back: this server has them.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import operator
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from rerankd import onward, remote_client
from rerankd.client import Client
from rerankd.content import Content, Image, Part
from rerankd.domain import RerankRequest
from rerankd.embedding import EmbedRequest, EmbedResult, TokenIds, Vectors
from rerankd.errors import RemoteError
from rerankd.rerank_result import DocumentError, RerankResult, ScoredDocument, StageResult
from rerankd.scoring import image_header

RERANK_PATH = "/jina/v1/rerank"
EMBED_PATH = "/v1/embeddings"
# Options that are sent under their own name if they differ from the default.
_OPTIONS = (
    *("top_n", "instruction", "max_tokens_per_doc", "overlap_tokens", "max_chunks_per_doc", "truncate"),
    *("raw_scores", "score_threshold", "max_tokens_per_query", "truncate_query", "truncate_at", "budget_ms"),
    *("max_scored_documents", "priority"),
)


def client_headers(client: Client) -> dict[str, str]:
    """The client's name, for a server that trusts this one. Header values are ASCII."""
    return {onward.CLIENT_HEADER: quote(client.name), onward.WEIGHT_HEADER: f"{client.weight:g}"}


def rerank_body(model: str, request: RerankRequest) -> bytes:
    """The body of a request to a model under the name that the server gives it."""
    body: dict[str, Any] = {"model": model, "query": _content(request.query)}
    body["documents"] = [_content(one) for one in request.documents]
    for name in _OPTIONS:
        value = getattr(request, name)
        if value is not None and value != RerankRequest.__dataclass_fields__[name].default:
            body[name] = value
    if request.max_tokens_per_pair:
        body["truncate_prompt_tokens"] = request.max_tokens_per_pair
    if request.keep_alive_s is not None:
        body["keep_alive"] = _keep_alive(request.keep_alive_s)
    return encoded(body)


def _keep_alive(seconds: float) -> float:
    return -1 if math.isinf(seconds) else seconds


def encoded(body: Any) -> bytes:
    """JSON, in UTF-8 where that is possible: a text may have lone surrogates."""
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(body, separators=(",", ":")).encode()


def _content(content: Content) -> Any:
    if isinstance(content, str):
        return content
    return {"content": [_part(one) for one in content.parts]}


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Image):
        return {"type": "image_url", **({"image_url": {"url": part.url}} if part.url else {})}
    data = base64.b64encode(part.data).decode()
    return {"type": "image_url", "image_url": {"url": f"data:{_media_type(part.data)};base64,{data}"}}


def _media_type(data: bytes) -> str:
    try:
        return f"image/{image_header.read(data).format.lower()}"
    except image_header.BadImage:
        return "application/octet-stream"


def rerank_result(name: str, request: RerankRequest, answer: Any, headers: Mapping[str, str]) -> RerankResult:
    """The result in a response. `name` is the model's name in the result. Raises RemoteError for a response
    that is not one to this request."""
    count = len(request.documents)
    rows = remote_client.rows(answer, count)
    expected = min(request.top_n or count, count)
    if len(rows) > expected or (len(rows) < expected and request.score_threshold is None):
        raise RemoteError(f"The response has {len(rows)} rows, but must have {expected}.")
    tokens, cached_tokens = remote_client.usage(answer)
    try:
        meta = answer["meta"]
        return RerankResult(
            model=name,
            results=tuple(ScoredDocument(index, score) for index, score in rows),
            tokens=(tokens or 0) - cached_tokens,
            normalization=str(meta["normalization"]),
            warnings=tuple(map(str, meta.get("warnings", ()))),
            truncated=_indexes(meta, "cut", count),
            blank=_indexes(meta, "blank", count),
            errors=tuple(
                DocumentError(operator.index(one["index"]), str(one["reason"]))
                for one in meta.get("errors", ())
            ),
            unscored=_indexes(meta, "unscored", count),
            cached=_count(meta, "cached"),
            cached_tokens=cached_tokens,
            queue_s=_seconds(headers, "x-rerankd-queue-ms"),
            engine_s=_seconds(headers, "x-rerankd-engine-ms"),
            divisor=operator.index(meta.get("divisor", 1)),
            stages=tuple(map(_stage, meta.get("stages", ()))),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RemoteError(f"The response has no valid data about its scores ({error!r}).") from None


def _indexes(meta: Mapping[str, Any], name: str, count: int) -> tuple[int, ...]:
    found = tuple(map(operator.index, meta.get(name, ())))
    if not all(0 <= index < count for index in found):
        raise ValueError(f"{name} has an index that no document has")
    return found


def _count(row: Mapping[str, Any], name: str) -> int:
    count = operator.index(row.get(name, 0))
    if count < 0:
        raise ValueError(f"{name} is negative")
    return count


def _seconds(headers: Mapping[str, str], name: str) -> float:
    seconds = float(headers.get(name, 0)) / 1000
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name} is not a duration")
    return seconds


def _stage(row: Mapping[str, Any]) -> StageResult:
    return StageResult(
        model=str(row["model"]),
        documents=_count(row, "documents"),
        scored=_count(row, "scored"),
        skipped=_count(row, "skipped"),
        tokens=_count(row, "tokens"),
        cached=_count(row, "cached"),
        queue_s=float(row.get("queue_ms", 0)) / 1000,
        engine_s=float(row.get("engine_ms", 0)) / 1000,
        total_s=float(row["ms"]) / 1000,
        error=str(row.get("error", "")),
    )


def embed_body(model: str, request: EmbedRequest) -> bytes:
    """The body of a request for vectors."""
    body: dict[str, Any] = {
        "model": model,
        "input": [one.ids.tolist() if isinstance(one, TokenIds) else one for one in request.texts],
        "encoding_format": "base64",
    }
    if request.input_type is not None:
        body["input_type"] = request.input_type
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    if not request.truncate:
        body["truncate"] = False
    if not request.normalize:
        body["normalize"] = False
    if request.keep_alive_s is not None:
        body["keep_alive"] = _keep_alive(request.keep_alive_s)
    return encoded(body)


def embed_result(name: str, request: EmbedRequest, answer: Any) -> EmbedResult:
    """The vectors in a response. `name` is the model's name in the result. Raises RemoteError."""
    count = len(request.texts)
    try:
        rows = sorted(answer["data"], key=operator.itemgetter("index"))
        if [row["index"] for row in rows] != list(range(count)):
            raise RemoteError(f"The response does not have a vector for each of the {count} texts.")
        vectors = vectors_of([base64.b64decode(row["embedding"], validate=True) for row in rows])
        tokens, cached_tokens = remote_client.usage(answer)
        return EmbedResult(
            model=name,
            vectors=vectors,
            tokens=tokens or 0,
            cached_tokens=cached_tokens,
            truncated=_indexes(answer, "truncated", count),
            warnings=tuple(map(str, answer.get("warnings", ()))),
        )
    except (AttributeError, KeyError, TypeError, ValueError, binascii.Error) as error:
        raise RemoteError(f"The response has no valid vectors ({error!r}).") from None


def vectors_of(rows: list[bytes]) -> Vectors:
    """Vectors from the bytes of each one, float32, little-endian. Raises ValueError."""
    found: Vectors = np.frombuffer(b"".join(rows), np.dtype("<f4")).astype(np.float32, copy=False)
    widths = {len(row) for row in rows}
    if len(widths) != 1 or not found.size or not np.isfinite(found).all():
        raise ValueError("vectors of different lengths, or with numbers that are not finite")
    return found.reshape(len(rows), -1)
