"""A complete backend for tests. Its engine counts shared words. registered/sitecustomize.py adds it to the
table."""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rerankd.backends import base
from rerankd.backends.options import Options, per_model
from rerankd.backends.prompt_rate import Unrated
from rerankd.backends.safer_steps import Step
from rerankd.backends.worker.client import WorkerEngine
from rerankd.domain import Refusal
from rerankd.process.child import Launch
from rerankd.scoring.engine_input import Frame, Ids

PROGRAM = str(Path(__file__).with_name("overlap_program.py"))
_WORD = re.compile(r"\w+|[^\w\s]")
CAREFUL = Step("careful", "careful reading")


class OverlapOptions(Options):
    overlap_scope: Literal["pair", "block"] = per_model("pair", description="what a score depends on")
    overlap_flags: str = per_model("", description="extra flags of the program")


@dataclass(frozen=True, kw_only=True)
class OverlapOffer(base.Offer):
    options: OverlapOptions


class OverlapEngine(WorkerEngine):
    """The client, with a tokenizer: each word is a token."""

    frame = Frame(between=np.zeros(1, np.int32))

    async def encode(self, texts: Sequence[str]) -> list[Ids]:
        words = [_WORD.findall(text.lower()) for text in texts]
        return [np.array([zlib.crc32(word.encode()) >> 1 for word in own], np.int32) for own in words]

    async def ends(self, texts: Sequence[str]) -> list[Ids]:
        return [np.array([word.end() for word in _WORD.finditer(text.lower())], np.int32) for text in texts]


class OverlapBackend(Unrated):
    name, title, summary = "overlap", "Overlap", "encoders in tests"
    packages: tuple[str, ...] = ()
    Options = OverlapOptions

    def survey(self, options: OverlapOptions, home: Path, spec: base.EngineSpec | None = None) -> None:
        return None

    def installations(self, options: OverlapOptions, home: Path) -> list[base.Installation]:
        return [base.Installation(self.name, self.title, {"RERANKD_ENGINE": self.name}, used=True)]

    def cards(self, survey: None, options: OverlapOptions) -> tuple[()]:
        return ()

    def offer(self, spec: base.EngineSpec, options: OverlapOptions, survey: None) -> OverlapOffer | Refusal:
        if spec.recipe.method == "causal_lm":
            return Refusal("shared words answer no question", "take an encoder")
        return OverlapOffer(
            backend=self,
            spec=spec,
            name=self.name,
            build=f"{self.name} 1",
            title=self.title,
            reason="a test wants it for every cross-encoder",
            rank=base.Rank.GPU if spec.recipe.method == "cross_encoder" else base.Rank.CPU,
            memory_bytes=spec.replicas * 2**20,
            policy=base.BatchPolicy(tokens=1000, most_tokens=1000),
            capabilities=base.Capabilities(options.overlap_scope, tokenizes=True),
            is_own_program=True,
            options=options,
        )

    async def settle(self, offer: OverlapOffer, *_: Any) -> OverlapOffer:
        return offer

    def steps(self, offer: OverlapOffer, cards: Sequence[str]) -> tuple[Step, ...]:
        return (CAREFUL,)

    def identity(self, offer: OverlapOffer, taken: Sequence[Step]) -> str:
        return f"{offer.build} {offer.options.overlap_scope}"

    def launch(self, offer: OverlapOffer, taken: Sequence[Step], cards: object, socket: Path) -> Launch[Any]:
        spec, flags = offer.spec, offer.options.overlap_flags.split() + [f"--{step.name}" for step in taken]
        arguments = (str(socket), str(spec.recipe.max_length), offer.capabilities.scope)
        return Launch([sys.executable, "-E", PROGRAM, *arguments, *flags], OverlapEngine)

    def reference(self, spec: base.EngineSpec, running: base.Offer) -> None:
        return None

    def checks(self, *_: Any, **more: Any) -> list[base.Check]:
        return [base.Check(self.title, "ok", "shares words")]

    async def model_checks(self, *_: Any, **more: Any) -> list[base.Check]:
        return []


OVERLAP: base.Backend = OverlapBackend()
