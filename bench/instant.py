"""A backend whose worker computes nothing, so that a measurement sees only rerankd's own work. The rest is
real: the service, the worker's process, its server and the protocol.

    python bench/instant.py serve …           rerankd with this backend (RERANKD_ENGINE=instant)
    python bench/instant.py worker SOCKET …   the worker program, which the service starts
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rerankd.backends import base
from rerankd.backends.options import Options
from rerankd.backends.prompt_rate import Unrated
from rerankd.backends.safer_steps import Step
from rerankd.domain import Refusal
from rerankd.process.child import Launch


class InstantOptions(Options):
    """No settings."""


class InstantBackend(Unrated):
    name, title, summary = "instant", "Instant", "measurements of the service"
    packages: tuple[str, ...] = ()
    Options = InstantOptions

    def survey(self, options: Options, home: Path, spec: base.EngineSpec | None = None) -> None:
        return None

    def installations(self, options: Options, home: Path) -> list[base.Installation]:
        return [base.Installation(self.name, self.title, {"RERANKD_ENGINE": self.name}, used=True)]

    def cards(self, survey: None, options: Options) -> tuple[()]:
        return ()

    def offer(self, spec: base.EngineSpec, options: Options, survey: None) -> base.Offer | Refusal:
        return base.Offer(
            backend=self,
            spec=spec,
            name=self.name,
            build=f"{self.name} 1",
            title=self.title,
            reason="it computes nothing",
            rank=base.Rank.GPU,
            memory_bytes=spec.replicas * 2**20,
            policy=base.BatchPolicy(tokens=16384, most_tokens=65536, inputs=512),  # as on a card
            is_own_program=True,
        )

    async def settle(self, offer: base.Offer, *_: Any) -> base.Offer:
        return offer

    def steps(self, offer: base.Offer, cards: Sequence[str]) -> tuple[Step, ...]:
        return ()

    def identity(self, offer: base.Offer, taken: Sequence[Step]) -> str:
        return offer.build

    def launch(
        self, offer: base.Offer, taken: Sequence[Step], cards: Sequence[str], socket: Path
    ) -> Launch[base.Engine]:
        from rerankd.backends.worker.client import WorkerEngine

        argv = [sys.executable, __file__, "worker", str(socket), str(offer.spec.recipe.max_length)]
        return Launch(argv, WorkerEngine)

    def reference(self, spec: base.EngineSpec, running: base.Offer) -> None:
        return None

    def checks(self, *_: Any, **more: Any) -> list[base.Check]:
        return []

    async def model_checks(self, *_: Any, **more: Any) -> list[base.Check]:
        return []


class InstantNetwork:
    """Returns the length of each input as its raw score (see backends/worker/scorer.py, Network)."""

    about, rows, passes_ahead = "instant", 2**20, 1

    def passes(self, readings: Sequence[Any]) -> list[list[int]]:
        return [list(range(len(readings)))]

    def start(self, readings: Sequence[Any], pause: Any) -> Any:
        return lambda: np.array([[len(one.ids)] for one in readings], np.float32)


def worker(socket: str, max_length: str) -> None:
    from rerankd.backends.worker.methods import Logits
    from rerankd.backends.worker.scorer import Scorer
    from rerankd.backends.worker.server import Server

    with Server(socket, Scorer(InstantNetwork(), int(max_length), Logits())) as server:
        server.serve_forever()


def main() -> None:
    if sys.argv[1] == "worker":
        return worker(*sys.argv[2:])
    from rerankd.backends.table import BACKENDS

    BACKENDS.append(InstantBackend())  # before the settings are built from the table
    from rerankd.__main__ import main as command

    command()


if __name__ == "__main__":
    main()
