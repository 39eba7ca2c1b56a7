"""What is read off the models of the settings for the metrics."""

from __future__ import annotations

from collections.abc import Iterable

from rerankd.metrics import Reading
from rerankd.serving.model_names import Entry
from rerankd.serving.served_model import ServedModel
from rerankd.serving.throughput import Throughput


def of(entries: Iterable[Entry]) -> list[Reading]:
    """The readings of all models; of one that can't be asked, only that it can't."""
    return [
        Reading(name, what, entry.name, value)
        for entry in entries
        for name, (what, value) in _values(entry).items()
    ]


def _values(entry: Entry) -> dict[str, tuple[str, float]]:
    values: dict[str, tuple[str, float]] = {
        "model_served": (
            "1 where the model may be asked, 0 while it is read or refused",
            isinstance(entry, ServedModel),
        ),
        "engine_ready": ("1 while the engine can answer", entry.state.phase == "ready"),
    }
    if not isinstance(entry, ServedModel):
        return values
    state, scheduler = entry.state, entry.queue.scheduler
    usage, throughput = scheduler.usage, scheduler.throughput
    return values | {
        "engine_starts": ("children started, the first included", state.starts),
        "engine_lost": ("children that died, hung, or would not start", state.lost),
        "engine_memory_bytes": ("memory of the engine's processes", entry.memory_bytes() or 0),
        "queue_requests": ("requests under way or waiting", len(scheduler)),
        "queue_documents": ("documents of these, by chunk, that are not scored yet", usage.documents),
        "queue_tokens": ("tokens of these that are not read yet", usage.tokens),
        "queue_bytes": ("bytes of text of these requests", usage.size_bytes),
        "documents_per_second": (
            "what the engines score while they have work, 0 before the first",
            throughput.inputs_per_s,
        ),
        "tokens_per_second": ("the same in tokens", tokens_per_second(throughput)),
        "cache_entries": ("scores that are kept", len(entry.cache)),
    }


def tokens_per_second(throughput: Throughput) -> float:
    """What was measured, not what the queue guesses before."""
    return throughput.tokens_per_s if throughput.is_measured else 0.0
