"""The backends, in the order in which they are asked. A new one is a folder and a line here.

The settings are made from the rows when they are imported, which every command does: what takes long to
import, a row imports where it is used.
"""

from __future__ import annotations

from rerankd.backends.base import Backend
from rerankd.backends.llama.backend import LlamaBackend
from rerankd.backends.openvino.backend import OpenVinoBackend

BACKENDS: list[Backend] = [OpenVinoBackend(), LlamaBackend()]
