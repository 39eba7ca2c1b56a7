"""The settings that only OpenVINO has."""

from __future__ import annotations

from typing import Literal

from rerankd.backends.openvino.precision import Wanted
from rerankd.backends.options import Options, per_model


class OpenVinoOptions(Options):
    """See the settings of these names."""

    precision: Wanted = per_model(
        "auto",
        description="OpenVINO: the arithmetic; auto takes bf16 where this CPU is faster with it and it keeps "
        "the model's order",
    )
    weights: Literal["full", "compressed"] = per_model(
        "full",
        description="OpenVINO: compressed keeps 8 bits of each: a third of the memory, scores move a little",
    )
