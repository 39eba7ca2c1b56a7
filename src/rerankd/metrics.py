"""What is counted and measured, each declared once. A registry of its own for each Reranker."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rerankd.domain import RerankResult
from rerankd.recent_history import RecentHistory

# From a cached answer to the default deadline.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_DOCUMENTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 10_000)


@dataclass(frozen=True, slots=True)
class Reading:
    """One value that is read off at the moment of asking: its name, what it is, and of which model."""

    name: str
    what: str
    model: str
    value: float


Readings = Callable[[], list[Reading]]


class Metrics:
    """The counters of one Reranker since `started` (of the monotonic clock), and its last minutes.

    `read` makes the page that Prometheus reads.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, readings: Readings) -> None:
        self.started = time.monotonic()
        self.recent = RecentHistory()
        registry = self._registry = CollectorRegistry()
        counter, histogram = partial(Counter, registry=registry), partial(Histogram, registry=registry)
        self.requests = counter(
            "rerankd_requests",
            "answers, by dialect, HTTP status, model and name of the key",
            ["dialect", "status", "model", "key"],
        )
        self.latency = histogram(
            "rerankd_request_seconds",
            "from the request's arrival to its answer",
            ["dialect", "model"],
            buckets=_SECONDS,
        )
        self.queue_wait = histogram(
            "rerankd_queue_wait_seconds",
            "until the first batch of a request went to an engine",
            buckets=_SECONDS,
        )
        self.documents = histogram("rerankd_request_documents", "documents of a request", buckets=_DOCUMENTS)
        self.tokens = counter("rerankd_tokens", "tokens that the engine read")
        self.documents_truncated = counter("rerankd_documents_cut", "documents cut to the model's window")
        self.unscored = counter(
            "rerankd_documents_unscored", "documents that the budgets of their requests left out"
        )
        self.cache_hits = counter("rerankd_cache_hits", "texts whose score was known")
        self.cache_misses = counter("rerankd_cache_misses", "texts whose score was not known")
        self.retries = counter("rerankd_retries", "calls made again because the engine died under them")
        self.held_bytes = Gauge(
            "rerankd_held_bytes",
            "bytes of request bodies that are being read, and of answers that are being sent",
            registry=registry,
        )
        self.deadlines = counter("rerankd_deadlines_passed", "requests that took too long")
        registry.register(_AtTheMoment(readings))

    def answered(self, documents: int, texts: int, result: RerankResult) -> None:
        """Count one request that got its scores; `texts` is how many different ones it had."""
        self.documents.observe(documents)
        self.queue_wait.observe(result.queue_s)
        self.tokens.inc(result.tokens)
        self.cache_hits.inc(result.cached)
        self.cache_misses.inc(texts - result.cached)
        self.documents_truncated.inc(len(result.truncated))
        self.unscored.inc(len(result.unscored))
        self.recent.scored(time.monotonic(), documents - len(result.unscored))

    def ended(self, dialect: str, status: int, seconds: float, *, model: str = "", key: str = "") -> None:
        """Count one answer, whatever it says. `model` is empty where it never came to a model, `key` where no
        key was asked for or sent."""
        self.requests.labels(dialect, status, model, key).inc()
        self.latency.labels(dialect, model).observe(seconds)
        self.recent.ended(time.monotonic(), seconds, failed=status >= 400)

    def read(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)


class _AtTheMoment(Collector):
    def __init__(self, readings: Readings) -> None:
        self._readings = readings

    def collect(self) -> list[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for reading in self._readings():
            if reading.name not in families:
                name = f"rerankd_{reading.name}"
                families[reading.name] = GaugeMetricFamily(name, reading.what, labels=["model"])
            families[reading.name].add_metric([reading.model], reading.value)
        return list(families.values())
