"""The table of backends, in order of preference. To add a backend, add its folder and a line here.

Every command imports this table, because the settings are built from its rows. A row therefore imports slow
modules only inside the methods that use them.
"""

from __future__ import annotations

from rerankd.backends.base import Backend
from rerankd.backends.llama.backend import LlamaBackend
from rerankd.backends.onnx.backend import OnnxBackend
from rerankd.backends.openvino.backend import OpenVinoBackend
from rerankd.backends.torch.backend import TorchBackend

BACKENDS: list[Backend] = [OpenVinoBackend(), OnnxBackend(), TorchBackend(), LlamaBackend()]
