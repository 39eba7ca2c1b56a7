"""What a request must satisfy before it is admitted, and the error of one that took too long."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence, Sized

from rerankd.config import Settings
from rerankd.domain import RerankRequest
from rerankd.errors import EngineError, EngineTimeout, EngineUnavailable, InvalidRequest
from rerankd.metrics import Metrics
from rerankd.scoring import deduplicate
from rerankd.serving.model_names import AnyModel
from rerankd.serving.served_model import ServedModel


def check(request: RerankRequest, settings: Settings) -> None:
    """Raise InvalidRequest for a request without a query or documents, or above the limits."""
    if deduplicate.is_blank(request.query):
        raise InvalidRequest("The query is empty. Send the question that the documents should answer.")
    check_texts(request.documents, "Document", settings)


def check_texts(texts: Sequence[Sized], what: str, settings: Settings) -> None:
    """Raise InvalidRequest for no texts, and for more or longer ones than a request may have. `what` is the
    name of one."""
    if not texts:
        raise InvalidRequest(f"The list of {what.lower()}s is empty. Send at least one {what.lower()}.")
    check_count(len(texts), settings, f"{what.lower()}s")
    most = settings.max_document_characters
    for at, text in enumerate(texts):
        if len(text) > most:
            raise InvalidRequest(
                f"{what} {at} has {len(text)} characters; the limit is {most}. Send it in parts, "
                "or raise max_document_characters."
            )


def check_count(count: int, settings: Settings, what: str = "documents") -> None:
    """Raise InvalidRequest if these are more than one request may have."""
    most = settings.max_documents
    if count > most:
        raise InvalidRequest(
            f"The request has {count} {what}; the limit is {most}. Send them in several requests, "
            "or raise max_documents."
        )


def too_late(served: AnyModel, timeout_s: float, metrics: Metrics) -> EngineError:
    """The error of a request that exceeded its deadline. Its engine, if it had one, is checked."""
    metrics.deadlines.inc()
    if isinstance(served, ServedModel) and (state := served.state).engine is None:
        why = f" {state.error.message}" if state.error is not None else ""
        if state.phase == "unloaded":
            why = f" {served.name} is waiting for memory that other models use."
        return EngineUnavailable(
            f"No engine was ready within the request's deadline of {timeout_s:.3g} s.{why}",
            retry_after_s=max(math.ceil(state.until - time.monotonic()), 1),
        )
    if isinstance(served, ServedModel):
        served.suspect()
    return EngineTimeout(
        f"The request exceeded its deadline of {timeout_s:.3g} s. Send fewer or shorter documents, "
        "or raise request_timeout_s."
    )
