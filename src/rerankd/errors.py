"""The error tree: every exception that rerankd raises on purpose, with its code, HTTP status and exit code.

An error has a `code` for programs, a `status_hint` (the HTTP status), an `exit_code` for the shell, and a
message that says what happened, why, and what to do. `wait_s` is the default of `retry_after_s`, the seconds
after which a client should retry. A class defines only the attributes that differ from its base class. The
dialects (api/dialects/) render an error as a response.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import ClassVar


class RerankdError(Exception):
    """Base class of all errors that a user may see; `str(error)` is the message to show."""

    code: ClassVar[str] = "internal_error"
    status_hint: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    wait_s: ClassVar[int | None] = None

    def __init_subclass__(cls, **attributes: str | int) -> None:
        for name, value in attributes.items():
            setattr(cls, name, value)

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = self.wait_s if retry_after_s is None else retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        # Exception's own version calls the class with `args`, which lacks what a subclass takes besides.
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[RerankdError], args: tuple[object, ...], state: dict[str, object]) -> RerankdError:
    """An error that another process has raised."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidRequest(RerankdError, code="invalid_request", status_hint=400, exit_code=2):
    """The request is invalid; the message names the field and the expected value."""


class TooLong(InvalidRequest, code="too_long"):
    """A query, or a document that must not be truncated, exceeds max_length."""


class QueryRefused(InvalidRequest, code="query_refused", status_hint=422):
    """The engine crashes on this query, whatever the document."""


class TextsRefused(QueryRefused, code="texts_refused"):
    """The engine crashes while it tokenizes these texts. `reasons` maps each text's index to its reason."""

    def __init__(self, message: str, reasons: Mapping[int, str]) -> None:
        super().__init__(message)
        self.reasons = reasons


class PayloadTooLarge(RerankdError, code="payload_too_large", status_hint=413):
    """The request body is larger than max_body_bytes."""


class BodyTimeout(RerankdError, code="body_timeout", status_hint=408):
    """The request body did not arrive before the timeout."""


class Overloaded(RerankdError, code="overloaded", status_hint=429, wait_s=1):
    """The queue is full; the client should retry after `retry_after_s`."""


class Stopping(RerankdError, code="stopping", status_hint=503, wait_s=5):
    """The service is shutting down and rejects new requests."""


class Unauthorized(RerankdError, code="unauthorized", status_hint=401):
    """The API key is missing or wrong."""


class UnknownModel(RerankdError, code="model_not_found", status_hint=404, exit_code=3):
    """No model has this name."""


class Misuse(RerankdError, code="misuse", status_hint=503):
    """A Reranker is used before its start, after it was closed, or from another process or event loop."""


class Conflict(RerankdError, code="conflict", status_hint=409):
    """The operation is not allowed for this model."""


class AdminOff(RerankdError, code="admin_api_off", status_hint=403):
    """The admin API is disabled."""


class HostNotAllowed(RerankdError, code="host_not_allowed", status_hint=403):
    """The Host header names a host that is not allowed."""


class OriginNotAllowed(RerankdError, code="origin_not_allowed", status_hint=403):
    """A web page from another origin is not allowed to send this request."""


class UnsupportedMediaType(RerankdError, code="unsupported_media_type", status_hint=415):
    """The request has a content type or a content encoding that is not supported."""


class NoSuchPath(RerankdError, code="not_found", status_hint=404):
    """No route has this path."""


class NoSuchMethod(RerankdError, code="method_not_allowed", status_hint=405):
    """The route exists, but not for this HTTP method."""


class ConfigError(RerankdError, code="config_error", exit_code=2):
    """The settings can't be read, are invalid, or contradict each other."""


class OutputFailed(RerankdError, code="output_failed"):
    """A command's result could not be written."""


class AddressInUse(RerankdError, code="address_in_use", exit_code=6):
    """The port is in use, or the address does not exist on this machine."""


class CollectionError(RerankdError, code="collection_error", exit_code=2):
    """A collection with relevance judgements, a run for it, or a file of pairs with known scores can't be
    read."""


class BulkError(RerankdError, code="bulk_error", exit_code=2):
    """A file of pairs can't be read, or the job for it can't be started or continued."""


class TuningFailed(RerankdError, code="tuning_failed"):
    """A model could not be tuned: the trainer failed, or the disk is full."""


class MissingExtra(RerankdError, code="missing_extra", exit_code=2):
    """An optional extra of rerankd is required and not installed."""


class RemoteError(RerankdError, code="remote_error"):
    """Another rerank server returned no scores."""


class UpstreamLoop(RerankdError, code="upstream_loop", status_hint=508):
    """A request came back to a server that has passed it on to another one."""


class DataFolderError(RerankdError, code="data_folder_error", status_hint=507, exit_code=7):
    """The data folder is not writable."""


@contextlib.contextmanager
def disk_errors(what: str, next_step: str = "") -> Iterator[None]:
    """Convert an OSError inside the block to a DataFolderError.

    `what` is a sentence without its full stop: what could not be done; `next_step` is a full sentence.
    """
    try:
        yield
    except OSError as error:
        more = f" {next_step}" if next_step else ""
        raise DataFolderError(f"{what}: {error.strerror or error}.{more}") from error


class FetchError(RerankdError, code="fetch_error", status_hint=502, exit_code=5):
    """A download failed or returned something unexpected."""


class HubUnreachable(FetchError, code="hub_unreachable"):
    """The hub did not answer at all."""


class ModelFileError(RerankdError, code="model_file_error", status_hint=422, exit_code=3):
    """The model file is missing, of another format, truncated, or damaged."""


class Unscorable(ModelFileError, code="unscorable_model"):
    """The model file is intact, but rerankd can't compute the model's own scores from it."""


class DoesNotFit(ModelFileError, code="does_not_fit", status_hint=507):
    """The model needs more memory than the limit for all engines together."""


class ModelRefused(ModelFileError, code="model_refused"):
    """A model in the settings is refused and stays so until the settings are reloaded."""


class ModelUnavailable(RerankdError, code="model_unavailable", status_hint=503, exit_code=3):
    """A model in the settings is temporarily not served."""


class ModelPending(ModelUnavailable, code="model_starting"):
    """The model is being downloaded or its file is being read."""


class EngineError(RerankdError, code="engine_error", status_hint=502, exit_code=4):
    """The engine returned a response without usable scores."""


class InputTooLong(EngineError, code="engine_input_too_long"):
    """The engine received a pair longer than its max_length."""


class EngineUnavailable(EngineError, code="engine_unavailable", status_hint=503, wait_s=1):
    """No engine is ready: it is starting, has crashed, or was stopped. Retry later."""


class EngineStartFailed(EngineUnavailable, code="engine_start_failed"):
    """The engine did not start; the message quotes the last lines of its log."""


class EngineTooOld(EngineUnavailable, code="engine_too_old"):
    """The model needs a newer llama.cpp."""


class EngineUnknown(EngineUnavailable, code="engine_unknown"):
    """No engine has this name, or no engine is installed."""


class BuildFailed(EngineError, code="engine_build_failed"):
    """The build of llama.cpp failed; the engine in use is unchanged."""


class EngineTimeout(EngineError, code="engine_timeout", status_hint=504):
    """The engine did not answer before the deadline; inputs not yet started are dropped."""
