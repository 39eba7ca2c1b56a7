"""The table of architectures."""

from __future__ import annotations

from collections.abc import Mapping

from rerankd.backends.torch.architecture import Architecture
from rerankd.backends.torch.architectures.bert import Bert
from rerankd.backends.torch.architectures.modern_bert import ModernBert
from rerankd.backends.torch.architectures.qwen import Qwen

ARCHITECTURES: Mapping[str, type[Architecture]] = {
    "bert": Bert,
    "modern-bert": ModernBert,
    "qwen2": Qwen,
    "qwen3": Qwen,
}
"""By `general.architecture` of the GGUF metadata. support.py lists the same names, because it may not import
PyTorch."""
