"""Read the gauges of all models for the metrics page."""

from __future__ import annotations

from rerankd.metrics import Reading
from rerankd.remote_models import RemoteModel
from rerankd.serving.admission import Usage
from rerankd.serving.model_names import AnyModel
from rerankd.serving.pending_model import PendingModel
from rerankd.serving.registry import ModelRegistry
from rerankd.serving.remote_calls import RemoteCalls
from rerankd.serving.served_model import ServedModel
from rerankd.serving.throughput import Throughput


def of(registry: ModelRegistry) -> list[Reading]:
    """The gauges of all models, and of the files of the cache on disk. A model that is not served yet has
    only two."""
    files = [
        reading
        for name, file in registry.disk.status.items()
        for reading in (
            Reading(f"disk_cache_{name}_bytes", f"bytes of the {name} on disk", "", file.size_bytes),
            Reading(
                f"disk_cache_{name}_usable", f"1 if the {name} on disk can be used", "", not file.problem
            ),
        )
    ]
    return files + [
        Reading(name, what, entry.name, value)
        for entry in registry.all
        for name, (what, value) in _values(entry, registry.remote_calls).items()
    ]


def _values(entry: AnyModel, calls: RemoteCalls) -> dict[str, tuple[str, float]]:
    values: dict[str, tuple[str, float]] = {
        "model_served": (
            "1 if the model is served, 0 while it is prepared or refused",
            not isinstance(entry, PendingModel),
        ),
        "engine_ready": ("1 while the engine is ready", entry.state.phase == "ready"),
    }
    if isinstance(entry, PendingModel):
        return values
    if not isinstance(entry, ServedModel):
        return values | _of_remote(entry, calls)
    state, scheduler = entry.state, entry.queue.scheduler
    throughput = scheduler.throughput
    kept = entry.replicas.kept if entry.replicas is not None else None
    if kept is not None:
        values |= {
            "document_vectors": ("documents whose vectors are kept", kept.documents),
            "document_vectors_bytes": ("memory of these vectors", kept.size_bytes),
            "document_vectors_hits": (
                "documents whose vectors were kept, since the engine started",
                kept.hits,
            ),
            "document_vectors_misses": ("documents that were read, since the engine started", kept.misses),
            "document_vectors_disk_hits": (
                "documents whose vectors were on disk, since the engine started",
                kept.disk_hits,
            ),
        }
    return values | {
        "engine_starts": ("engine processes started, including the first", state.starts),
        "engine_lost": ("engine processes that exited, hung, or failed to start", state.lost),
        "engine_memory_bytes": ("memory of the engine processes", entry.memory_bytes() or 0),
        **_of_queue(scheduler.usage),
        "queue_tokens": ("tokens of these documents", scheduler.usage.tokens),
        "documents_per_second": (
            "throughput while the engines have work, 0 until measured",
            throughput.inputs_per_s,
        ),
        "tokens_per_second": (
            "throughput in tokens while the engines have work, 0 until measured",
            tokens_per_second(throughput),
        ),
        "cache_entries": ("scores in the cache in memory", len(entry.cache)),
        "cache_memory_hits": ("texts whose score was in memory", entry.cache.use.memory_hits),
        "cache_disk_hits": ("texts whose score was on disk", entry.cache.use.disk_hits),
    }


def _of_remote(model: RemoteModel, calls: RemoteCalls) -> dict[str, tuple[str, float]]:
    places = model.places
    return {
        **_of_queue(calls.usage(model)),
        "remote_places": ("servers or replicas that serve the model elsewhere", len(places)),
        "remote_places_ready": (
            "servers or replicas that can answer",
            sum(one.phase == "ready" for one in places),
        ),
    }


def _of_queue(usage: Usage) -> dict[str, tuple[str, float]]:
    return {
        "queue_requests": ("requests that wait or are being scored", usage.requests),
        "queue_documents": (
            "documents of these requests that are not scored yet, counted in chunks",
            usage.documents,
        ),
        "queue_bytes": ("bytes of text of these requests", usage.size_bytes),
    }


def tokens_per_second(throughput: Throughput) -> float:
    """The measured throughput; 0 rather than the queue's estimate until it is measured."""
    return throughput.tokens_per_s if throughput.is_measured else 0.0
