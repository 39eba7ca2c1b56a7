"""The messages of the trainer: one JSON object a line, with the key `event`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TextIO

LOADED = "loaded"
"""`parameters`, `device`, `max_length`, `has_new_head`: what the base model is."""
STEP = "step"
"""`step` of `steps`, `loss` since the message before, `left_s`: the remaining time, None if unknown."""
VALIDATED = "validated"
"""`step`, `ndcg`: the mean nDCG@10 of the validation queries; step 0 is the base model."""
SAVED = "saved"
"""`step`: a checkpoint is complete; `best_step`, None before the first validation."""
STOPPED = "stopped"
"""`step`: the checkpoint of a stop that was asked for."""
DONE = "done"
"""`best_step`, `ndcg`, `early`: whether training ended before the last epoch."""
FAILED = "failed"
"""`reason`: why training ended."""
DISK_FULL = "disk_full"
"""`reason`: the same for a full disk."""


class Writer:
    """Writes messages to a stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, event: str, **values: Any) -> None:
        print(json.dumps({"event": event, **values}), file=self._stream, flush=True)


def parse(line: str) -> Mapping[str, Any] | None:
    """Read a message; None for a line that is cut or is none."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "event" in value else None
