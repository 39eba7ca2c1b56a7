from pathlib import Path
from typing import Any

import pytest

from rerankd.domain import Pooling, Scoring, Transform, Way
from rerankd.engine import bundled, command
from rerankd.engine.base import EngineSpec

SOCKET = Path("/run/e.sock")


def spec(way: Way, pooling: Pooling, *, exact: bool, window: int = 512) -> EngineSpec:
    scoring = Scoring(way, window, Transform("sigmoid"), pooling=pooling)
    return EngineSpec("m", Path("/m.gguf"), scoring, {}, exact)


def flags(made: Any) -> dict[str, str]:
    words = list(made)[1:]
    return {
        word: words[at + 1] if at + 1 < len(words) and not words[at + 1].startswith("--") else ""
        for at, word in enumerate(words)
        if word.startswith("--")
    }


CPU = command.EngineOptions(("llama-server",), threads=2)
GPU = command.EngineOptions(("llama-server",), threads=8, gpu_layers=99, on_cpu=False)


@pytest.mark.parametrize(
    ("made_for", "options", "expected"),
    [
        (
            spec("cosine", "mean", exact=False),
            CPU,
            {"--pooling": "mean", "--parallel": "4", "--ctx-size": "2048", "--ubatch-size": "512"},
        ),
        (
            spec("head", "rank", exact=True),
            CPU,
            {"--pooling": "rank", "--parallel": "1", "--ctx-size": "512", "--flash-attn": "off"},
        ),
        (
            spec("judge", "none", exact=True, window=8192),
            CPU,
            {"--parallel": "1", "--ctx-size": "8192", "--ubatch-size": "512", "--cache-type-k": "f32"},
        ),
        (
            spec("judge", "none", exact=False, window=8192),
            GPU,
            {"--parallel": "4", "--ctx-size": "32768", "--n-gpu-layers": "99", "--threads": "8"},
        ),
    ],
)
def test_command_line(made_for: EngineSpec, options: command.EngineOptions, expected: dict[str, str]) -> None:
    made = flags(command.argv(made_for, options, SOCKET))
    assert expected.items() <= made.items()
    assert made["--cache-ram"] == "0"
    assert ("--embedding" in made) == (made_for.scoring.way != "judge")


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("way", "pooling"), [("head", "rank"), ("cosine", "cls"), ("judge", "none")])
def test_the_bundled_program_knows_every_flag(way: Way, pooling: Pooling, exact: bool) -> None:
    for options in (CPU, GPU):
        words = list(command.argv(spec(way, pooling, exact=exact), options, SOCKET))
        assert bundled.parser().parse_args(words[1:]).host == str(SOCKET)
