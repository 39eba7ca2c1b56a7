"""The golden models, and the engines that they are compared on with transformers' values.

Tolerances: 1e-3, and for OpenVINO in f32 a tenth of it (5e-6 seen), but for two causes that are llama.cpp's
own (tests/golden/README.md has the measurements).
xlmr-head: its GELU for `bert` is the tanh form, out of a table in F16; the model's is the erf form.
qwen2-labels: with F16 matrices it rounds activations to F16 as well.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from rerankd.backends.base import Engine
from rerankd.service import Reranker
from support import GOLDEN, golden, native_engine

BOUNDS = {
    "xlmr-head": 2.5e-3,
    "modernbert-head": 1e-3,
    "qwen3-headed": 1e-3,
    "qwen3-headless": 1e-3,
    "qwen2-labels": 3.5e-3,
    "bert-embedder": 1e-3,
}
# A llama-server as old as b11434 has the tanh form of GELU for ModernBERT too; the bundled one has erf.
SERVER_BOUNDS = BOUNDS | {"modernbert-head": 5e-3}
OPENVINO_BOUNDS = dict.fromkeys(("xlmr-head", "modernbert-head", "bert-embedder"), 1e-4)
# llama.cpp cuts a word of over 100 letters into WordPieces; the reference makes it one unknown token.
OTHER_TOKENS = {("bert-embedder", "odd-07")}
# Checkpoints in transformers' format, of the same weights as the GGUF file where there is one.
CHECKPOINTS = ("xlmr-head", "modernbert-head", "bert-pairs", "roberta-head")
PAIRS = {pair["id"]: pair for pair in json.loads((GOLDEN / "pairs.json").read_text())}


@dataclass(frozen=True)
class Case:
    """A golden model on one engine, which the settings choose."""

    name: str
    engine: str
    tolerance: float
    settings: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name}-{self.engine}"

    @property
    def other_tokens(self) -> set[tuple[str, str]]:
        return OTHER_TOKENS if self.engine in ("bundled", "llama-server") else set()


def cases() -> Iterator[Any]:
    """Every golden model on every engine that can run it; on a llama-server where LLAMA_SERVER names one, or
    `make engine` has built one."""
    for name, bound in OPENVINO_BOUNDS.items():
        yield Case(name, "openvino", bound, {"engine": "openvino", "precision": "f32"})
    for name in CHECKPOINTS:
        yield Case(name, "safetensors", 2e-5, {"model": (str(GOLDEN / name),), "precision": "f32"})
    for name, bound in BOUNDS.items():
        yield Case(name, "bundled", bound, {"engine": "llama"})
    server = os.environ.get("LLAMA_SERVER") or native_engine()
    reason = "there is no llama-server to test with: make engine builds one, LLAMA_SERVER names one"
    skip = pytest.mark.skipif(not server, reason=reason)
    for name, bound in SERVER_BOUNDS.items():
        case = Case(name, "llama-server", bound, {"llama_path": server, "gpu_layers": 0})
        yield pytest.param(case, marks=skip)


def by_query(of: Case) -> dict[str, list[dict[str, Any]]]:
    cases = defaultdict(list)
    for case in golden(of.name)["cases"]:
        if case["fits"] and (of.name, case["id"]) not in of.other_tokens:
            cases[PAIRS[case["id"]]["query"]].append(case)
    assert sum(map(len, cases.values())) >= 180
    return cases


def documents(cases: list[dict[str, Any]]) -> list[str]:
    return [PAIRS[case["id"]]["document"] for case in cases]


@dataclass(frozen=True)
class Served:
    """A case whose engine runs."""

    case: Case
    reranker: Reranker

    @property
    def engine(self) -> Engine:
        found = self.reranker.state.engine
        assert found is not None
        return found
