"""Each replica of a backend whose replicas are on one GPU each is started on a GPU of its own: a real service
with real child processes, and a loader with budgets for two cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from overlap import OverlapBackend, OverlapOffer, OverlapOptions

from rerankd.backends.select import Selection
from rerankd.memory import MEMORY
from rerankd.metrics import Metrics
from rerankd.process.rundir import RunDir
from rerankd.serving import memory_budgets
from rerankd.serving.disk_caches import DiskCaches
from rerankd.serving.loader import Loader
from rerankd.serving.prepare_model import prepare
from rerankd.serving.served_model import ServedModel
from rerankd.state import StateStore
from support import golden_settings

GIB = 2**30


class OnCards(OverlapBackend):
    """The overlap backend as if it ran on GPUs; it records the cards of each child."""

    def __init__(self) -> None:
        self.used: list[tuple[str, ...]] = []

    def launch(self, offer: OverlapOffer, taken: Any, cards: Any, socket: Path) -> Any:
        self.used.append(tuple(cards))
        return super().launch(offer, taken, cards, socket)


@pytest.mark.parametrize(
    ("spans", "only", "budgets", "used"),
    [
        (False, (), {"gpu0": 3 * GIB, "gpu1": 3 * GIB}, [("gpu0",), ("gpu1",)]),
        (False, (), {"gpu0": 3 * GIB, "gpu1": 9 * GIB}, [("gpu1",), ("gpu1",)]),
        (False, ("gpu0",), {"gpu0": 5 * GIB, "gpu1": 9 * GIB}, [("gpu0",), ("gpu0",)]),
        (False, ("gpu1", "gpu0"), {}, [("gpu1",), ("gpu0",)]),
        (True, (), {"gpu0": 3 * GIB, "gpu1": 3 * GIB}, [("gpu0", "gpu1"), ("gpu0", "gpu1")]),
    ],
)
async def test_replicas_are_spread_over_cards(
    tmp_path: Path, spans: bool, only: Sequence[str], budgets: dict[str, int], used: list[tuple[str, ...]]
) -> None:
    settings = golden_settings("xlmr-head", tmp_path, replicas=2, engine="llama", force=True)
    model = prepare(settings)
    backend = OnCards()
    offer = backend.offer(model.spec, OverlapOptions(), None)
    assert isinstance(offer, OverlapOffer)
    offer = replace(offer, on_cpu=False, spans_cards=spans, cards=tuple(only), memory_bytes=4 * GIB)
    model = replace(model, selection=Selection(offer, None, {}))
    sockets = RunDir()
    served = ServedModel(
        model, settings, Metrics(dict), lambda: sockets, StateStore(tmp_path), DiskCaches(settings)
    )
    loader = Loader[ServedModel]({MEMORY: 99 * GIB, **budgets})
    loader.add(served, *memory_budgets.needs(model, loader.budgets), None)
    async with loader.use(served):
        assert sorted(backend.used) == sorted(used)
        assert len(served.pids) == 2
    await loader.close()
    await served.unload()
    sockets.remove()
