"""The table of architectures."""

from __future__ import annotations

from collections.abc import Mapping

from rerankd.backends.torch.architecture import Architecture
from rerankd.backends.torch.architectures.bert import Bert
from rerankd.backends.torch.architectures.deberta_v2 import DebertaV2
from rerankd.backends.torch.architectures.gemma import Gemma
from rerankd.backends.torch.architectures.gte import Gte
from rerankd.backends.torch.architectures.llama import Llama
from rerankd.backends.torch.architectures.modern_bert import ModernBert
from rerankd.backends.torch.architectures.qwen import Qwen

ARCHITECTURES: Mapping[str, type[Architecture]] = {
    "bert": Bert,
    "deberta-v2": DebertaV2,
    "llama-embed": Llama,
    "modern-bert": ModernBert,
    "new": Gte,
    "gemma": Gemma,
    "gemma2": Gemma,
    "gemma3": Gemma,
    "llama": Llama,
    "qwen2": Qwen,
    "qwen3": Qwen,
    "qwen3vl": Qwen,  # for texts alone, whose positions are the same in all three sections
}
"""By `general.architecture` of the GGUF metadata. support.py lists the same names, because it may not import
PyTorch."""
