"""The ONNX Runtime backend: runs causal models and encoders in int8 on a CPU, if the user asks for it.

Only its worker process imports ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
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
from rerankd.backends.onnx import checks
from rerankd.backends.onnx.options import OnnxOptions
from rerankd.backends.prompt_rate import Unrated
from rerankd.backends.safer_steps import Step
from rerankd.backends.worker import supported
from rerankd.domain import Recipe, Refusal
from rerankd.process.child import Launch

if TYPE_CHECKING:
    from rerankd.formats.metadata import ModelMetadata
    from rerankd.machine import Gpu
    from rerankd.state import StateStore

# encoder.py and the table in decoder.py, which import ONNX Runtime.
_ARCHITECTURES = ("bert",)
_POOLINGS = ("rank", "mean", "cls")
# The worker's own threads prepare matrices; numpy's would wait for each other.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}
_FLOAT32 = Step("float32", "float32 arithmetic")
# Besides the file, the worker holds the matrices of the blocks in a byte per weight, as much again while it
# prepares them and while it computes, and the prefixes of queries.
_A_WEIGHT, _PREFIXES = 2, 2**28


@dataclass(frozen=True, kw_only=True)
class OnnxOffer(Offer):
    """An offer of ONNX Runtime."""

    options: OnnxOptions


class OnnxBackend(Unrated):
    """See backends/base.py."""

    name = "onnx"
    title = "ONNX Runtime"
    summary = "models in int8 on a CPU, with precision = int8"
    packages: tuple[str, ...] = ("onnxruntime", "onnx")
    Options = OnnxOptions

    def survey(self, options: OnnxOptions, home: Path, spec: EngineSpec | None = None) -> bool:
        """Whether the packages are installed."""
        return all(find_spec(name) is not None for name in (*self.packages, "tokenizers"))

    def installations(self, options: OnnxOptions, home: Path) -> list[Installation]:
        if not self.survey(options, home):
            return []
        details = {"backend": "cpu", "version": version()}
        environment = {"RERANKD_ENGINE": self.name, "RERANKD_PRECISION": "int8"}
        return [
            Installation(self.name, self.title, environment, options.precision == "int8", details=details)
        ]

    def cards(self, survey: bool, options: OnnxOptions) -> tuple[Gpu, ...]:
        return ()

    def offer(self, spec: EngineSpec, options: OnnxOptions, survey: bool) -> OnnxOffer | Refusal:
        gain, is_asked = checks.gain(machine.instructions()), options.precision == "int8"
        if why := _obstacle(spec.recipe, spec.metadata):
            return Refusal(why, "leave precision at auto" if is_asked else "", is_minor=not is_asked)
        if not survey:
            step = f"install it: {checks.INSTALL}"
            reason = "int8 needs ONNX Runtime, which is not installed"
            return Refusal(reason if is_asked else f"{reason}; {gain}", step, is_minor=not is_asked)
        if not is_asked:
            reason = f"it computes in int8, which a user must choose; {gain}"
            return Refusal(reason, 'set precision = "int8" to try it', is_minor=True)
        assert spec.metadata is not None
        is_causal = spec.recipe.method == "causal_lm"
        held = spec.metadata.block_weights * _A_WEIGHT + _PREFIXES * is_causal
        return OnnxOffer(
            backend=self,
            spec=spec,
            name=self.title,
            build=f"{self.name} {version()}",
            title=f"{self.title} in int8",
            reason=f"precision = int8 is set; {gain}",
            rank=Rank.BEST_ON_CPU,
            memory_bytes=(spec.metadata.size_bytes + held) * spec.replicas,
            # The tokens of a prompt include those of its prefix, about half, which are computed once.
            policy=BatchPolicy(
                tokens=1024 if is_causal else 512, most_tokens=8192, pads=True, one_question=is_causal
            ),
            rounds_to="int8",
            unused=frozenset(("weights",)),  # they are in 8 bits anyway
            options=options,
        )

    async def settle(self, offer: OnnxOffer, learned: StateStore, log: Path, timeout_s: float) -> OnnxOffer:
        return offer

    def steps(self, offer: OnnxOffer, cards: Sequence[str]) -> tuple[Step, ...]:
        return (_FLOAT32,)

    def identity(self, offer: OnnxOffer, taken: Sequence[Step]) -> str:
        return f"{offer.build} {_precision(taken)}"

    def launch(
        self, offer: OnnxOffer, taken: Sequence[Step], cards: Sequence[str], socket: Path
    ) -> Launch[Engine]:
        from rerankd.backends.worker.client import WorkerEngine  # see the table: it imports what takes long

        spec = offer.spec
        argv = [
            sys.executable, "-P", "-m", "rerankd.backends.onnx",
            "--model", str(spec.path),
            "--socket", str(socket),
            "--pooling", spec.recipe.pooling,
            "--max-length", str(spec.recipe.max_length),
            "--threads", str(spec.threads),
            "--precision", _precision(taken),
        ]  # fmt: skip
        if spec.recipe.method == "causal_lm":
            assert spec.metadata is not None
            argv += ["--labels", *map(str, spec.metadata.token_ids(spec.recipe.labels))]
        return Launch(argv, WorkerEngine, _ENVIRONMENT)

    def reference(self, spec: EngineSpec, running: Offer) -> OnnxOffer | None:
        return None

    def checks(self, options: OnnxOptions, home: Path, checkup: Checkup) -> list[Check]:
        found = version() if self.survey(options, home) else ""
        return [checks.package(found, machine.instructions())]

    async def model_checks(
        self, offer: OnnxOffer, learned: StateStore, log: Path, timeout_s: float, checkup: Checkup
    ) -> list[Check]:
        return []


def version() -> str:
    """ONNX Runtime's version, or "" if it is not installed."""
    from importlib import metadata

    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("onnxruntime")
    return ""


def _obstacle(recipe: Recipe, metadata: ModelMetadata | None) -> str:
    """Return why the worker can't run a model, as a clause; "" if it can."""
    title = OnnxBackend.title
    if metadata is None:
        return "the metadata of its files is unknown"
    if recipe.method in ("listwise", "late_interaction"):
        return f"the {title} backend does not support the method {recipe.method}"
    return supported.obstacle(title, recipe, metadata, encoders=_ARCHITECTURES, poolings=_POOLINGS)


def _precision(taken: Sequence[Step]) -> str:
    return "f32" if _FLOAT32 in taken else "int8"
