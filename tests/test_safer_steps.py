"""Safer settings after crashes: which steps a model has, and which one follows a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from rerankd.backends.base import EngineSpec, Shape
from rerankd.backends.llama.launch import EngineOptions, steps
from rerankd.backends.safer_steps import OTHER_BACKEND, Step, after, words
from rerankd.domain import Normalization, Recipe
from rerankd.machine import Gpu
from rerankd.process.failure_reasons import Cause
from rerankd.serving.safer_settings import SECTION, SaferSettings, models_in_use
from rerankd.state import StateStore

HEAD = Recipe("cross_encoder", 512, Normalization("sigmoid"), pooling="rank")
JUDGE = Recipe("causal_lm", 8192, Normalization("sigmoid"), template="{query}{document}", labels=("y", "n"))
CARD = Gpu("card", 2**36, 2**36, "9.0")


def names(recipe: Recipe, *, exact: bool = False, gpus: tuple[Gpu, ...] = (), f32: bool = False) -> list[str]:
    """Return the steps of a model with 28 layers on llama.cpp."""
    spec = EngineSpec("m", Path("m.gguf"), recipe, {}, exact, Shape(2**30, 28, 1024, 1024))
    return [step.name for step in steps(spec, EngineOptions(("x",), 4, gpus=gpus, keeps_f32=f32))]


GPU = (
    Step("flash_attention", "llama.cpp's default for flash attention"),
    Step("slots", "one text at a time", saves_memory=True),
    Step("batches", "smaller batches", saves_memory=True),
    Step("half_on_gpu", "half of its layers on the GPU", saves_memory=True),
    Step("cpu", "no layers on the GPU", saves_memory=True),
    OTHER_BACKEND,
)


def test_only_steps_that_change_something_are_listed() -> None:
    everything = [step.name for step in GPU[:-1]]
    assert names(JUDGE, gpus=(CARD,), f32=True) == everything
    assert names(JUDGE, exact=True, gpus=(CARD,)) == everything[1:]
    assert names(HEAD, exact=True, gpus=(CARD,)) == ["slots", "half_on_gpu", "cpu"]
    assert names(HEAD) == ["slots"]
    assert names(HEAD, exact=True) == ["flash_attention"]
    assert names(JUDGE) == ["batches"]


@pytest.mark.parametrize("loaded", [False, True])
def test_each_crash_takes_the_next_step(loaded: bool) -> None:
    found, taken = GPU, 0
    seen = []
    while (following := after(found, taken, "crash", loaded=loaded)) != taken:
        seen.append(found[taken])
        taken = following
    assert tuple(seen) == found


@pytest.mark.parametrize(
    ("cause", "loaded", "taken", "following"),
    [
        ("memory", True, 0, 2),  # flash attention saves no memory
        ("memory", True, 2, 3),
        ("memory", False, 5, 5),  # another engine does not help with memory
        ("exit", False, 0, 6),  # the engine can't run the file here
        ("exit", True, 0, 1),
        ("file", False, 0, 0),  # another engine might not notice the damage
        ("killed", True, 0, 0),
        ("hang", True, 0, 0),
        ("useless", True, 0, 0),
        ("start", False, 0, 0),
    ],
)
def test_the_step_after_each_cause(cause: Cause, loaded: bool, taken: int, following: int) -> None:
    assert after(GPU, taken, cause, loaded=loaded) == following


def test_an_exit_without_another_engine_changes_nothing() -> None:
    assert after(GPU[1:2], 0, "exit", loaded=False) == 0


def settings(folder: Path, build: str = "b1") -> SaferSettings:
    made = SaferSettings(StateStore(folder), "model", "file 1", build)
    made.begin(GPU)
    return made


def test_working_steps_are_stored_per_file_and_build(tmp_path: Path) -> None:
    first = settings(tmp_path)
    assert (first.steps, first.words) == ((), "")
    assert first.lost("crash", loaded=False) and first.lost("crash", loaded=False)
    assert settings(tmp_path).taken == 0  # no step has worked yet
    first.is_ready()
    again = settings(tmp_path)
    assert again.steps == GPU[:2]
    assert models_in_use(StateStore(tmp_path)) == [
        (
            "model",
            "llama.cpp's default for flash attention, one text at a time, since b1 crashed while loading",
        )
    ]
    assert "one text at a time" in again.words and "crashed while loading" in again.words
    assert settings(tmp_path, "b2").taken == 0
    again.forget()
    assert settings(tmp_path).taken == 0


def test_if_no_step_helps_the_next_attempt_uses_the_default_settings(tmp_path: Path) -> None:
    made = settings(tmp_path)
    while made.lost("crash", loaded=False):
        pass
    assert made.taken == 0
    made.is_ready()
    assert SECTION not in StateStore(tmp_path).sections()


def test_a_damaged_stored_value_is_ignored(tmp_path: Path) -> None:
    made = settings(tmp_path)
    made.lost("crash", loaded=True)
    made.is_ready()
    state = StateStore(tmp_path)
    (key,) = state.entries(SECTION)
    for value in ("x", {}, {"steps": ["no such step"]}, [1]):
        state.put(SECTION, key, value)
        assert settings(tmp_path).taken == 0


def test_words_mention_only_the_other_engine() -> None:
    assert words(GPU) == "another engine"
