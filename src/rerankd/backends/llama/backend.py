"""The llama.cpp backend: any GGUF model, on a CPU or a GPU."""

from __future__ import annotations

from rerankd.backends.llama.options import LlamaOptions


class LlamaBackend:
    """See backends/base.py."""

    name = "llama"
    title = "llama.cpp"
    summary = "llama.cpp"
    Options = LlamaOptions
