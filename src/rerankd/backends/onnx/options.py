"""Settings of the ONNX Runtime backend: those that it shares."""

from __future__ import annotations

from rerankd.backends.options import PrecisionOptions


class OnnxOptions(PrecisionOptions):
    """Settings; the descriptions are in PrecisionOptions."""
