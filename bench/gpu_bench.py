"""What the parts of bench/gpu.py share: options, the folder of the models, the peak, and the results."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import gpu_models
import torch
from gpu_meters import Gpu
from gpu_models import Shape
from gpu_service import Failed

from rerankd import machine


@dataclass
class Bench:
    """A run. `models` and `home` are the folders of the models and of the service's data. `results` holds a
    list of rows for each part; they are written after each row."""

    options: argparse.Namespace
    models: Path
    home: Path
    device: torch.device
    gpu: Gpu
    is_tiny: bool
    peak_flops: float = 0.0
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def processes(self) -> int:
        """How many processes send requests."""
        return max(1, min(4, (os.cpu_count() or 2) // 2))

    def describe(self) -> None:
        """Measure the device's peak, and put it with the machine's name at the start of the results."""
        self.peak_flops = peak(self.device)
        is_card = self.device.type == "cuda"
        self.results["machine"] = {
            "device": torch.cuda.get_device_name() if is_card else machine.cpu_name(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "gemm_bf16_tflops": round(self.peak_flops / 1e12, 1),
            "models_in": str(self.models),
            "tiny": self.is_tiny,
        }
        print(json.dumps(self.results["machine"]), flush=True)

    def sized(self, shape: Shape) -> Shape:
        """The shape itself, or a tiny one for a check of the script."""
        return gpu_models.tiny(shape) if self.is_tiny else shape

    def make(self, shape: Shape) -> Path:
        """The folder of a model, and no memory of the card held afterwards."""
        started = time.perf_counter()
        folder = gpu_models.make(shape, self.models, self.device)
        self.release()
        print(f"made {shape.name} in {time.perf_counter() - started:.1f} s", flush=True)
        return folder

    def release(self) -> None:
        """Give the card's memory back, so that the service has it."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def add(self, part: str, row: Mapping[str, Any]) -> None:
        """Keep a row, print it, and write all results."""
        self.results.setdefault(part, []).append(row)
        print(f"{part}: {json.dumps(row)}", flush=True)
        self.write()

    def write(self) -> None:
        whole = self.options.out.with_suffix(".part")
        whole.write_text(json.dumps(self.results, indent=1))
        whole.replace(self.options.out)

    @contextlib.contextmanager
    def guarded(self, part: str, what: str, until: float) -> Iterator[None]:
        """Limit a measurement to a time of the monotonic clock. A failure becomes a row, and the next
        measurement begins."""
        seconds = until - time.monotonic()

        def late(signal_number: int, frame: FrameType | None) -> None:
            raise Failed(f"it took more than {max(seconds, 0):.0f} s")

        signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
        try:
            yield
        except Exception as error:  # the boundary of one measurement: the others must go on
            self.add(part, {"model": what, "error": f"{type(error).__name__}: {error!s:.2000}"})
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def peak(device: torch.device) -> float:
    """FLOP/s of a square matrix product in bf16: the median of 20."""
    size = 8192 if device.type == "cuda" else 512
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(25):
        started = time.perf_counter()
        (one @ other)[0, 0].item()
        times.append(time.perf_counter() - started)
    return float(2 * size**3 / statistics.median(times[5:]))
