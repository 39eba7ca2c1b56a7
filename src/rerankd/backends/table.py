"""The backends, in the order in which they are asked. A new one is a folder and a line here."""

from __future__ import annotations

from rerankd.backends.llama.backend import LlamaBackend
from rerankd.backends.openvino.backend import OpenVinoBackend

BACKENDS = [OpenVinoBackend(), LlamaBackend()]
