"""(pure) Requests to servers other than rerankd, in the shapes of remote_client.py, and their responses.

Such a server scores texts and no more. What else a request asks for is done here where that is exact: each
distinct text is sent once, blank documents are ranked last, `top_n`, `score_threshold` and
`max_scored_documents` hold. Any other option that the shape has no field for causes a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rerankd import embedding, remote_client
from rerankd.domain import RerankRequest
from rerankd.embedding import EmbedRequest, EmbedResult, Vectors
from rerankd.errors import InvalidRequest, RemoteError
from rerankd.remote_client import Scores, Shape
from rerankd.rerank_result import RerankResult, ScoredDocument
from rerankd.scoring import deduplicate
from rerankd.scoring.deduplicate import UniqueTexts
from rerankd.scoring.result import Scored

NORMALIZATION = "as the upstream server normalizes"
"""The normalization in a result: nothing is known about the scores but their order."""
EMBED_PATH = "/embed"

_HERE = (
    *("query", "documents", "model", "top_n", "return_documents", "score_threshold", "max_scored_documents"),
    *("warnings", "has_images"),
)


@dataclass(frozen=True, slots=True)
class Call:
    """The requests for one rerank request, of at most the server's number of texts each."""

    texts: UniqueTexts
    bodies: tuple[dict[str, Any], ...]
    sizes: tuple[int, ...]
    warnings: tuple[str, ...]


def rerank_call(
    server: str, shape: Shape, most: int | None, model: str | None, request: RerankRequest
) -> Call:
    """What to send for a request. Raises InvalidRequest for images."""
    if request.has_images or not isinstance(request.query, str):
        raise InvalidRequest(
            f"The request has images, and the upstream server {server} is no rerankd: only texts can be sent "
            "to it. Remove the images."
        )
    documents = [one for one in request.documents if isinstance(one, str)]
    texts = deduplicate.unique_texts(documents, request.max_scored_documents or None)
    sent = [one for one in texts.texts if isinstance(one, str)]
    parts = _parts(sent, most)
    more: dict[str, Any] = {}
    own = _own(shape)
    if "truncate" in own:
        more["truncate"] = request.truncate
    if "raw_scores" in own and request.raw_scores:
        more["raw_scores"] = True
    if "max_tokens_per_doc" in own and request.max_tokens_per_doc:
        more["max_tokens_per_doc"] = request.max_tokens_per_doc
    bodies = tuple(remote_client.body(shape, request.query, part, model) | more for part in parts)
    return Call(texts, bodies, tuple(map(len, parts)), tuple(_ignored(server, own, request)))


def _parts(texts: list[str], most: int | None) -> list[list[str]]:
    size = most or max(len(texts), 1)
    return [texts[at : at + size] for at in range(0, len(texts), size)]


def _own(shape: Shape) -> tuple[str, ...]:
    """The options that servers of a shape know for certain."""
    if shape.key == "texts":
        return ("truncate", "raw_scores")
    return ("max_tokens_per_doc",) if shape.path.endswith("/v2/rerank") else ()


def _ignored(server: str, own: Sequence[str], request: RerankRequest) -> Iterator[str]:
    for name, field in RerankRequest.__dataclass_fields__.items():
        value = getattr(request, name)
        is_no_limit = name == "budget_ms" and value == 0
        if name not in (*_HERE, *own) and value != field.default and not is_no_limit:
            yield f"{name!r} was ignored: the upstream server {server} does not support it."
    if request.score_threshold is not None and "raw_scores" in own and request.raw_scores:
        yield f"'score_threshold' was ignored: the upstream server {server} returned raw scores."


def rerank_result(
    name: str, shape: Shape, request: RerankRequest, call: Call, answers: Sequence[Any]
) -> RerankResult:
    """The result in the responses to a call. `name` is the model's name in it. Raises RemoteError."""
    parts = [remote_client.read(one, size) for one, size in zip(answers, call.sizes, strict=True)]
    values = [value for part in parts for value in part.values]
    order = Scores(tuple(values), rows=parts[0].rows if len(parts) == 1 else ()).order()
    place = {text: at for at, text in enumerate(order)}
    lowest = min(0.0, *values) if values else 0.0
    ranked = sorted(
        range(len(request.documents)),
        key=lambda at: len(order) if (text := call.texts.text_index[at]) is None else place[text],
    )
    is_raw = request.raw_scores and "raw_scores" in _own(shape)
    rows = [
        ScoredDocument(at, lowest if (text := call.texts.text_index[at]) is None else values[text])
        for at in ranked
    ]
    if request.score_threshold is not None and not is_raw:
        rows = [row for row in rows if row.score >= request.score_threshold]
    texts = call.texts
    left_out = Scored(texts, raw=(), errors={}, unscored=texts.unscored)
    return RerankResult(
        model=name,
        results=tuple(rows[: request.top_n or None]),
        tokens=sum(part.tokens or 0 for part in parts),
        normalization="raw" if is_raw else NORMALIZATION,
        warnings=(*call.warnings, *left_out.warnings()),
        blank=texts.blank,
        unscored=texts.unscored,
    )


def embed_call(
    server: str, most: int | None, request: EmbedRequest
) -> tuple[list[dict[str, Any]], list[str]]:
    """What to send to Text Embeddings Inference for vectors, and warnings. Raises InvalidRequest for token
    ids. Vectors are shortened and scaled here."""
    texts = [one for one in request.texts if isinstance(one, str)]
    if len(texts) < len(request.texts):
        raise InvalidRequest(
            f"The request has token ids, and the upstream server {server} is no rerankd. Send texts."
        )
    bodies = [
        {"inputs": part, "truncate": request.truncate, "normalize": False} for part in _parts(texts, most)
    ]
    ignored = [
        f"{name!r} was ignored: the upstream server {server} does not support it."
        for name in ("input_type", "keep_alive_s")
        if getattr(request, name) is not None
    ]
    return bodies, ignored


def embed_result(
    name: str, request: EmbedRequest, answers: Sequence[Any], warnings: Sequence[str]
) -> EmbedResult:
    """The vectors in the responses to `embed_call`. Raises RemoteError, and InvalidRequest if they are
    shorter than the request wants."""
    try:
        rows = [row for answer in answers for row in answer]
        vectors: Vectors = np.array(rows, np.float32)
    except (TypeError, ValueError) as error:
        raise RemoteError(f"The response has no valid vectors ({error!r}).") from None
    if vectors.ndim != 2 or len(vectors) != len(request.texts) or not np.isfinite(vectors).all():
        raise RemoteError(f"The response does not have a vector for each of the {len(request.texts)} texts.")
    return EmbedResult(name, embedding.finished(vectors, request), tokens=0, warnings=tuple(warnings))
