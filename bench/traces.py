"""What traces cost a request, in CPU time of the event loop: off, and on without a collector that answers.

python bench/traces.py
"""

from __future__ import annotations

import logging
import os
import statistics
import time
import timeit

from starlette.requests import Request
from starlette.responses import Response

from rerankd import tracing
from rerankd.api import traces

CALLS = 5000


def steps() -> None:
    """The steps of a request with one batch, as the service records them."""
    for name in ("tokenize query", "tokenize documents"):
        with tracing.step(name):
            pass
    tracing.count(documents=10, tokens=1000, cached=0)
    if (trace := tracing.current()) is not None:
        trace.add("queue", trace.begun, trace.begun)
        trace.add("score", trace.begun, trace.begun, inputs=10, batch_inputs=10, batch_tokens=1000)


def traced(sender: traces.Traces, request: Request) -> None:
    with tracing.collected() as trace:
        steps()
    sender.send(trace, request, Response())


def main() -> None:
    logging.disable()
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
    sender = traces.from_environment(os.environ)
    assert sender is not None, "pip install 'rerankd[otel]'"
    state = {"dialect": "jina", "model": "m", "request_id": "r"}
    request = Request(
        {
            **{
                "type": "http",
                "method": "POST",
                "path": "/v1/rerank",
                "scheme": "http",
                "http_version": "1.1",
            },
            **{"server": ("127.0.0.1", 11440), "headers": [(b"user-agent", b"bench")], "state": state},
        }
    )
    for name, call in (("off", steps), ("on", lambda: traced(sender, request))):
        times = timeit.repeat(call, timer=time.thread_time, number=CALLS, repeat=9)
        print(f"{name:4} {statistics.median(times) / CALLS * 1e6:8.1f} µs of CPU a request")


if __name__ == "__main__":
    main()
