"""What is read off a served model for the metrics."""

from __future__ import annotations

from rerankd.metrics import Reading
from rerankd.serving.served_model import ServedModel


def of(served: ServedModel) -> list[Reading]:
    """The readings of one model."""
    state, line = served.state, served.queue.line
    values: dict[str, tuple[str, float]] = {
        "engine_ready": ("1 while the engine can answer", state.engine is not None),
        "engine_starts": ("children started, the first included", state.starts),
        "engine_lost": ("children that died, hung, or would not start", state.lost),
        "engine_memory_bytes": ("memory of the engine's processes", served.memory_bytes() or 0),
        "queue_requests": ("requests under way or waiting", len(line)),
        "queue_documents": ("documents of these that are not scored yet", line.documents),
        "queue_bytes": ("bytes of text of these requests", line.size_bytes),
        "documents_per_second": ("what the engine scores while it has work", line.rate),
        "cache_entries": ("scores that are kept", len(served.cache)),
    }
    return [Reading(name, what, served.name, value) for name, (what, value) in values.items()]
