"""The OpenVINO backend: runs encoders and some causal models on a CPU.

Only its worker process imports OpenVINO.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rerankd import machine
from rerankd.backends import prompt_rate, token_vectors
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
from rerankd.backends.openvino import checks, precision, precision_choice, shapes
from rerankd.backends.openvino.options import OpenVinoOptions
from rerankd.backends.openvino.precision import Choice, Precision
from rerankd.backends.options import NO_INT8
from rerankd.backends.safer_steps import Step
from rerankd.backends.token_vectors import TokenVectors
from rerankd.backends.worker import supported
from rerankd.domain import Recipe, Refusal
from rerankd.process.child import Launch
from rerankd.progress import step

if TYPE_CHECKING:
    from rerankd.formats.metadata import ModelMetadata
    from rerankd.machine import Gpu
    from rerankd.state import StateStore


# The rows of architectures/__init__.py, which imports OpenVINO.
_ARCHITECTURES = ("bert", "deberta-v2", "llama", "llama-embed", "modern-bert", "new")
_POOLINGS = ("rank", "mean", "cls", "none")
# A causal model with fewer weights in its blocks runs on llama.cpp: nothing needs to be measured for it.
_SMALL = 50_000_000
_UNSETTLED = Choice("f32", "")
_FLOAT32 = Step("float32", "float32 arithmetic")


@dataclass(frozen=True, kw_only=True)
class OpenVinoOffer(Offer):
    """An offer of OpenVINO. `precision` is that of the arithmetic; `settle` decides it."""

    options: OpenVinoOptions
    precision: Choice = _UNSETTLED


class OpenVinoBackend:
    """See backends/base.py."""

    name = "openvino"
    title = "OpenVINO"
    summary = "encoders, Qwen2, Qwen3, Llama and Gemma on a CPU"
    packages: tuple[str, ...] = ("openvino",)
    Options = OpenVinoOptions

    def survey(self, options: OpenVinoOptions, home: Path, spec: EngineSpec | None = None) -> bool:
        """Whether OpenVINO and the tokenizers library are installed."""
        return all(find_spec(name) is not None for name in ("openvino", "tokenizers"))

    def installations(self, options: OpenVinoOptions, home: Path) -> list[Installation]:
        if not self.survey(options, home):
            return []
        details = {"backend": "cpu", "version": precision_choice.version()}
        environment = {"RERANKD_ENGINE": self.name}
        return [Installation(self.name, self.title, environment, used=True, details=details)]

    def cards(self, survey: bool, options: OpenVinoOptions) -> tuple[Gpu, ...]:
        return ()

    def offer(self, spec: EngineSpec, options: OpenVinoOptions, survey: bool) -> OpenVinoOffer | Refusal:
        if options.precision == "int8":
            return NO_INT8
        if refusal := refused(spec.recipe, spec.metadata, is_installed=survey):
            return refusal
        return self._offer(spec, options)

    def _offer(self, spec: EngineSpec, options: OpenVinoOptions) -> OpenVinoOffer:
        assert spec.metadata is not None
        is_causal, is_listwise = spec.metadata.is_causal, spec.recipe.method == "listwise"
        keeps_groups = is_causal or spec.metadata.architecture in supported.LLAMA
        # Besides the file, the worker holds the matrices of the blocks: 8 bytes per weight, or 2.6 if
        # compressed (measured on BERT-large's shape). Compressed causal models: 3.3 in bf16 and 4.8 in f32
        # (Qwen3-0.6B).
        is_compressed = options.weights == "compressed" or (keeps_groups and not spec.exact)
        a_weight = 8 if not is_compressed else 5 if keeps_groups else 3
        held = spec.metadata.block_weights * a_weight
        if is_listwise:  # the keys and values of a block, in float32
            held += 4 * spec.recipe.max_length * spec.shape.layers * spec.shape.kv_width
        is_small = spec.metadata.block_weights < _SMALL
        return OpenVinoOffer(
            backend=self,
            spec=spec,
            name=self.title,
            build=f"{self.name} {precision_choice.version()}",
            title=self.title,
            reason="it computes the prompt that documents share once"
            if is_causal and not is_listwise
            else f"the fastest for {'a listwise model' if is_listwise else 'an encoder'} on a CPU",
            rank=Rank.BEST_ON_CPU
            if is_listwise or not is_causal
            else Rank.LAST_ON_CPU
            if is_small
            else Rank.CPU,
            memory_bytes=(spec.metadata.size_bytes + held + spec.document_vectors_bytes) * spec.replicas,
            policy=_policy(_UNSETTLED.precision, spec.recipe),
            capabilities=Capabilities("block" if is_listwise else "pair"),
            unused=_unused(options),
            options=options,
        )

    def prompt_rate(self, offer: OpenVinoOffer, learned: StateStore, *, measure: bool) -> float:
        kinds = precision.possible(offer.options.precision, machine.instructions())
        is_compressed = offer.options.weights == "compressed" or not offer.spec.exact
        words = [*kinds, *(["--compressed"] if is_compressed else [])]
        measured = partial(_measured, words) if measure else None
        return prompt_rate.of(f"{offer.build} {' '.join(words)}", learned, measured)

    async def settle(
        self, offer: OpenVinoOffer, learned: StateStore, log: Path, timeout_s: float
    ) -> OpenVinoOffer:
        """Choose the precision of all replicas, once per model and machine."""
        of = precision_choice.Subject(offer.spec, offer.options)
        found = await precision_choice.choose(of, learned, log, timeout_s)
        return replace(offer, precision=found, policy=_policy(found.precision, offer.spec.recipe))

    def steps(self, offer: OpenVinoOffer, cards: Sequence[str]) -> tuple[Step, ...]:
        return (_FLOAT32,) if offer.precision.precision != "f32" else ()

    def identity(self, offer: OpenVinoOffer, taken: Sequence[Step]) -> str:
        precision = "f32" if _FLOAT32 in taken else offer.precision.precision
        return f"{offer.build} {precision} {offer.options.weights}"

    def launch(
        self, offer: OpenVinoOffer, taken: Sequence[Step], cards: Sequence[str], socket: Path
    ) -> Launch[Engine]:
        from rerankd.backends.worker.client import WorkerEngine  # see the table: it imports what takes long

        spec = offer.spec
        precision = _UNSETTLED if _FLOAT32 in taken else offer.precision
        argv = [
            sys.executable, "-P", "-m", "rerankd.backends.openvino",
            "--model", str(spec.path),
            "--socket", str(socket),
            "--pooling", spec.recipe.pooling,
            "--max-length", str(token_vectors.longest(spec.recipe)),
            "--threads", str(spec.threads),
            "--precision", precision.precision,
            "--why", precision.why,
            "--weights", offer.options.weights,
        ]  # fmt: skip
        if spec.recipe.method == "causal_lm":
            assert spec.metadata is not None
            argv += ["--labels", *map(str, spec.metadata.token_ids(spec.recipe.labels))]
        if spec.recipe.method == "listwise":
            argv += ["--blocks"]
        if (vectors := TokenVectors.of(spec.recipe, spec.metadata, spec.document_vectors_bytes)) is not None:
            argv += vectors.arguments
        return Launch(argv, WorkerEngine)

    def reference(self, spec: EngineSpec, running: Offer) -> OpenVinoOffer | None:
        """Return a float32 offer: the reference for another backend, and for bf16 if no other backend can run
        the model."""
        if isinstance(running, OpenVinoOffer):
            is_exact = running.precision.precision == "f32"
            if is_exact or spec.metadata is None or spec.metadata.format == "gguf":
                return None
        elif spec.metadata is None or spec.metadata.is_causal:
            return None  # a causal model in float32 needs several times the memory of the running one
        if refused(spec.recipe, spec.metadata, is_installed=self.survey(OpenVinoOptions(), Path())):
            return None
        offer = self._offer(spec, OpenVinoOptions())
        title = f"{self.title} {precision_choice.version()} in f32"
        return replace(offer, title=title, precision=Choice("f32", "for the self-test"))

    def checks(self, options: OpenVinoOptions, home: Path, checkup: Checkup) -> list[Check]:
        return [checks.package(precision_choice.version() if self.survey(options, home) else "")]

    async def model_checks(
        self, offer: OpenVinoOffer, learned: StateStore, log: Path, timeout_s: float, checkup: Checkup
    ) -> list[Check]:
        model, of = offer.spec.name, precision_choice.Subject(offer.spec, offer.options)
        known = precision_choice.known(of, learned)
        if not checkup.again:
            return [checks.precision(model, known)]
        learned.remove(precision_choice.SECTION, of.key)
        with step(checkup.report, f"choosing the precision of {model}"):
            found = await precision_choice.choose(of, learned, log, timeout_s)
        return [checks.precision(model, found, before=known)]


def _measured(words: Sequence[str]) -> float:
    argv = [sys.executable, "-P", "-m", "rerankd.backends.openvino.prompt_rate", *words]
    try:
        said = subprocess.run(argv, capture_output=True, timeout=prompt_rate.TIMEOUT_S, check=False)
        return float(said.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return 0.0


def _policy(precision: Precision, recipe: Recipe) -> BatchPolicy:
    tokens = shapes.TOKENS_A_PASS[precision]
    if recipe.method == "causal_lm":
        # The tokens of an input include those of its prefix, about half, which are computed once. A pass
        # holds the inputs of one question.
        return BatchPolicy(tokens=2 * tokens, most_tokens=8192, pads=True, one_question=True)
    return BatchPolicy(tokens=tokens, most_tokens=8192, pads=True)


def refused(recipe: Recipe, metadata: ModelMetadata | None, *, is_installed: bool) -> Refusal | None:
    """Return why the worker can't run a model, or None."""
    why = _obstacle(recipe, metadata) if metadata is not None else "the metadata of its files is unknown"
    if why:
        return Refusal(why, "")
    if not is_installed:
        return Refusal("OpenVINO is not installed", "install it: pip install 'rerankd[openvino]'")
    return None


def _obstacle(recipe: Recipe, metadata: ModelMetadata) -> str:
    return supported.obstacle(
        OpenVinoBackend.title, recipe, metadata, encoders=_ARCHITECTURES, poolings=_POOLINGS
    )


def _unused(options: OpenVinoOptions) -> frozenset[str]:
    """The names of the settings that this CPU can't follow."""
    is_followed = options.precision in (
        "auto",
        *precision.possible(options.precision, machine.instructions()),
    )
    return frozenset(() if is_followed else ("precision",))
