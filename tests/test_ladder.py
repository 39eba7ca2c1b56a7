"""Safer settings after crashes, as data."""

from __future__ import annotations

from pathlib import Path

import pytest

from rerankd.backends.ladder import Setup, after, steps, words
from rerankd.process.reasons import Cause
from rerankd.serving.safer_settings import SECTION, SaferSettings, told
from rerankd.state import StateStore

GPU = Setup("llama", slots=4, layers=28, sets_flash_attention=True, splits_prompts=True, other="OpenVINO")


def test_the_steps_of_a_model_are_those_that_change_anything() -> None:
    assert steps(GPU) == (
        "flash_attention", "slots", "batches", "half_on_gpu", "cpu", "other_backend"
    )  # fmt: skip
    assert steps(Setup("llama")) == ()
    assert steps(Setup("llama", slots=4, other="OpenVINO")) == ("slots", "other_backend")
    assert steps(Setup("openvino", precision="bf16", other="bundled")) == ("float32", "other_backend")
    assert steps(Setup("openvino")) == ()


@pytest.mark.parametrize("loaded", [False, True])
def test_crashes_take_all_steps_one_after_the_other(loaded: bool) -> None:
    found, taken = steps(GPU), 0
    seen = []
    while (following := after(found, taken, "crash", loaded=loaded)) != taken:
        seen.append(found[taken])
        taken = following
    assert tuple(seen) == found


@pytest.mark.parametrize(
    ("cause", "loaded", "taken", "following"),
    [
        ("memory", True, 0, 2),  # not flash attention, which saves none
        ("memory", True, 2, 3),
        ("memory", False, 5, 5),  # never another engine for memory
        ("exit", False, 0, 6),  # it can't run the file here
        ("exit", True, 0, 1),
        ("file", False, 0, 0),  # another engine might not notice
        ("killed", True, 0, 0),
        ("hang", True, 0, 0),
        ("useless", True, 0, 0),
        ("start", False, 0, 0),
    ],
)
def test_what_follows_each_cause(cause: Cause, loaded: bool, taken: int, following: int) -> None:
    assert after(steps(GPU), taken, cause, loaded=loaded) == following


def test_an_exit_without_another_engine_changes_nothing() -> None:
    assert after(("slots",), 0, "exit", loaded=False) == 0


def settings(folder: Path, build: str = "b1") -> SaferSettings:
    made = SaferSettings(StateStore(folder), "model", "file 1", build)
    made.begin(steps(GPU))
    return made


def test_what_worked_is_kept_for_the_file_and_the_build(tmp_path: Path) -> None:
    first = settings(tmp_path)
    assert (first.steps, first.words) == ((), "")
    assert first.lost("crash", loaded=False) and first.lost("crash", loaded=False)
    assert settings(tmp_path).taken == 0  # nothing has worked yet
    first.is_ready()
    again = settings(tmp_path)
    assert again.steps == ("flash_attention", "slots")
    assert told(StateStore(tmp_path)) == [
        (
            "model",
            "llama.cpp's default for flash attention, one text at a time, since b1 crashed while it loaded",
        )
    ]
    assert "one text at a time" in again.words and "crashed while it loaded" in again.words
    assert settings(tmp_path, "b2").taken == 0
    again.forget()
    assert settings(tmp_path).taken == 0


def test_where_no_step_helps_the_next_try_begins_with_the_best_settings(tmp_path: Path) -> None:
    made = settings(tmp_path)
    while made.lost("crash", loaded=False):
        pass
    assert made.taken == 0
    made.is_ready()
    assert SECTION not in StateStore(tmp_path).sections()


def test_a_kept_value_that_is_damaged_counts_for_nothing(tmp_path: Path) -> None:
    made = settings(tmp_path)
    made.lost("crash", loaded=True)
    made.is_ready()
    state = StateStore(tmp_path)
    (key,) = state.entries(SECTION)
    for value in ("x", {}, {"steps": ["no such step"]}, [1]):
        state.put(SECTION, key, value)
        assert settings(tmp_path).taken == 0


def test_words_name_another_engine_alone() -> None:
    assert words(steps(GPU)) == "another engine"
