"""Every error rerankd raises on purpose, in one tree.

An error carries a `code` for programs, a `status_hint` for HTTP, an `exit_code` for the shell, and a message
that says what happened, why, and what to do next. A class names those in which it differs from its base;
`wait_s` is the seconds after which to try again where an error itself says none. Dialects decide how it looks
on the wire.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import ClassVar


class RerankdError(Exception):
    """Base of all errors that a user may see; `str()` of it is the sentence to show."""

    code: ClassVar[str] = "internal_error"
    status_hint: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    wait_s: ClassVar[int | None] = None

    def __init_subclass__(cls, **facts: str | int) -> None:
        for name, value in facts.items():
            setattr(cls, name, value)

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = self.wait_s if retry_after_s is None else retry_after_s


class InvalidRequest(RerankdError, code="invalid_request", status_hint=400, exit_code=2):
    """The request is invalid; the message names the field and the expected value."""


class TooLong(InvalidRequest, code="too_long"):
    """A query, or an uncut document, that does not fit the window."""


class QueryRefused(InvalidRequest, code="query_refused", status_hint=422):
    """The engine ends on this query, whatever the text."""


class TextsRefused(QueryRefused, code="texts_refused"):
    """The engine ends on these texts while it tokenizes them. `reasons` says why, by their places."""

    def __init__(self, message: str, reasons: Mapping[int, str]) -> None:
        super().__init__(message)
        self.reasons = reasons


class PayloadTooLarge(RerankdError, code="payload_too_large", status_hint=413):
    """The body has more bytes than max_body_bytes."""


class BodyTimeout(RerankdError, code="body_timeout", status_hint=408):
    """The request's body came too slowly."""


class Overloaded(RerankdError, code="overloaded", status_hint=429, wait_s=1):
    """The queue is full; says when to come again."""


class Stopping(RerankdError, code="stopping", status_hint=503, wait_s=5):
    """The service is about to end and takes nothing new."""


class Unauthorized(RerankdError, code="unauthorized", status_hint=401):
    """The key is missing or wrong."""


class UnknownModel(RerankdError, code="model_not_found", status_hint=404, exit_code=3):
    """No model goes by this name here."""


class Misuse(RerankdError, code="misuse", status_hint=503):
    """A Reranker that is not started, closed, or another process's or loop's."""


class Conflict(RerankdError, code="conflict", status_hint=409):
    """What is asked for can't be done with this model; says why."""


class AdminOff(RerankdError, code="admin_api_off", status_hint=403):
    """The admin API is not switched on."""


class HostNotAllowed(RerankdError, code="host_not_allowed", status_hint=403):
    """The Host header is a name that the service is not served under."""


class OriginNotAllowed(RerankdError, code="origin_not_allowed", status_hint=403):
    """A web page of another origin may not do this."""


class UnsupportedMediaType(RerankdError, code="unsupported_media_type", status_hint=415):
    """A content type or an encoding that is not read here."""


class NoSuchPath(RerankdError, code="not_found", status_hint=404):
    """Nothing is served there."""


class NoSuchMethod(RerankdError, code="method_not_allowed", status_hint=405):
    """The path is served, but not with this method."""


class ConfigError(RerankdError, code="config_error", exit_code=2):
    """Settings that can't be read or don't fit together."""


class OutputFailed(RerankdError, code="output_failed"):
    """A command's result could not be written."""


class AddressInUse(RerankdError, code="address_in_use", exit_code=6):
    """The port is taken, or there is no such address."""


class CollectionError(RerankdError, code="collection_error", exit_code=2):
    """A judged collection, or a run over it, that can't be read."""


class MissingExtra(RerankdError, code="missing_extra", exit_code=2):
    """A part of rerankd that is installed apart, and is not."""


class RemoteError(RerankdError, code="remote_error"):
    """Another rerank server gave no scores."""


class DataFolderError(RerankdError, code="data_folder_error", status_hint=507, exit_code=7):
    """The data folder can't be written."""


@contextlib.contextmanager
def disk_errors(what: str, next_step: str = "") -> Iterator[None]:
    """An OSError within it becomes a DataFolderError: what could not be done, why, and what to do."""
    try:
        yield
    except OSError as error:
        more = f" {next_step}" if next_step else ""
        raise DataFolderError(f"{what}: {error.strerror or error}.{more}") from error


class FetchError(RerankdError, code="fetch_error", status_hint=502, exit_code=5):
    """A download failed, or brought something else than expected."""


class HubUnreachable(FetchError, code="hub_unreachable"):
    """No answer from the hub at all."""


class ModelFileError(RerankdError, code="model_file_error", status_hint=422, exit_code=3):
    """The file is missing, not GGUF, cut short, or damaged."""


class Unscorable(ModelFileError, code="unscorable_model"):
    """A sound file that can't be scored right; says why and the way out."""


class DoesNotFit(ModelFileError, code="does_not_fit", status_hint=507):
    """It needs more memory than all engines together may hold."""


class ModelRefused(ModelFileError, code="model_refused"):
    """A model of the settings that is not served, until a reload; says why."""


class ModelUnavailable(RerankdError, code="model_unavailable", status_hint=503, exit_code=3):
    """A model of the settings that is not served for now; says why."""


class ModelPending(ModelUnavailable, code="model_starting"):
    """It is being fetched or read."""


class EngineError(RerankdError, code="engine_error", status_hint=502, exit_code=4):
    """The engine answered something no score can be made of."""


class InputTooLong(EngineError, code="engine_input_too_long"):
    """The engine met a pair longer than its window (the service then cuts)."""


class EngineUnavailable(EngineError, code="engine_unavailable", status_hint=503, wait_s=1):
    """No engine is ready (starting, dead, closed); retry later."""


class EngineStartFailed(EngineUnavailable, code="engine_start_failed"):
    """It would not start; quotes its last lines."""


class EngineTooOld(EngineUnavailable, code="engine_too_old"):
    """The model needs a newer llama.cpp."""


class EngineUnknown(EngineUnavailable, code="engine_unknown"):
    """No engine of that name, or none at all."""


class BuildFailed(EngineError, code="engine_build_failed"):
    """Llama.cpp could not be built; the engine in use stays."""


class EngineTimeout(EngineError, code="engine_timeout", status_hint=504):
    """No answer before the deadline; what was not begun is dropped."""
