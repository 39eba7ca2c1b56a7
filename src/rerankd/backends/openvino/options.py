"""Settings of the OpenVINO backend: precision and weights."""

from __future__ import annotations

from typing import Literal

from rerankd.backends.options import PrecisionOptions, per_model


class OpenVinoOptions(PrecisionOptions):
    """Settings; the descriptions are below and in PrecisionOptions."""

    weights: Literal["full", "compressed"] = per_model(
        "full",
        description="OpenVINO: compressed stores weights in 8 bits: a third of the memory, scores change a "
        "little",
    )
