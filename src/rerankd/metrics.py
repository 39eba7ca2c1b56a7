"""Prometheus metrics: counters, histograms and gauges, each declared once. Each Reranker has its own
registry."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rerankd.recent_history import STEP_S, RecentHistory
from rerankd.rerank_result import RerankResult

# From a cached answer to the default deadline.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_DOCUMENTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 10_000)


@dataclass(frozen=True, slots=True)
class Reading:
    """One gauge, read when the metrics are requested: its name, its description, its model ("" if it belongs
    to none) and its value."""

    name: str
    what: str
    model: str
    value: float


Readings = Callable[[], list[Reading]]


class Metrics:
    """The metrics of one Reranker since `started` (monotonic clock), and its recent history.

    `read` returns the page for Prometheus.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, readings: Readings) -> None:
        self.started = time.monotonic()
        self.recent = RecentHistory()
        registry = self._registry = CollectorRegistry()
        counter, histogram = partial(Counter, registry=registry), partial(Histogram, registry=registry)
        self.requests = counter(
            "rerankd_requests",
            "responses, by dialect, HTTP status, model and name of the key",
            ["dialect", "status", "model", "key"],
        )
        self.latency = histogram(
            "rerankd_request_seconds",
            "time from the arrival of a request to its response",
            ["dialect", "model"],
            buckets=_SECONDS,
        )
        self.queue_wait = histogram(
            "rerankd_queue_wait_seconds",
            "time until an engine started the first batch of a request",
            buckets=_SECONDS,
        )
        self.documents = histogram("rerankd_request_documents", "documents of a request", buckets=_DOCUMENTS)
        self.tokens = counter("rerankd_tokens", "tokens that the engine read")
        self.documents_truncated = counter("rerankd_documents_cut", "documents truncated to the token limit")
        self.unscored = counter(
            "rerankd_documents_unscored", "documents left out because of their request's budget"
        )
        self.cache_hits = counter("rerankd_cache_hits", "texts whose score was in the cache")
        self.cache_misses = counter("rerankd_cache_misses", "texts whose score was not in the cache")
        self.retries = counter("rerankd_retries", "calls retried because the engine was lost")
        self.held_bytes = Gauge(
            "rerankd_held_bytes",
            "bytes of request bodies being read and responses being sent",
            registry=registry,
        )
        self.deadlines = counter("rerankd_deadlines_passed", "requests that exceeded their deadline")
        self._readings = readings
        registry.register(_AtTheMoment(readings))

    async def sample(self) -> None:
        """Add the gauges to the recent history periodically, until cancelled. Takes some 0.1 ms each time."""
        while True:
            total: dict[str, int] = defaultdict(int)
            for one in self._readings():
                total[one.name] += int(one.value)
            self.recent.sampled(
                time.monotonic(),
                waiting=total["queue_documents"],
                memory_bytes=total["engine_memory_bytes"],
                lost=total["engine_lost"],
            )
            await asyncio.sleep(STEP_S)

    def answered(self, documents: int, texts: int, result: RerankResult) -> None:
        """Count a request that got its scores; `texts` is the number of its distinct texts."""
        self.documents.observe(documents)
        self.queue_wait.observe(result.queue_s)
        self.tokens.inc(result.tokens)
        self.cache_hits.inc(result.cached)
        # Another server may count its cached texts in another way.
        self.cache_misses.inc(max(texts - result.cached, 0))
        self.documents_truncated.inc(len(result.truncated))
        self.unscored.inc(len(result.unscored))
        self.recent.scored(time.monotonic(), documents - len(result.unscored))

    def ended(self, dialect: str, status: int, seconds: float, *, model: str = "", key: str = "") -> None:
        """Count a response, including errors. `model` is empty if no model was reached, `key` if no key was
        required or sent."""
        self.requests.labels(dialect, status, model, key).inc()
        self.latency.labels(dialect, model).observe(seconds)
        self.recent.ended(time.monotonic(), seconds, failed=status >= 400)

    def read(self) -> bytes:
        """All metrics in Prometheus text format."""
        return generate_latest(self._registry)


class _AtTheMoment(Collector):
    def __init__(self, readings: Readings) -> None:
        self._readings = readings

    def collect(self) -> list[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for reading in self._readings():
            labels = ["model"] if reading.model else []
            if reading.name not in families:
                name = f"rerankd_{reading.name}"
                families[reading.name] = GaugeMetricFamily(name, reading.what, labels=labels)
            families[reading.name].add_metric([reading.model][: len(labels)], reading.value)
        return list(families.values())
