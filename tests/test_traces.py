"""Traces of the real program, read by an OTLP receiver on a real socket."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from rerankd import propagators
from rerankd.api import traces
from support import GOLDEN, Program, post, start_serving, until

XLMR = str(GOLDEN / "xlmr-head.gguf")
EMBEDDER = str(GOLDEN / "bert-embedder.gguf")
SECRET = "turquoise giraffe"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "20"}


class Receiver:
    """A collector of traces. `status` is what it answers."""

    def __init__(self) -> None:
        self.status = 200
        self.bodies: list[bytes] = []
        self.resource: dict[str, Any] = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
                receiver.bodies.append(body)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(receiver.status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def spans(self) -> list[Any]:
        found = []
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.resource = plain(resource.resource.attributes)
                found += [span for scope in resource.scope_spans for span in scope.spans]
        return found

    def of(self, request_id: str) -> tuple[Any, list[Any]]:
        """The span of a request, and those of its steps, once they are here."""

        def roots() -> list[Any]:
            return [
                one for one in self.spans() if plain(one.attributes).get("rerankd.request_id") == request_id
            ]

        until(roots)
        (root,) = roots()
        return root, [one for one in self.spans() if one.parent_span_id == root.span_id]


def plain(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
        thread.join()


@contextlib.contextmanager
def serving(home: Path, *models: str, **env: str) -> Iterator[Program]:
    program = start_serving(home, *models, RERANKD_ENGINE="llama", **env)
    try:
        yield program
    finally:
        program.process.kill()
        program.process.wait()
        assert program.process.stderr is not None
        program.process.stderr.close()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture(scope="module")
def program(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
    }
    home = tmp_path_factory.mktemp("home")
    with serving(home, XLMR, EMBEDDER, RERANKD_MAX_DOCUMENTS="50", **QUICK, **env) as found:
        yield found


def body(**more: Any) -> dict[str, Any]:
    return {"query": SECRET, "documents": [SECRET, "bread"], "model": "xlmr-head", **more}


def test_a_request_is_a_span_with_its_steps(program: Program, receiver: Receiver) -> None:
    before = time.time_ns()
    answer = post(f"{program.url}/v1/rerank", body(), **{"x-request-id": "one", "user-agent": "tester/1"})
    after = time.time_ns()
    root, steps = receiver.of("one")
    assert (root.name, root.kind, root.parent_span_id) == ("POST /v1/rerank", root.SPAN_KIND_SERVER, b"")
    found = plain(root.attributes)
    assert found.pop("network.protocol.version") == "1.1"
    assert found == {
        "http.request.method": "POST",
        "http.route": "/v1/rerank",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.path": "/v1/rerank",
        "server.address": "127.0.0.1",
        "server.port": int(program.url.rpartition(":")[2]),
        "user_agent.original": "tester/1",
        "gen_ai.operation.name": "rerank",
        "gen_ai.request.model": "xlmr-head",
        "gen_ai.usage.input_tokens": answer.json()["usage"]["prompt_tokens"],
        "rerankd.dialect": found["rerankd.dialect"],
        "rerankd.documents": 2,
        "rerankd.cached": 0,
        "rerankd.request_id": "one",
    }
    assert [one.name for one in sorted(steps, key=lambda one: one.start_time_unix_nano)] == [
        *("tokenize query", "tokenize documents", "queue", "score")
    ]
    (score,) = [one for one in steps if one.name == "score"]
    assert plain(score.attributes)["rerankd.inputs"] == plain(score.attributes)["rerankd.batch_inputs"] == 2
    assert plain(score.attributes)["rerankd.batch_tokens"] > 0
    times = [root.start_time_unix_nano, root.end_time_unix_nano]
    assert before - 5_000_000 <= times[0] <= times[1] <= after + 5_000_000
    for one in steps:
        assert times[0] <= one.start_time_unix_nano <= one.end_time_unix_nano <= times[1]
        assert one.trace_id == root.trace_id
    assert receiver.resource["service.name"] == "rerankd"
    assert receiver.resource["deployment.environment.name"] == "test"


def test_no_span_holds_a_text(program: Program, receiver: Receiver) -> None:
    post(f"{program.url}/v1/rerank", body(), **{"x-request-id": "two"})
    post(f"{program.url}/v1/rerank", body(top_n=SECRET), **{"x-request-id": "refused"})
    receiver.of("two"), receiver.of("refused")
    for one in receiver.bodies:
        assert b"turquoise" not in one and b"bread" not in one


def test_the_trace_of_the_client_goes_on(program: Program, receiver: Receiver) -> None:
    post(f"{program.url}/v1/rerank", body(), **{"x-request-id": "three", "traceparent": PARENT})
    root, steps = receiver.of("three")
    assert root.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert root.parent_span_id.hex() == "b7ad6b7169203331"
    assert steps


def test_the_span_of_an_upstream_server_is_a_child(
    program: Program, receiver: Receiver, tmp_path: Path
) -> None:
    file = tmp_path / "front.toml"
    file.write_text(f'[upstreams.u0]\nurl = "{program.url}"\n')
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
    with serving(tmp_path, "--config", str(file), **QUICK, **endpoint) as front:
        assert post(f"{front.url}/v1/rerank", body(), **{"x-request-id": "hop"}).status_code == 200

        def spans() -> list[Any]:
            return [
                one for one in receiver.spans() if plain(one.attributes).get("rerankd.request_id") == "hop"
            ]

        until(lambda: len(spans()) == 2)
    parents = {one.span_id: one.parent_span_id for one in spans()}
    (first,) = (one for one, parent in parents.items() if not parent)
    assert sorted(parents.values()) == [b"", first]
    assert len({one.trace_id for one in spans()}) == 1


def test_a_client_that_samples_it_out_gets_no_span(program: Program, receiver: Receiver) -> None:
    unsampled = {"x-request-id": "unsampled", "traceparent": PARENT[:-1] + "0"}
    assert post(f"{program.url}/v1/rerank", body(), **unsampled).status_code == 200
    post(f"{program.url}/v1/rerank", body(), **{"x-request-id": "after", "traceparent": "nonsense"})
    receiver.of("after")
    assert "unsampled" not in [plain(one.attributes).get("rerankd.request_id") for one in receiver.spans()]


def test_scores_from_the_cache_need_no_engine(program: Program, receiver: Receiver) -> None:
    for name in ("first", "again"):
        post(f"{program.url}/v1/rerank", body(query="a cached one"), **{"x-request-id": name})
    root, steps = receiver.of("again")
    assert plain(root.attributes)["rerankd.cached"] == 2
    assert not {"queue", "score"} & {one.name for one in steps}


def test_embeddings_are_traced(program: Program, receiver: Receiver) -> None:
    asked = {"input": ["panda", "bread"], "model": "bert-embedder"}
    assert post(f"{program.url}/v1/embeddings", asked, **{"x-request-id": "vectors"}).status_code == 200
    root, steps = receiver.of("vectors")
    found = plain(root.attributes)
    assert (found["gen_ai.operation.name"], found["rerankd.documents"]) == ("embeddings", 2)
    assert {"tokenize documents", "queue", "score"} <= {one.name for one in steps}


def test_an_error_of_the_client_is_no_error_of_the_span(program: Program, receiver: Receiver) -> None:
    many = body(documents=["a"] * 60)
    assert post(f"{program.url}/v1/rerank", many, **{"x-request-id": "many"}).status_code == 400
    root, _ = receiver.of("many")
    assert plain(root.attributes)["http.response.status_code"] == 400
    assert root.status.code == root.status.STATUS_CODE_UNSET
    late = {"x-request-id": "late", "x-request-timeout": "0.000001"}
    assert post(f"{program.url}/v1/rerank", body(query="late"), **late).status_code == 504
    root, _ = receiver.of("late")
    assert root.status.code == root.status.STATUS_CODE_ERROR
    assert plain(root.attributes)["error.type"] == "504"


def test_health_checks_make_no_spans(program: Program, receiver: Receiver) -> None:
    for path in ("/health", "/ready", "/metrics", "/v1/status"):
        assert httpx.get(program.url + path, trust_env=False).status_code == 200
    post(f"{program.url}/v1/rerank", body(), **{"x-request-id": "last"})
    receiver.of("last")
    assert not [one for one in receiver.spans() if one.name.startswith("GET")]


def test_the_last_spans_are_sent_at_the_end(tmp_path: Path) -> None:
    with receiving() as receiver:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "60000"}
        with serving(tmp_path, XLMR, **env) as program:
            post(f"{program.url}/v1/rerank", body(), **{"x-request-id": "end"})
            assert receiver.bodies == []
            assert program.stop() == 0
        assert receiver.of("end")


def test_a_collector_that_fails_costs_no_request(tmp_path: Path) -> None:
    with receiving() as receiver:
        receiver.status = 503
        with serving(tmp_path, XLMR, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, **QUICK) as program:
            for at in range(20):
                if at == 10:
                    until(lambda: receiver.bodies)
                    receiver.server.server_close()  # from now on connections are refused
                asked = time.monotonic()
                assert post(f"{program.url}/v1/rerank", body(query=str(at))).status_code == 200
                assert time.monotonic() - asked < 8  # the exporter would wait for 10 s
            stopped = time.monotonic()
            program.process.send_signal(signal.SIGTERM)
            assert program.process.wait(30) == 0
            assert time.monotonic() - stopped < 8
            assert program.process.stderr is not None
            assert "Traceback" not in program.process.stderr.read()


@pytest.mark.parametrize(
    ("environ", "why"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, None),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "True"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "zipkin"}, "'zipkin'"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "4318"),
    ],
)
def test_what_the_variables_ask_for(environ: dict[str, str], why: str | None) -> None:
    found = traces.refusal(environ)
    assert found == why or (why and found and why in found)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1", "max_queue_size must be a positive"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "few", "non-negative integer but got few"),
        ("OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER", "mine", "component 'mine' not found"),
        ("OTEL_PYTHON_METER_PROVIDER", "mine", "see the line before"),
    ],
)
def test_variables_that_opentelemetry_refuses_cost_the_traces_only(
    tmp_path: Path, name: str, value: str, says: str
) -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", name: value}
    with serving(tmp_path, XLMR, **env) as program:
        assert post(f"{program.url}/v1/rerank", body()).status_code == 200
        said = [line for line in program.ended() if "no traces are sent" in line]
    assert len(said) == 1 and says in said[0]


def test_values_that_opentelemetry_ignores_get_one_line_each(tmp_path: Path) -> None:
    """With its default instead, the traces are sent."""
    ignored = {
        "OTEL_BSP_SCHEDULE_DELAY": "abc",
        "OTEL_BSP_EXPORT_TIMEOUT": "",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1e2",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "soon",
        "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "mine",
        "OTEL_PYTHON_CONTEXT": "mine",
        "OTEL_TRACES_SAMPLER": "some",
    }
    with receiving() as receiver:
        with serving(tmp_path, XLMR, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, **ignored) as program:
            post(f"{program.url}/v1/rerank", body(), **{"x-request-id": "end"})
            said = program.ended()
        assert receiver.of("end")
    lines = [line for line in said if "OpenTelemetry" in line]
    assert len(lines) == len(ignored) and all("WARN" in one or "ERROR" in one for one in lines), said
    assert not [line for line in said if "Traceback" in line or 'File "' in line]


@pytest.mark.parametrize("traces_too", [True, False])
def test_a_propagator_that_is_not_installed_is_ignored(tmp_path: Path, traces_too: bool) -> None:
    env = {"OTEL_PROPAGATORS": "b4, tracecontext"}
    env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"} if traces_too else {}
    with serving(tmp_path, XLMR, **env) as program:
        assert post(f"{program.url}/v1/rerank", body()).status_code == 200
        said = [line for line in program.ended() if "OTEL_PROPAGATORS" in line]
    assert len(said) == 1 and "'b4'" in said[0]


@pytest.mark.parametrize(
    ("given", "left"),
    [("b4", ""), ("b4,baggage", "baggage"), ("tracecontext", "tracecontext"), ("NONE", "NONE"), (",", "")],
)
def test_propagators_that_are_installed_remain(given: str, left: str) -> None:
    environ = {"OTEL_PROPAGATORS": given}
    propagators.drop_missing(environ)
    assert environ == {"OTEL_PROPAGATORS": left}


def test_without_the_extra_a_line_says_what_to_install(tmp_path: Path) -> None:
    sdk = tmp_path / "first" / "opentelemetry" / "sdk"
    sdk.mkdir(parents=True)
    (sdk / "__init__.py").write_text("raise ImportError('No module named opentelemetry.sdk')")
    env = {"PYTHONPATH": str(tmp_path / "first"), "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    with serving(tmp_path, XLMR, **env) as program:
        assert post(f"{program.url}/v1/rerank", body()).status_code == 200
        said = [line for line in program.ended() if "no traces are sent" in line]
    assert len(said) == 1 and "pip install 'rerankd[otel]'" in said[0]
