"""(pure) What a response of another server without a result means: the error for the client, and whether
another server may do better."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from rerankd import network_errors
from rerankd.errors import (
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    InvalidRequest,
    ModelUnavailable,
    Overloaded,
    PayloadTooLarge,
    QueryRefused,
    RerankdError,
    Stopping,
    TextsRefused,
    UpstreamLoop,
)

_SHOWN = 300

Blame = Literal["server", "answer", "none"]


class TryAnother(Exception):
    """This server did not answer, for the reason `error`; another one may.

    `blame`: the `server` gets no requests until it answers a check; an `answer` that is none does the same if
    it is not the only one; `none` if the server is busy, or one of its models has failed. `was_cut`: the
    connection was closed before an answer, which also happens to idle ones, so a new connection to the same
    server may do."""

    def __init__(self, error: RerankdError, blame: Blame = "answer", *, was_cut: bool = False) -> None:
        super().__init__(error.message)
        self.error = error
        self.blame = blame
        self.was_cut = was_cut


def error_of(name: str, status: int, headers: Mapping[str, str], data: bytes) -> RerankdError | TryAnother:
    """The error of a response with this status. `name` is the server's. A RerankdError is final: every server
    would refuse the request."""
    message, code = _read(data)
    wait_s = network_errors.retry_after_s(headers.get("retry-after"))
    kind = _KINDS.get(code)
    if kind is not None and issubclass(kind, _FINAL):
        return (QueryRefused if kind is TextsRefused else kind)(message, retry_after_s=wait_s)
    about = f"The upstream server {name}"
    if code == Stopping.code:
        return TryAnother(Stopping(f"{about} is shutting down.", retry_after_s=wait_s), "server")
    if status == 429:
        return TryAnother(Overloaded(f"{about} is busy: {message}", retry_after_s=wait_s), "none")
    if kind is not None and issubclass(kind, EngineError | ModelUnavailable):
        return TryAnother(kind(f"{about}: {message}", retry_after_s=wait_s), "none")
    if kind is None and status in (400, 413, 422):
        is_large = status == 413 and not message
        text = f"{about} refuses the request: {message or f'status {status}'}"
        return PayloadTooLarge(text) if is_large else InvalidRequest(text)
    if status in (401, 403) and code not in ("host_not_allowed",):
        return TryAnother(unauthorized(name, status), "server")
    if code == "model_not_found":
        return TryAnother(ModelUnavailable(f"{about} no longer serves this model.", retry_after_s=1), "none")
    reason = f"{about} returned status {status}{f': {message}' if message else '.'}"
    # A status of a proxy before the server, or a wrong address. A rerankd gives its reason.
    is_elsewhere = kind is None and status in (404, 405, 502, 503, 504)
    error = EngineUnavailable(reason, retry_after_s=wait_s) if status == 503 else EngineError(reason)
    return TryAnother(error, "server" if is_elsewhere else "answer")


def unauthorized(name: str, status: int) -> EngineUnavailable:
    """The error of a server that does not accept this server's key: its clients can do nothing about it."""
    return EngineUnavailable(
        f"The upstream server {name} rejects its API key (status {status}). Set api_key or api_key_file in "
        f"[upstreams.{name}], then run rerankd reload."
    )


# Errors that the request causes itself, or that no other server would avoid in the time that is left.
_FINAL = (InvalidRequest, PayloadTooLarge, EngineTimeout, UpstreamLoop)


def _kinds(of: type[RerankdError]) -> Iterator[tuple[str, type[RerankdError]]]:
    for kind in of.__subclasses__():
        yield from _kinds(kind)
        # Subclasses elsewhere may share the code of their base class.
        if kind.__module__ in (RerankdError.__module__, __name__):
            yield kind.code, kind


_KINDS = dict(_kinds(RerankdError))


def _read(data: bytes) -> tuple[str, str]:
    """The message and the code in the body of an error, in the forms that services use."""
    try:
        body: Any = json.loads(data)
    except ValueError:
        return data[: 4 * _SHOWN].decode("utf-8", "replace").strip()[:_SHOWN], ""
    code = ""
    if isinstance(body, dict):
        inner = body.get("error")
        if isinstance(inner, dict):
            code = inner.get("type", "")
            body = inner
        body = next((body[key] for key in ("message", "detail", "error") if body.get(key)), body)
    text = body if isinstance(body, str) else json.dumps(body)
    return (text if code else text[:_SHOWN]), code if isinstance(code, str) else ""
