"""Every error rerankd raises on purpose, in one tree.

    RerankdError
    ├── InvalidRequest          400  the request can't be meant; says which field and what to send
    │   ├── TooLong             400  a query, or an uncut document, that does not fit the window
    │   └── QueryRefused        422  the engine ends on this query, whatever the text
    ├── PayloadTooLarge         413
    ├── BodyTimeout             408  the request's body came too slowly
    ├── Overloaded              429  the queue is full; says when to come again
    ├── Stopping                503  the service is about to end and takes nothing new
    ├── Unauthorized            401
    ├── UnknownModel            404
    ├── NoSuchPath              404  nothing is served there
    ├── NoSuchMethod            405
    ├── ConfigError             ---  settings that can't be read or don't fit together
    ├── AddressInUse            ---
    ├── OutputFailed            ---  standard output is closed, or its disk is full
    ├── CollectionError         ---  a judged collection, or a run over it, that can't be read
    ├── MissingExtra            ---  a part of rerankd that is installed apart, and is not
    ├── RemoteError             ---  another rerank server gave no scores
    ├── DataFolderError         507  the data folder can't be written
    ├── FetchError              502  a download failed, or brought something else than expected
    │   └── HubUnreachable      502  no answer from the hub at all
    ├── ModelFileError          422  the file is missing, not GGUF, cut short, or damaged
    │   ├── Unscorable          422  a sound file that can't be scored right; says why and the way out
    │   ├── DoesNotFit          507  it needs more memory than all engines together may hold
    │   └── ModelRefused        422  a model of the settings that is not served, until a reload; says why
    ├── ModelUnavailable        503  a model of the settings that is not served for now; says why
    │   └── ModelPending        503  it is being fetched or read
    ├── Misuse                  503  a Reranker that is not started, closed, or another process's or loop's
    ├── Conflict                409  what is asked for can't be done with this model; says why
    ├── AdminOff                403  the admin API is not switched on
    ├── HostNotAllowed          403  the Host header is a name that the service is not served under
    ├── OriginNotAllowed        403  a web page of another origin may not do this
    ├── UnsupportedMediaType    415  a content type or an encoding that is not read here
    └── EngineError             502  the engine answered something no score can be made of
        ├── InputTooLong        ---  the engine met a pair longer than its window (the service then cuts)
        ├── EngineUnavailable   503  no engine is ready (starting, dead, closed); retry later
        ├── EngineStartFailed   503  it would not start; quotes its last lines
        ├── EngineTooOld        503  the model needs a newer llama.cpp
        ├── EngineUnknown       503  no engine of that name, or none at all
        ├── BuildFailed         ---  llama.cpp could not be built; the engine in use stays
        └── EngineTimeout       504  no answer before the deadline; what was not begun is dropped

An error carries a `code` for programs, a `status_hint` for HTTP, an `exit_code` for the shell, and a message
that says what happened, why, and what to do next. Dialects decide how it looks on the wire.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import ClassVar


class RerankdError(Exception):
    """Base of all errors that a user may see; `str()` of it is the sentence to show."""

    code: ClassVar[str] = "internal_error"
    status_hint: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class InvalidRequest(RerankdError):
    code = "invalid_request"
    status_hint = 400
    exit_code = 2


class TooLong(InvalidRequest):
    code = "too_long"


class QueryRefused(InvalidRequest):
    code = "query_refused"
    status_hint = 422


class PayloadTooLarge(RerankdError):
    code = "payload_too_large"
    status_hint = 413


class BodyTimeout(RerankdError):
    code = "body_timeout"
    status_hint = 408


class Overloaded(RerankdError):
    code = "overloaded"
    status_hint = 429

    def __init__(self, message: str, *, retry_after_s: int | None = 1) -> None:
        super().__init__(message, retry_after_s=retry_after_s)


class Stopping(RerankdError):
    code = "stopping"
    status_hint = 503

    def __init__(self, message: str, *, retry_after_s: int | None = 5) -> None:
        super().__init__(message, retry_after_s=retry_after_s)


class Unauthorized(RerankdError):
    code = "unauthorized"
    status_hint = 401


class UnknownModel(RerankdError):
    code = "model_not_found"
    status_hint = 404
    exit_code = 3


class Misuse(RerankdError):
    code = "misuse"
    status_hint = 503


class Conflict(RerankdError):
    code = "conflict"
    status_hint = 409


class AdminOff(RerankdError):
    code = "admin_api_off"
    status_hint = 403


class HostNotAllowed(RerankdError):
    code = "host_not_allowed"
    status_hint = 403


class OriginNotAllowed(RerankdError):
    code = "origin_not_allowed"
    status_hint = 403


class UnsupportedMediaType(RerankdError):
    code = "unsupported_media_type"
    status_hint = 415


class NoSuchPath(RerankdError):
    code = "not_found"
    status_hint = 404


class NoSuchMethod(RerankdError):
    code = "method_not_allowed"
    status_hint = 405


class ConfigError(RerankdError):
    code = "config_error"
    exit_code = 2


class OutputFailed(RerankdError):
    """A command's result could not be written."""

    code = "output_failed"


class AddressInUse(RerankdError):
    code = "address_in_use"
    exit_code = 6


class CollectionError(RerankdError):
    code = "collection_error"
    exit_code = 2


class MissingExtra(RerankdError):
    code = "missing_extra"
    exit_code = 2


class RemoteError(RerankdError):
    code = "remote_error"


class DataFolderError(RerankdError):
    code = "data_folder_error"
    status_hint = 507
    exit_code = 7


@contextlib.contextmanager
def disk_errors(what: str, next_step: str = "") -> Iterator[None]:
    """An OSError within it becomes a DataFolderError: what could not be done, why, and what to do."""
    try:
        yield
    except OSError as error:
        more = f" {next_step}" if next_step else ""
        raise DataFolderError(f"{what}: {error.strerror or error}.{more}") from error


class FetchError(RerankdError):
    code = "fetch_error"
    status_hint = 502
    exit_code = 5


class HubUnreachable(FetchError):
    code = "hub_unreachable"


class ModelFileError(RerankdError):
    code = "model_file_error"
    status_hint = 422
    exit_code = 3


class Unscorable(ModelFileError):
    code = "unscorable_model"


class DoesNotFit(ModelFileError):
    code = "does_not_fit"
    status_hint = 507


class ModelRefused(ModelFileError):
    code = "model_refused"


class ModelUnavailable(RerankdError):
    code = "model_unavailable"
    status_hint = 503
    exit_code = 3


class ModelPending(ModelUnavailable):
    code = "model_starting"


class EngineError(RerankdError):
    code = "engine_error"
    status_hint = 502
    exit_code = 4


class InputTooLong(EngineError):
    code = "engine_input_too_long"


class EngineUnavailable(EngineError):
    code = "engine_unavailable"
    status_hint = 503

    def __init__(self, message: str, *, retry_after_s: int | None = 1) -> None:
        super().__init__(message, retry_after_s=retry_after_s)


class EngineStartFailed(EngineUnavailable):
    code = "engine_start_failed"


class EngineTooOld(EngineUnavailable):
    code = "engine_too_old"


class EngineUnknown(EngineUnavailable):
    code = "engine_unknown"


class BuildFailed(EngineError):
    code = "engine_build_failed"


class EngineTimeout(EngineError):
    code = "engine_timeout"
    status_hint = 504
