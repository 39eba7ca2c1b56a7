"""OpenVINO's package, imported without its model converters.

Importing those sends a usage event over the network (`openvino_telemetry`), which nobody who serves models on
a machine of their own asked for, and costs 0.1 s. The package does without where they can't be imported.
"""

from __future__ import annotations

import sys

# None makes an import of that name fail.
sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402
from openvino import opset13 as op  # noqa: E402

__all__ = ["op", "ov"]
