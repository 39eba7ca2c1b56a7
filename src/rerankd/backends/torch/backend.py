"""The PyTorch backend: runs encoders and causal models on a GPU or a CPU. Only its worker imports PyTorch."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rerankd import machine
from rerankd.backends import token_vectors
from rerankd.backends.base import (
    BatchPolicy,
    Capabilities,
    Check,
    Checkup,
    Engine,
    EngineSpec,
    Installation,
    Offer,
    Rank,
)
from rerankd.backends.options import NO_INT8
from rerankd.backends.prompt_rate import Unrated
from rerankd.backends.safer_steps import Step
from rerankd.backends.token_vectors import TokenVectors
from rerankd.backends.torch import OFFLINE, budget, checks, devices, placement, support, survey
from rerankd.backends.torch.devices import Arithmetic, Device, Survey
from rerankd.backends.torch.options import TorchOptions
from rerankd.backends.torch.placement import Placement
from rerankd.domain import Refusal
from rerankd.process.child import Launch

if TYPE_CHECKING:
    from rerankd.machine import Gpu
    from rerankd.state import StateStore


_EAGER = Step("eager", "code that is not compiled")
_log = logging.getLogger("rerankd.engine")
_PADDED = Step("padded_attention", "padded attention")
_FLOAT32 = Step("float32", "float32 arithmetic")
# Larger calls of a card have room for all documents of a request; smaller ones leave it idle. The host takes
# up to 20 ms to start a pass (28 layers, H200), while the card computes the pass before.
_CARD_POLICY = BatchPolicy(tokens=16384, most_tokens=budget.MOST_ON_CARD, inputs=512, ahead_s=0.05)
_CPU_POLICY = BatchPolicy(tokens=1024, most_tokens=8192)
# With as many, loading and the pairs of the self-test take about 10 s on 16 cores.
_MOST_PARAMETERS_FOR_A_REFERENCE = 1.5e9


@dataclass(frozen=True, kw_only=True)
class TorchOffer(Offer):
    """An offer of PyTorch, on a device. `is_reference`: sentence-transformers computes it. `cache` is the
    folder for compiled code."""

    options: TorchOptions
    device: Device
    arithmetic: Arithmetic
    cache: Path
    is_reference: bool = False


class TorchBackend(Unrated):
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
        if isinstance(named := devices.candidates(found, options.device), Refusal):
            return []
        device = named[0]
        details = {"backend": device.kind, "version": found.version, "device": device.title}
        environment = {"RERANKD_ENGINE": self.name}
        is_used = device.kind != devices.CPU  # there, other engines come first
        return [Installation(self.name, self.title, environment, used=is_used, details=details)]

    def cards(self, survey: Survey, options: TorchOptions) -> tuple[Gpu, ...]:
        found = devices.candidates(survey, options.device)
        return () if isinstance(found, Refusal) or not found[0].card else machine.gpus()

    def offer(self, spec: EngineSpec, options: TorchOptions, survey: Survey) -> TorchOffer | Refusal:
        if options.precision == "int8":
            return NO_INT8
        if refusal := support.refused(spec.recipe, spec.metadata):
            return refusal
        if refusal := support.refused_code(spec.recipe, spec.metadata, is_trusted=options.trust_remote_code):
            return refusal
        found = devices.candidates(survey, options.device)
        if isinstance(found, Refusal):
            return found
        assert spec.metadata is not None
        may_compress = not support.needs_reference(spec.recipe, spec.metadata)
        placed = placement.place(found, spec.metadata, options, spec.replicas, may_compress=may_compress)
        if isinstance(placed, Placement):
            return self._offer(spec, options, survey, placed, shortfall=survey.shortfall)
        if options.device != "auto":
            return Refusal(placed, "leave device at auto, or use a smaller model")
        cpu = survey.devices[-1]
        on_cpu = Placement(cpu, devices.arithmetic(cpu, spec.metadata.architecture, options.precision))
        return self._offer(spec, options, survey, on_cpu, shortfall=placed)

    def _offer(
        self,
        spec: EngineSpec,
        options: TorchOptions,
        survey: Survey,
        placed: Placement,
        *,
        shortfall: str = "",
    ) -> TorchOffer:
        assert spec.metadata is not None
        on_cpu, precision = placed.device.kind == devices.CPU, placed.arithmetic.precision
        # On a CPU, pages of the file stay mapped until the memory is needed.
        held = (
            spec.metadata.parameters * devices.bytes_a_number(precision)
            + spec.metadata.size_bytes
            + placement.PROCESS_BYTES[on_cpu]
            + spec.document_vectors_bytes
            if on_cpu
            else placement.card_bytes(spec.metadata, placed.arithmetic)
        )
        return TorchOffer(
            backend=self,
            spec=spec,
            name=self.title,
            build=f"{self.name} {survey.version}",
            title=f"{self.title} on {placed.device.name}",
            reason="it computes every model, on a CPU slower than others"
            if on_cpu
            else "a GPU does the work",
            rank=Rank.LAST_ON_CPU if on_cpu else Rank.GPU,
            memory_bytes=held * spec.replicas,
            policy=_CPU_POLICY if on_cpu else _CARD_POLICY,
            capabilities=Capabilities(
                "block" if spec.recipe.method == "listwise" else "pair",
                content=frozenset(("text", "image") if spec.recipe.images else ("text",)),
            ),
            on_cpu=on_cpu,
            spans_cards=False,
            cards=placed.cards,
            shortfall=shortfall,
            unused=_unused(options, placed.arithmetic),
            options=options,
            device=placed.device,
            arithmetic=placed.arithmetic,
            cache=survey.cache,
            is_reference=support.needs_reference(spec.recipe, spec.metadata),
        )

    async def settle(self, offer: TorchOffer, learned: StateStore, log: Path, timeout_s: float) -> TorchOffer:
        if offer.is_reference and _runs_code(offer):
            _log.warning("%s: %s", offer.spec.name, support.code_warning(offer.spec.path))
        return offer

    def steps(self, offer: TorchOffer, cards: Sequence[str]) -> tuple[Step, ...]:
        precision = offer.arithmetic.precision
        uses_varlen = devices.may_use_varlen(offer.device, precision) and not offer.is_reference
        return (
            *((_EAGER,) if _compiles(offer) else ()),
            *((_PADDED,) if uses_varlen else ()),
            *((_FLOAT32,) if precision != "f32" else ()),
        )

    def identity(self, offer: TorchOffer, taken: Sequence[Step]) -> str:
        arithmetic = _arithmetic(offer, taken)
        names = [step.name for step in taken]
        return f"{offer.build} {offer.device.title} {arithmetic.name} {names} {offer.is_reference}"

    def launch(
        self, offer: TorchOffer, taken: Sequence[Step], cards: Sequence[str], socket: Path
    ) -> Launch[Engine]:
        from rerankd.backends.worker.client import WorkerEngine  # see the table: it imports what takes long

        spec, arithmetic = offer.spec, _arithmetic(offer, taken)
        assert spec.metadata is not None
        labels = support.labels(spec.recipe, spec.metadata)
        is_vision = support.is_vision(spec.metadata)
        may_use_varlen = devices.may_use_varlen(offer.device, arithmetic.precision) and _PADDED not in taken
        vectors = TokenVectors.of(spec.recipe, spec.metadata, spec.document_vectors_bytes)
        argv = [
            sys.executable, "-P", "-m", "rerankd.backends.torch",
            "--model", str(spec.path),
            "--socket", str(socket),
            "--pooling", support.pooling(spec.recipe),
            *(("--labels", *map(str, labels)) if labels else ()),
            "--max-length", str(token_vectors.longest(spec.recipe)),
            "--threads", str(spec.threads),
            "--device", devices.spread(offer.device, cards),
            "--precision", arithmetic.precision,
            "--why", arithmetic.why,
            *(("--weights", arithmetic.eight_bits) if arithmetic.eight_bits else ()),
            *(("--varlen",) if may_use_varlen and not offer.is_reference else ()),
            *(("--compile",) if _compiles(offer) and _EAGER not in taken else ()),
            *(vectors.arguments if vectors is not None else ()),
            *(("--blocks",) if spec.recipe.method == "listwise" else ()),
            *(("--reference",) if offer.is_reference and not is_vision else ()),
            *(("--vision", *map(str, support.image_blocks(spec.recipe))) if is_vision else ()),
            *(("--trust-code",) if offer.is_reference and _runs_code(offer) else ()),
        ]  # fmt: skip
        return Launch(argv, WorkerEngine, environment(offer.cache, spec.threads))

    def reference(self, spec: EngineSpec, running: Offer) -> TorchOffer | None:
        """Return float32 on the CPU, as the reference for another precision or device of this backend. None
        for a model that would take the CPU minutes."""
        if not isinstance(running, TorchOffer) or running.arithmetic.precision == "f32":
            return None
        assert spec.metadata is not None
        if spec.metadata.parameters > _MOST_PARAMETERS_FOR_A_REFERENCE:
            return None
        cpu = Placement(Device(devices.CPU, machine.cpu_name()), Arithmetic("f32", "as the reference"))
        survey = Survey(running.build.partition(" ")[2], cache=running.cache)
        offer = self._offer(spec, running.options, survey, cpu)
        return replace(offer, title=f"{offer.title} in f32")

    def checks(self, options: TorchOptions, home: Path, checkup: Checkup) -> list[Check]:
        return checks.diagnose(self.survey(options, home), options.device)

    async def model_checks(self, *_: object) -> tuple[Check, ...]:
        return ()


def _unused(options: TorchOptions, arithmetic: Arithmetic) -> frozenset[str]:
    """The names of the settings that this arithmetic does not follow; its `why` is the reason."""
    followed = ("auto", arithmetic.precision, arithmetic.eight_bits)
    return frozenset(
        (
            *(("precision",) if options.precision not in followed else ()),
            *(("weights",) if not arithmetic.eight_bits else ()),
        )
    )


def _arithmetic(offer: TorchOffer, taken: Sequence[Step]) -> Arithmetic:
    """The arithmetic after safer steps. Weights that do not fit in full stay in 8 bits."""
    if _FLOAT32 not in taken:
        return offer.arithmetic
    return Arithmetic("f32", "half precision crashed", "int8" if offer.arithmetic.eight_bits else "")


def _compiles(offer: TorchOffer) -> bool:
    """Whether the worker compiles the model while it serves. Measured on CUDA alone."""
    return offer.device.kind == "cuda" and not offer.is_reference


def environment(cache: Path, threads: int) -> dict[str, str]:
    """The worker's environment: it reads files only, computes with this many threads, numbers cards as
    nvidia-smi does, keeps compiled code in `cache`, and computes on the CPU what MPS lacks."""
    return {
        **OFFLINE,
        "OMP_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "PYTORCH_ENABLE_MPS_FALLBACK": "1",
        **machine.CUDA_ORDER,
    }


def _runs_code(offer: TorchOffer) -> bool:
    metadata = offer.spec.metadata
    return metadata is not None and metadata.library == "own code" and offer.options.trust_remote_code
