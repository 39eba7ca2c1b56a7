"""The OpenVINO backend: encoders on a CPU. Imports no OpenVINO: only its worker does."""

from __future__ import annotations

from rerankd.backends.openvino.options import OpenVinoOptions


class OpenVinoBackend:
    """See backends/base.py."""

    name = "openvino"
    title = "OpenVINO"
    summary = "encoders on a CPU"
    Options = OpenVinoOptions
