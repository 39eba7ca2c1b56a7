"""Settings of the PyTorch backend: device, and whether a model may run code of its own."""

from __future__ import annotations

from rerankd.backends.options import PrecisionOptions, per_model


class TorchOptions(PrecisionOptions):
    """Settings; the descriptions are below and in PrecisionOptions."""

    device: str = per_model(
        "auto",
        on_cpu="cpu",
        pattern=r"auto|cpu|mps|(cuda|xpu)(:\d+)?",
        description="PyTorch: the device, such as cuda, cuda:1, mps, xpu or cpu; auto uses a GPU if possible",
    )
    trust_remote_code: bool = per_model(
        False,
        is_permission=True,
        description="PyTorch: run the Python code in the model's own files; it can do anything that rerankd "
        "can, so read it first",
    )
