"""The PyTorch backend: runs encoders and causal models on a GPU or a CPU. Only its worker imports PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rerankd import machine
from rerankd.backends.base import (
    BatchPolicy,
    Check,
    Checkup,
    Engine,
    EngineSpec,
    Installation,
    Offer,
    Rank,
)
from rerankd.backends.safer_steps import Step
from rerankd.backends.torch import budget, checks, devices, support, survey
from rerankd.backends.torch.devices import Arithmetic, Device, Survey
from rerankd.backends.torch.options import TorchOptions
from rerankd.domain import Refusal
from rerankd.process.child import Launch

if TYPE_CHECKING:
    from rerankd.machine import Gpu
    from rerankd.state import StateStore


_PADDED = Step("padded_attention", "padded attention")
_FLOAT32 = Step("float32", "float32 arithmetic")
# The process itself, with PyTorch: 330 MiB on a CPU (measured); 600 MiB with CUDA's context.
_PROCESS_BYTES = {True: 330 * 2**20, False: 600 * 2**20}
# Larger calls of a card have room for all documents of a request; smaller ones leave it idle.
_CARD_POLICY = BatchPolicy(tokens=16384, most_tokens=budget.MOST_ON_CARD, inputs=512)
_CPU_POLICY = BatchPolicy(tokens=1024, most_tokens=8192)
# The worker reads files only.
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True, kw_only=True)
class TorchOffer(Offer):
    """An offer of PyTorch, on a device. `is_reference`: sentence-transformers computes it."""

    options: TorchOptions
    device: Device
    arithmetic: Arithmetic
    is_reference: bool = False


class TorchBackend:
    """See backends/base.py."""

    name = "torch"
    title = "PyTorch"
    summary = "safetensors and GGUF on a GPU"
    packages: tuple[str, ...] = ("torch",)
    Options = TorchOptions

    def survey(self, options: TorchOptions, home: Path, spec: EngineSpec | None = None) -> Survey:
        return survey.look(home)

    def installations(self, options: TorchOptions, home: Path) -> list[Installation]:
        found = self.survey(options, home)
        if isinstance(device := devices.choose(found, options.device), Refusal):
            return []
        details = {"backend": device.kind, "version": found.version, "device": device.title}
        environment = {"RERANKD_ENGINE": self.name}
        is_used = device.kind != devices.CPU  # there, other engines come first
        return [Installation(self.name, self.title, environment, used=is_used, details=details)]

    def cards(self, survey: Survey, options: TorchOptions) -> tuple[Gpu, ...]:
        device = devices.choose(survey, options.device)
        return () if isinstance(device, Refusal) or device.kind != "cuda" else machine.gpus()

    def offer(self, spec: EngineSpec, options: TorchOptions, survey: Survey) -> TorchOffer | Refusal:
        if refusal := support.refused(spec.recipe, spec.metadata):
            return refusal
        device = devices.choose(survey, options.device)
        return device if isinstance(device, Refusal) else self._offer(spec, options, survey.version, device)

    def _offer(self, spec: EngineSpec, options: TorchOptions, version: str, device: Device) -> TorchOffer:
        assert spec.metadata is not None
        arithmetic = devices.arithmetic(device, spec.metadata.architecture, options.precision)
        on_cpu = device.kind == devices.CPU
        is_reference = support.needs_reference(spec.recipe, spec.metadata)
        held = spec.metadata.parameters * devices.bytes_a_number(arithmetic.precision)
        # On a CPU, pages of the file stay mapped until the memory is needed.
        held += spec.metadata.size_bytes if on_cpu else 0
        return TorchOffer(
            backend=self,
            spec=spec,
            name=self.title,
            build=f"{self.name} {version}",
            title=f"{self.title} on {device.name}",
            reason="it computes every model, on a CPU slower than others"
            if on_cpu
            else "a GPU does the work",
            rank=Rank.LAST_ON_CPU if on_cpu else Rank.GPU,
            memory_bytes=(held + _PROCESS_BYTES[on_cpu]) * spec.replicas,
            policy=_CPU_POLICY if on_cpu else _CARD_POLICY,
            on_cpu=on_cpu,
            options=options,
            device=device,
            arithmetic=arithmetic,
            is_reference=is_reference,
        )

    async def settle(self, offer: TorchOffer, learned: StateStore, log: Path, timeout_s: float) -> TorchOffer:
        return offer

    def steps(self, offer: TorchOffer, cards: Sequence[str]) -> tuple[Step, ...]:
        precision = offer.arithmetic.precision
        uses_varlen = devices.may_use_varlen(offer.device, precision) and not offer.is_reference
        padded = (_PADDED,) if uses_varlen else ()
        return (*padded, _FLOAT32) if precision != "f32" else padded

    def identity(self, offer: TorchOffer, taken: Sequence[Step]) -> str:
        precision = "f32" if _FLOAT32 in taken else offer.arithmetic.precision
        names = [step.name for step in taken]
        return f"{offer.build} {offer.device.title} {precision} {names} {offer.is_reference}"

    def launch(
        self, offer: TorchOffer, taken: Sequence[Step], cards: Sequence[str], socket: Path
    ) -> Launch[Engine]:
        from rerankd.backends.worker.client import WorkerEngine  # see the table: it imports what takes long

        spec, arithmetic = offer.spec, offer.arithmetic
        assert spec.metadata is not None
        if _FLOAT32 in taken:
            arithmetic = Arithmetic("f32", "half precision crashed")
        labels = support.labels(spec.recipe, spec.metadata)
        may_use_varlen = devices.may_use_varlen(offer.device, arithmetic.precision) and _PADDED not in taken
        argv = [
            sys.executable, "-P", "-m", "rerankd.backends.torch",
            "--model", str(spec.path),
            "--socket", str(socket),
            "--pooling", spec.recipe.pooling,
            *(("--labels", *map(str, labels)) if labels else ()),
            "--max-length", str(spec.recipe.max_length),
            "--threads", str(spec.threads),
            "--device", devices.spread(offer.device, cards),
            "--precision", arithmetic.precision,
            "--why", arithmetic.why,
            *(("--varlen",) if may_use_varlen and not offer.is_reference else ()),
            *(("--reference",) if offer.is_reference else ()),
            *(("--trust-code",) if offer.is_reference and offer.options.trust_remote_code else ()),
        ]  # fmt: skip
        return Launch(argv, WorkerEngine, _ENVIRONMENT)

    def reference(self, spec: EngineSpec, running: Offer) -> TorchOffer | None:
        """Return float32 on the CPU, as the reference for another precision or device of this backend."""
        if not isinstance(running, TorchOffer) or running.arithmetic.precision == "f32":
            return None
        cpu = Device(devices.CPU, machine.cpu_name())
        options = running.options.model_copy(update={"precision": "f32"})
        offer = self._offer(spec, options, running.build.partition(" ")[2], cpu)
        return replace(offer, title=f"{offer.title} in f32")

    def checks(self, options: TorchOptions, home: Path, checkup: Checkup) -> list[Check]:
        return [checks.package(self.survey(options, home), options.device)]

    async def model_checks(self, *_: object) -> tuple[Check, ...]:
        return ()
