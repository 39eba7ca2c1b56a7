"""Import OpenVINO without its telemetry and model converters; the configuration of its compiler.

Importing the converters sends a usage event over the network (`openvino_telemetry`) and takes 0.1 s. OpenVINO
works without them if they can't be imported.
"""

from __future__ import annotations

import sys

# None in sys.modules makes the import fail.
sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402
from openvino import opset13 as op  # noqa: E402

from rerankd.backends.openvino.precision import Precision  # noqa: E402

__all__ = ["about", "config", "op", "ov"]


def config(threads: int, precision: Precision) -> dict[str, object]:
    """Return OpenVINO's compile options. One stream: a second one gains no speed and costs memory."""
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # By default OpenVINO rounds activations to 8 bits if weights are compressed.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "INFERENCE_NUM_THREADS": threads,
        # A pinned thread would wait for a busy core while another core is free.
        "ENABLE_CPU_PINNING": False,
    }


def about(threads: int, precision: Precision, why: str, *, compressed: bool) -> str:
    """Return how a model is computed, in words. `why` is the reason for the precision, if it is known."""
    version = ov.get_version().partition("-")[0]
    because = f" ({why})" if why else ""
    kept = ", weights compressed" if compressed else ""
    return f"OpenVINO {version}, {precision}{because}, {threads} threads{kept}"
