"""The smoke test of engines: its known scores, and its outcomes."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny_reference
from rerankd.backends.llama import installed
from rerankd.backends.llama.build import smoke, tiny


def test_the_known_scores_follow_from_the_weights() -> None:
    assert tiny_reference.answers() == pytest.approx(tiny.ANSWERS, abs=1e-4)


def test_the_bundled_engine_passes(tmp_path: Path) -> None:
    bundled = installed.bundled()
    assert bundled is not None
    outcome = smoke.run(bundled.program, tmp_path / "log")
    assert outcome.passed, outcome.text
    assert outcome.error is not None
    # An error above 0 shows that the tolerance is needed.
    assert 1e-6 < outcome.error < tiny.TOLERANCE / 2


def test_wrong_scores_fail() -> None:
    right = list(tiny.ANSWERS)
    assert smoke.compare(right).passed
    wrong = smoke.compare([right[0] + 0.2, right[1]])
    assert not wrong.passed
    assert "wrong scores" in wrong.text


def test_an_exit_is_reported_with_signal_and_last_lines() -> None:
    outcome = smoke.ended(-4, ["loading", "tile"])
    assert (outcome.passed, outcome.signal) == (False, 4)
    assert "SIGILL" in outcome.text
    assert "| tile" in outcome.text
    assert smoke.ended(3, []).signal is None
