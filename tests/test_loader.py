"""The loader, which carries out the eviction policy."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

import pytest

from rerankd.errors import DoesNotFit, EngineUnavailable, Unscorable
from rerankd.memory import MEMORY, Need
from rerankd.serving.loader import Loader

TWO_GPUS = {MEMORY: 100, "gpu0": 10, "gpu1": 20}


def held(size: int) -> dict[str, int]:
    """Bytes of the machine's memory."""
    return {MEMORY: size}


class Models:
    """Models that load at once and count what is done with them."""

    def __init__(self, loader: Loader[Model], *names: str, size: int = 10) -> None:
        self.loader = loader
        self.did: Counter[str] = Counter()
        self.loaded: set[str] = set()
        self.error: Exception | None = None
        self.models = {name: Model(self, name) for name in names}
        for model in self.models.values():
            loader.add(model, Need(size), Need(2 * size), None)

    async def use(self, name: str, turns: int = 3) -> str:
        async with self.loader.use(self.models[name]):
            for _ in range(turns):
                assert name in self.loaded and len(self.loaded) <= 2
                await asyncio.sleep(0)
        return name


@dataclass(frozen=True)
class Model:
    """One of the models."""

    among: Models
    name: str

    def __str__(self) -> str:
        return self.name

    async def load(self, cards: tuple[str, ...]) -> None:
        it = self.among
        assert self.name not in it.loaded
        await asyncio.sleep(0)
        if it.error is not None:
            raise it.error
        it.loaded.add(self.name)
        it.did[f"load {self.name}"] += 1

    async def unload(self) -> None:
        await asyncio.sleep(0)
        self.among.loaded.discard(self.name)
        self.among.did[f"unload {self.name}"] += 1

    def held(self) -> dict[str, int]:
        self.among.did[f"measure {self.name}"] += 1
        return held(10)


def test_three_models_share_memory_for_two_and_no_request_is_lost() -> None:
    async def scenario() -> None:
        loader = Loader[Model](held(20))
        it = Models(loader, "a", "b", "c")
        names = [name for _ in range(20) for name in "abc"]
        async with asyncio.timeout(10):
            assert await asyncio.gather(*(it.use(name) for name in names)) == names
        # The requests for a model were served together, not one by one.
        assert sum(it.did[f"load {name}"] for name in "abc") < 10
        await loader.close()

    asyncio.run(scenario())


def test_memory_is_not_measured_after_each_request() -> None:
    async def scenario() -> None:
        now = 100.0
        loader = Loader[Model]({}, now=lambda: now)
        it = Models(loader, "a")
        for _ in range(5):
            await it.use("a")
        assert it.did["measure a"] == 2  # once after loading
        now += 11
        for _ in range(5):
            await it.use("a")
        assert it.did["measure a"] == 3
        await loader.close()

    asyncio.run(scenario())


def test_each_waiting_user_gets_its_own_copy_of_an_error() -> None:
    async def scenario() -> None:
        loader = Loader[Model]({})
        it = Models(loader, "a")
        it.error = Unscorable("no")
        errors = await asyncio.gather(*(it.use("a") for _ in range(2)), return_exceptions=True)
        assert [type(error) for error in errors] == [Unscorable, Unscorable]
        assert errors[0] is not errors[1]
        it.error = RuntimeError("a bug")
        with pytest.raises(EngineUnavailable, match="a bug"):
            await it.use("a")
        it.error = None
        assert await it.use("a") == "a"
        await loader.close()

    asyncio.run(scenario())


def test_a_model_that_never_fits_is_refused_with_both_sizes() -> None:
    loader = Loader[Model](held(10 * 2**20))
    with pytest.raises(
        DoesNotFit, match="a needs 20 MiB of memory, but the budget for all engines is 10 MiB"
    ):
        Models(loader, "a", size=20 * 2**20)


def test_close_fails_waiting_users_and_starts_no_load() -> None:
    async def scenario() -> None:
        loader = Loader[Model](held(10))
        it = Models(loader, "a", "b")
        async with loader.use(it.models["a"]):
            waiting = asyncio.ensure_future(it.use("b"))
            await asyncio.sleep(0)
            await loader.close()
            with pytest.raises(EngineUnavailable):
                await waiting
        with pytest.raises(EngineUnavailable):
            await it.use("a")
        assert it.did == {"load a": 1, "measure a": 1}

    asyncio.run(scenario())


def test_the_part_that_does_not_fit_on_gpus_counts_as_machine_memory() -> None:
    assert Need(0, 45).within(TWO_GPUS) == Need(15, 30)
    assert Need(0, 500).within(TWO_GPUS) == Need(100, 30)
    loader = Loader[Model](TWO_GPUS)
    it = Models(loader)
    loader.add(Model(it, "fits"), Need(0, 130), Need(0, 500), None)
    with pytest.raises(DoesNotFit):
        loader.add(Model(it, "never"), Need(0, 131), Need(0, 500), None)
