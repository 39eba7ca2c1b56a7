"""The architectures that the OpenVINO backend computes: one file each, and a line in this table."""

from __future__ import annotations

from collections.abc import Mapping

from rerankd.backends.openvino.architecture import Architecture
from rerankd.backends.openvino.architectures.bert import Bert
from rerankd.backends.openvino.architectures.modern_bert import ModernBert

ARCHITECTURES: Mapping[str, type[Architecture]] = {"bert": Bert, "modern-bert": ModernBert}
"""By the architecture's name in GGUF metadata."""
