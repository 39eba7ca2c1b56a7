"""OpenVINO's package, imported without its model converters, and how it is to compile.

Importing those sends a usage event over the network (`openvino_telemetry`), which nobody who serves models on
a machine of their own asked for, and costs 0.1 s. The package does without where they can't be imported.
"""

from __future__ import annotations

import sys

# None makes an import of that name fail.
sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402
from openvino import opset13 as op  # noqa: E402

from rerankd.backends.openvino.precision import Precision  # noqa: E402

__all__ = ["config", "op", "ov"]


def config(threads: int, precision: Precision) -> dict[str, object]:
    """How OpenVINO is to compile a model: one stream, for a second one gains nothing and costs memory."""
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # Else activations are rounded to 8 bits where weights are compressed.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "INFERENCE_NUM_THREADS": threads,
        # Pinned threads wait for a core that somebody else has, while another one is free.
        "ENABLE_CPU_PINNING": False,
    }
