"""(pure) doctor's check for PyTorch: whether it is installed, and which device it uses."""

from __future__ import annotations

from rerankd.backends.base import Check
from rerankd.backends.torch import devices
from rerankd.backends.torch.devices import Survey
from rerankd.domain import Refusal

_CHECK = "torch"


def package(survey: Survey, wanted: str) -> Check:
    """Report PyTorch's version and the device that the setting `wanted` selects."""
    if not survey.version:
        return Check(
            _CHECK,
            "ok",
            "not installed: models run on other engines",
            "for more models, and speed on a GPU: pip install 'rerankd[torch]'",
        )
    device = devices.choose(survey, wanted)
    if isinstance(device, Refusal):
        return Check(_CHECK, "warn", device.reason, device.next_step)
    return Check(_CHECK, "ok", f"{survey.version} on {device.name} ({device.title})")
