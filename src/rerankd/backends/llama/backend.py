"""The llama.cpp backend: runs any GGUF model on a CPU or a GPU."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rerankd import machine
from rerankd.backends import prompt_rate
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
from rerankd.backends.llama import binaries, installed, launch, zero_row
from rerankd.backends.llama.binaries import Binaries, Binary
from rerankd.backends.llama.options import LlamaOptions
from rerankd.backends.options import NO_INT8
from rerankd.backends.safer_steps import Step
from rerankd.domain import Method, Refusal
from rerankd.errors import EngineTooOld, EngineUnknown
from rerankd.formats import tokenizer_support
from rerankd.process.child import Launch

if TYPE_CHECKING:
    from rerankd.machine import Gpu
    from rerankd.state import StateStore


# The source of this build was checked for modern-bert.hidden_activation. Older builds may always use GELU.
_HIDDEN_ACTIVATION_BUILD = 11434
# Small calls cost no throughput as long as the next call already waits in the engine: 9.8, 9.9, 9.4 and 9.3
# documents/s with 4, 8, 16 and 32 texts per call (77 tokens each, 12 layers of width 384, one core).
# `/v1/rerank` takes one query per call. A slot caches its last prompt, so batches of one query for a causal
# LM follow each other. Tokens computed per prompt of 190 tokens: 116 with a single query; with two queries
# that alternate, 122 after every 5 prompts, 119 after every 10, 118 after every 20.
_POLICIES: Mapping[Method, BatchPolicy] = {
    "cross_encoder": BatchPolicy(tokens=512, most_tokens=16384, one_question=True),
    "embedding": BatchPolicy(tokens=512, most_tokens=16384),
    "causal_lm": BatchPolicy(tokens=512, most_tokens=16384, one_question=True, run_tokens=2048),
}


@dataclass(frozen=True, kw_only=True)
class LlamaOffer(Offer):
    """An offer of llama.cpp. `gpus` are the usable GPUs with their free memory, or None if unknown.
    `zero_token`: the token whose logit is 0, None for recipes that need none (see zero_row.py)."""

    options: LlamaOptions
    binary: Binary
    gpus: tuple[Gpu, ...] | None
    zero_token: int | None = None


class LlamaBackend:
    """See backends/base.py."""

    name = "llama"
    title = "llama.cpp"
    summary = "llama.cpp"
    packages: tuple[str, ...] = ("xllamacpp",)
    Options = LlamaOptions

    def survey(self, options: LlamaOptions, home: Path, spec: EngineSpec | None = None) -> Binaries:
        return installed.survey(options, home, needed_build(spec) if spec is not None else 0)

    def installations(self, options: LlamaOptions, home: Path) -> list[Installation]:
        return installed.installations(options, home)

    def cards(self, survey: Binaries, options: LlamaOptions) -> tuple[Gpu, ...] | None:
        try:
            return installed.without_gpu(binaries.choose(survey), options).gpus
        except EngineUnknown:  # reported for each model that needs the engine
            return ()

    def offer(self, spec: EngineSpec, options: LlamaOptions, survey: Binaries) -> LlamaOffer | Refusal:
        if options.precision == "int8":
            return NO_INT8
        if spec.metadata is not None and spec.metadata.format != "gguf":
            return Refusal("llama.cpp reads GGUF files only", "pull the model as GGUF, if there is one")
        if spec.recipe.method in ("late_interaction", "listwise"):
            what = "late interaction" if spec.recipe.method == "late_interaction" else "listwise models"
            return Refusal(f"the llama.cpp backend does not support {what}", "")
        if spec.metadata is not None and spec.metadata.head_file is not None:
            return Refusal(f"llama.cpp does not read the head in {spec.metadata.head_file.name}", "")
        try:
            binary = installed.without_gpu(binaries.choose(survey, needs=needed_build(spec)), options)
        except (EngineTooOld, EngineUnknown) as error:
            reason, _, step = error.message.partition(". ")
            return Refusal(reason[:1].lower() + reason[1:], (step[:1].lower() + step[1:]).rstrip("."))
        zero = zero_row.plan(spec.metadata, spec.recipe) if spec.metadata is not None else None
        if isinstance(zero, Refusal):
            return zero
        is_named = bool(options.llama_path or options.engine_args or survey.used)
        rank = Rank.CPU if binary.on_cpu else Rank.GPU
        offer = self._offer(
            spec,
            options,
            binary,
            reason=binary.reason if binary.on_cpu or is_named else f"a GPU does the work; {binary.reason}",
            rank=Rank.NAMED if is_named else rank,
        )
        return replace(offer, patch=zero.patch, zero_token=zero.token) if zero is not None else offer

    def _offer(
        self, spec: EngineSpec, options: LlamaOptions, binary: Binary, *, reason: str, rank: int
    ) -> LlamaOffer:
        spec = _within_context(spec)
        number = f" (b{binary.build})" if binary.build and f"b{binary.build}" not in binary.name else ""
        return LlamaOffer(
            backend=self,
            spec=spec,
            name=binary.name,
            build=f"{binary.name} {binary.build}",
            title=f"{self.title} {binary.name}{number}",
            reason=reason,
            rank=rank,
            # The file is memory-mapped, so its size is the estimate.
            memory_bytes=(spec.metadata.size_bytes if spec.metadata is not None else 0) * spec.replicas,
            policy=_POLICIES[spec.recipe.method],
            capabilities=_capabilities(spec),
            on_cpu=binary.on_cpu,
            is_own_program=options.llama_path is not None,
            unused=frozenset(
                (
                    "weights",
                    *(("precision",) if options.precision not in ("auto", "f32") else ()),
                    *(("gpu_layers",) if binary.on_cpu else ()),
                )
            ),
            options=options,
            binary=binary,
            gpus=binary.gpus,
        )

    def prompt_rate(self, offer: LlamaOffer, learned: StateStore, *, measure: bool) -> float:
        from rerankd.backends.llama import prompt_rate as program  # as for launch

        metadata = offer.spec.metadata
        kind = program.measured_as(metadata.quantisation if metadata is not None else "")
        measured = partial(program.measure, offer.binary.program, kind) if measure else None
        return prompt_rate.of(f"{offer.build} {kind}", learned, measured)

    async def settle(self, offer: LlamaOffer, learned: StateStore, log: Path, timeout_s: float) -> LlamaOffer:
        if not offer.gpus:
            return offer
        # Free GPU memory changes with each load. nvidia-smi takes up to a second.
        return replace(offer, gpus=await asyncio.to_thread(machine.gpus))

    def steps(self, offer: LlamaOffer, cards: Sequence[str]) -> tuple[Step, ...]:
        return launch.steps(offer.spec, _options(offer, (), cards))

    def identity(self, offer: LlamaOffer, taken: Sequence[Step]) -> str:
        binary, options = offer.binary, offer.options
        decided = launch.decide(offer.spec, _options(offer, taken, ()))
        on_gpu = decided.gpu_layers != 0  # the number depends on the memory that is free just now
        return (
            f"{binary.program} {binary.build} {options.gpu_layers} {options.engine_args} "
            f"{[step.name for step in taken]} {on_gpu} {decided.flash_attention} {decided.cache_type}"
        )

    def launch(
        self, offer: LlamaOffer, taken: Sequence[Step], cards: Sequence[str], socket: Path
    ) -> Launch[Engine]:
        # Deferred: its libraries take as long to import as the whole command line.
        from rerankd.backends.llama import engines

        argv = launch.argv(offer.spec, _options(offer, taken, cards), socket)
        client = partial(engines.connect, offer.spec, zero_token=offer.zero_token)
        return Launch(argv, client, launch.ENVIRONMENT, launch.ADVICE)

    def reference(self, spec: EngineSpec, running: Offer) -> LlamaOffer | None:
        """Return the bundled llama.cpp on the CPU, as a reference for another backend."""
        bundled = installed.bundled()
        if isinstance(running, LlamaOffer) or bundled is None or spec.metadata is None:
            return None
        if spec.recipe.method not in _POLICIES:
            return None
        # A single label needs a copy of the file with a row of zeros, which a comparison does not make.
        if spec.metadata.format != "gguf" or zero_row.plan(spec.metadata, spec.recipe) is not None:
            return None
        offer = self._offer(spec, LlamaOptions(gpu_layers=0), bundled, reason=bundled.reason, rank=Rank.CPU)
        return replace(offer, title=f"{self.title} b{bundled.build}")

    def checks(self, options: LlamaOptions, home: Path, checkup: Checkup) -> list[Check]:
        from rerankd.backends.llama import checks, survey  # as above

        return checks.diagnose(survey.look(options, home, checkup), checkup.cuda_mirror)

    async def model_checks(self, *_: object) -> tuple[Check, ...]:
        return ()


def needed_build(spec: EngineSpec) -> int:
    """Return the oldest build that computes the model correctly."""
    is_plain = spec.metadata is None or spec.metadata.hidden_activation in ("", "gelu")
    return spec.needs_build if is_plain else max(spec.needs_build, _HIDDEN_ACTIVATION_BUILD)


def _within_context(spec: EngineSpec) -> EngineSpec:
    """Lower max_length to what llama.cpp accepts: the context length that the file declares, less the extra
    token that some models need (see launch.needs_extra_token)."""
    most = spec.metadata.context_length - 1 if spec.metadata is not None else 0
    if not launch.needs_extra_token(spec.recipe) or not 0 < most < spec.recipe.max_length:
        return spec
    return replace(spec, recipe=replace(spec.recipe, max_length=most))


def _capabilities(spec: EngineSpec) -> Capabilities:
    if spec.recipe.method == "cross_encoder":  # see engines.py
        return Capabilities(reads="text", tokenizes=True)
    return Capabilities(tokenizes=spec.metadata is None or bool(tokenizer_support.refusal(spec.metadata)))


def _options(offer: LlamaOffer, taken: Sequence[Step], cards: Sequence[str]) -> launch.EngineOptions:
    return launch.EngineOptions(
        program=offer.binary.program,
        threads=offer.spec.threads,
        gpus=offer.gpus,
        gpu_layers=offer.options.gpu_layers,
        keeps_f32=offer.options.precision == "f32",
        extra=offer.options.engine_args,
        safer=tuple(step.name for step in taken),
        cards=tuple(cards),
    )
