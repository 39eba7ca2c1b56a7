"""(pure) Which tokenizers formats/tokenizer.py supports, without importing the tokenizers library."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rerankd.formats.metadata import ModelMetadata

# (tokenizer.ggml.model, and tokenizer.ggml.pre for byte-level BPE) -> the architectures it was tested with
_KNOWN: Mapping[tuple[str, str], Collection[str]] = {
    ("t5", ""): ("bert", "jina-bert-v3", "nomic-bert-moe"),
    ("bert", ""): ("bert", "jina-bert-v2", "nomic-bert"),
    ("llama", ""): ("gemma", "gemma2", "gemma3"),
    ("gpt2", "llama-bpe"): ("llama", "llama-embed"),
    ("gpt2", "modern-bert"): ("modern-bert",),
    ("gpt2", "qwen2"): ("qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe"),
    ("gpt2", "smollm"): ("llama",),
    ("gpt2", "qwen35"): ("qwen35", "qwen35moe"),
}


def refusal(metadata: ModelMetadata) -> str:
    """Why the vocabulary of a model's file is not supported, as a clause; "" if it is."""
    if metadata.format != "gguf":
        return ""
    kind, pre = metadata.tokenizer_model, metadata.tokenizer_pre
    known = _KNOWN.get((kind, pre if kind == "gpt2" else ""), ())
    if metadata.architecture not in known:
        return f"the tokenizer {kind} {pre} of the architecture {metadata.architecture} is not supported"
    if kind == "t5" and not metadata.has_charsmap:
        return "the file lacks its tokenizer's normalization map"
    return ""
