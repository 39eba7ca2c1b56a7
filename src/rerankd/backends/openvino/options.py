"""Settings of the OpenVINO backend: those that it shares."""

from __future__ import annotations

from rerankd.backends.options import PrecisionOptions


class OpenVinoOptions(PrecisionOptions):
    """Settings; the descriptions are in PrecisionOptions."""
