"""Settings of the OpenVINO backend: precision and weights."""

from __future__ import annotations

from typing import Literal

from rerankd.backends.openvino.precision import Wanted
from rerankd.backends.options import Options, per_model


class OpenVinoOptions(Options):
    """Settings; the descriptions are below."""

    precision: Wanted = per_model(
        "auto",
        description="OpenVINO: precision of the arithmetic; auto uses bf16 if it is faster on this CPU and "
        "does not change the order of documents",
    )
    weights: Literal["full", "compressed"] = per_model(
        "full",
        description="OpenVINO: compressed stores weights in 8 bits: a third of the memory, scores change a "
        "little",
    )
