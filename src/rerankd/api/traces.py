"""OpenTelemetry traces: one span for each request, with its steps as children, sent by OTLP over HTTP.

They are configured by OpenTelemetry's own environment variables, and off without them
(https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/). A thread of its own sends
the spans; those that can't be sent are dropped. No span holds a text of a request.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response

from rerankd import __version__, tracing
from rerankd.tracing import Trace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

_log = logging.getLogger("rerankd")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
# How long the last spans may take at the end of the program.
_FLUSH_S = 2.0


def refusal(environ: Mapping[str, str]) -> str | None:
    """(pure) Return None if these variables ask for traces that rerankd can send; else why it can't, or "" if
    they ask for none."""
    endpoint = next((name for name in _ENDPOINTS if environ.get(name)), None)
    exporter = environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if endpoint is None or exporter == "none" or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return ""
    if exporter != "otlp":
        return f"OTEL_TRACES_EXPORTER is {exporter!r}, and rerankd sends them by 'otlp' only"
    protocol = next((value for name in _PROTOCOLS if (value := environ.get(name))), "http/protobuf")
    if protocol != "http/protobuf":
        return (
            f"the protocol is {protocol!r}, and rerankd speaks 'http/protobuf' only. Set "
            f"{_PROTOCOLS[0]}=http/protobuf and an endpoint for it, usually port 4318"
        )
    return None


def from_environment(environ: Mapping[str, str]) -> Traces | None:
    """Return the sender of traces that these variables ask for, or None. Logs why they can't be sent."""
    why = refusal(environ)
    if why is None:
        try:
            return Traces(_provider(environ))
        except ImportError as error:
            why = f"OpenTelemetry is not installed ({error}): pip install 'rerankd[otel]'"
        except (ValueError, RuntimeError, StopIteration) as error:  # numbers; names that are not installed
            reason = str(error).rstrip(".") or "see the line before"
            why = f"OpenTelemetry does not accept the value of a variable OTEL_…: {reason}"
    if why:
        _log.warning("no traces are sent: %s. OTEL_TRACES_EXPORTER=none removes this line.", why)
    return None


def _provider(environ: Mapping[str, str]) -> TracerProvider:
    """Raises ImportError without the extra, and ValueError, RuntimeError or StopIteration for variables
    that OpenTelemetry refuses."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    own = Resource({SERVICE_NAME: "rerankd", SERVICE_VERSION: __version__})
    # What the user names in OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES wins.
    resource = Resource.create().merge(own).merge(OTELResourceDetector().detect())
    # Each try that fails is a warning; the batch that is dropped in the end is an error.
    logging.getLogger(OTLPSpanExporter.__module__).setLevel(logging.ERROR)
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Traces:
    """Sends a span for each request until `close`."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("rerankd", __version__)
        # Steps have times of the monotonic clock, spans those of the calendar.
        self._offset_s = time.time() - time.monotonic()
        self._closing: threading.Thread | None = None
        atexit.register(self.close)

    def send(self, trace: Trace, request: Request, response: Response) -> None:
        """Make the spans of a finished request. They are sent later, by another thread."""
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        span = self._span(trace, request)
        if span.is_recording():
            span.set_attributes(attributes(trace, request, response.status_code))
            inside = set_span_in_context(span)
            for step in trace.steps:
                numbers = {f"rerankd.{name}": value for name, value in step.numbers.items()}
                child = self._tracer.start_span(
                    step.name, context=inside, attributes=numbers, start_time=self._ns(step.begun)
                )
                child.end(self._ns(step.ended))
            if response.status_code >= 500:
                span.set_status(Status(StatusCode.ERROR))
        span.end(self._ns(time.monotonic()))

    def begin(self, trace: Trace, request: Request) -> None:
        """Let the request name its span to another server that answers it, as the parent of the spans
        there."""
        from opentelemetry.propagate import inject
        from opentelemetry.trace import set_span_in_context

        def onward() -> Mapping[str, str]:
            found: dict[str, str] = {}
            inject(found, set_span_in_context(self._span(trace, request)))
            return found

        trace.onward = onward

    def _span(self, trace: Trace, request: Request) -> Span:
        """The span of a request, begun when it is first needed: usually at the end."""
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        span: Span | None = getattr(request.state, "rerankd_span", None)
        if span is None:
            span = request.state.rerankd_span = self._tracer.start_span(
                f"{request.method} {_route(request)}",
                context=extract(request.headers),  # traceparent
                kind=SpanKind.SERVER,
                start_time=self._ns(trace.begun),
            )
        return span

    def _ns(self, monotonic_s: float) -> int:
        return round((monotonic_s + self._offset_s) * 1e9)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        """Close at the end of the app."""
        try:
            yield
        finally:
            await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Send what is left, for at most _FLUSH_S: the collector may not answer. Safe to call again."""
        if self._closing is None:
            self._closing = threading.Thread(target=self._provider.shutdown, daemon=True)
            self._closing.start()
            self._closing.join(_FLUSH_S)
            atexit.unregister(self.close)


def attributes(trace: Trace, request: Request, status: int) -> dict[str, str | int]:
    """The attributes of a request's span: by the semantic conventions for HTTP servers and generative AI, and
    rerankd's own."""
    state = request.state
    found: dict[str, str | int] = {
        "http.request.method": request.method,
        "http.route": _route(request),
        "http.response.status_code": status,
        "url.scheme": request.scope["scheme"],
        "url.path": request.scope["path"],
        "network.protocol.version": request.scope["http_version"],
        "gen_ai.operation.name": "embeddings" if "embed" in _route(request) else "rerank",
        "rerankd.dialect": state.dialect,
        **{f"rerankd.{name}": value for name, value in trace.numbers.items() if name != "tokens"},
    }
    if (server := request.scope.get("server")) is not None:
        found |= {"server.address": server[0], **({"server.port": server[1]} if server[1] else {})}
    if agent := request.headers.get("user-agent"):
        found["user_agent.original"] = agent
    if "tokens" in trace.numbers:
        found["gen_ai.usage.input_tokens"] = trace.numbers["tokens"]
    for name, key in (
        ("model", "gen_ai.request.model"),
        ("key", "rerankd.key"),
        ("request_id", "rerankd.request_id"),
    ):
        if value := getattr(state, name, ""):
            found[key] = value
    if status >= 500:
        found["error.type"] = str(status)
    return found


def _route(request: Request) -> str:
    """The path of the route, without names of models in it."""
    return str(getattr(request.scope.get("route"), "path", request.scope["path"]))


@contextlib.contextmanager
def collected(request: Request) -> Iterator[Trace | None]:
    """Collect the trace of a request in this block, if its app sends traces."""
    traces = _of(request)
    if traces is None:
        yield None
        return
    with tracing.collected() as trace:
        traces.begin(trace, request)
        yield trace


def send(trace: Trace | None, request: Request, response: Response) -> None:
    """Send the trace of a finished request, if one was collected."""
    traces = _of(request)
    if trace is not None and traces is not None:
        traces.send(trace, request, response)


def _of(request: Request) -> Traces | None:
    return getattr(request.app.state, "rerankd_traces", None)
