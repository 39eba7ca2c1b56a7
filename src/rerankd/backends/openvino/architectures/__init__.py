"""The table of architectures that the OpenVINO backend supports. Each has a file here and a row below."""

from __future__ import annotations

from collections.abc import Mapping

from rerankd.backends.openvino.architecture import Architecture
from rerankd.backends.openvino.architectures.bert import Bert
from rerankd.backends.openvino.architectures.deberta_v2 import DebertaV2
from rerankd.backends.openvino.architectures.gemma import Gemma, Gemma2, Gemma3
from rerankd.backends.openvino.architectures.gte import Gte
from rerankd.backends.openvino.architectures.llama import Llama, LlamaBidirectional
from rerankd.backends.openvino.architectures.modern_bert import ModernBert
from rerankd.backends.openvino.architectures.qwen3 import Qwen2, Qwen3
from rerankd.backends.openvino.decoder import Decoder

ARCHITECTURES: Mapping[str, type[Architecture]] = {
    "bert": Bert,
    "deberta-v2": DebertaV2,
    "llama": LlamaBidirectional,  # whose file declares that it is not causal
    "llama-embed": LlamaBidirectional,
    "modern-bert": ModernBert,
    "new": Gte,
}
"""Encoders, by `general.architecture` of the GGUF metadata; "new" is mGTE's. backend.py lists the same names,
because it may not import OpenVINO."""

DECODERS: Mapping[str, type[Decoder]] = {
    "gemma": Gemma,
    "gemma2": Gemma2,
    "gemma3": Gemma3,
    "llama": Llama,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
}
"""Causal models, likewise."""
