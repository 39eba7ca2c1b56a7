"""The cases of the contract suite: each golden model on each engine, compared with transformers' scores.

The tolerance is 1e-3, 1e-4 for OpenVINO in f32 (5e-6 was seen), and 1e-5 for PyTorch in f32 (8e-6 was seen).
It is larger for two models on llama.cpp (measurements: tests/golden/README.md). xlmr-head: llama.cpp computes
GELU for `bert` in the tanh form, from an F16 table; the model uses the erf form. qwen2 and gemma: with F16
matrices, llama.cpp rounds activations to F16.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest

from rerankd.backends.base import Backend, Engine
from rerankd.service import Reranker
from support import GOLDEN, golden, native_engine

BOUNDS = {
    "xlmr-head": 2.5e-3,
    "modernbert-head": 1e-3,
    "qwen3-headed": 1e-3,
    "qwen3-headless": 1e-3,
    "qwen2-labels": 3.5e-3,
    "bert-embedder": 1e-3,
    "qwen3-yes": 1e-3,
    "qwen2-first": 3.5e-3,
    "gemma-yes": 3.5e-3,
}
# llama-server b11434 uses the tanh form of GELU for ModernBERT, too; the bundled build uses erf.
SERVER_BOUNDS = BOUNDS | {"modernbert-head": 5e-3}
OPENVINO_BOUNDS = dict.fromkeys(("xlmr-head", "modernbert-head", "bert-embedder"), 1e-4)
OPENVINO_BOUNDS |= dict.fromkeys(("qwen3-headed", "qwen3-headless", "qwen2-labels", "gemma-yes"), 2e-5)
# llama.cpp splits a word of over 100 letters into WordPieces; for the reference it is one unknown token.
OTHER_TOKENS = {("bert-embedder", "odd-07")}
# Encoders in transformers' format only.
ENCODERS = ("deberta-v3", "gte", "electra", "distilbert", "camembert", "two-label-reranker", "jina-v2")
# Checkpoints in transformers' format, with the same weights as the GGUF file of that name, if any.
PAIR_CHECKPOINTS = ("xlmr-head", "modernbert-head", "bert-pairs", "roberta-head", *ENCODERS)
CHECKPOINTS = (*PAIR_CHECKPOINTS, "qwen3-headless", "qwen2-labels")
# PyTorch computes these in float32 within 8e-6.
TORCH_BOUND = 1e-5
TORCH_GGUFS = (
    "xlmr-head",
    "modernbert-head",
    "qwen3-headed",
    "qwen3-headless",
    "qwen2-labels",
    "bert-embedder",
    "qwen3-yes",
    "qwen2-first",
    "gemma-yes",
)
PAIRS = {pair["id"]: pair for pair in json.loads((GOLDEN / "pairs.json").read_text())}


@dataclass(frozen=True)
class Case:
    """A golden model and an engine, which `settings` select."""

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
    """Yield every golden model on every engine that can run it, including a llama-server if LLAMA_SERVER is
    set or `make engine` has built one."""
    for name, bound in OPENVINO_BOUNDS.items():
        yield Case(name, "openvino", bound, {"engine": "openvino", "precision": "f32"})
    for name in CHECKPOINTS:
        yield Case(name, "safetensors", 2e-5, {"model": (str(GOLDEN / name),), "precision": "f32"})
    yield from torch_cases()
    for name, bound in BOUNDS.items():
        yield Case(name, "bundled", bound, {"engine": "llama"})
    server = os.environ.get("LLAMA_SERVER") or native_engine()
    reason = "no llama-server: run make engine, or set LLAMA_SERVER"
    skip = pytest.mark.skipif(not server, reason=reason)
    for name, bound in SERVER_BOUNDS.items():
        case = Case(name, "llama-server", bound, {"llama_path": server, "gpu_layers": 0})
        yield pytest.param(case, marks=skip)


def torch_cases() -> Iterator[Any]:
    """Yield golden models on PyTorch, if it is installed: `make test-torch`."""
    settings = {"engine": "torch", "device": "cpu", "precision": "f32"}
    skip = pytest.mark.skipif(find_spec("torch") is None, reason="no PyTorch here: make test-torch")
    for name in TORCH_GGUFS:
        yield pytest.param(Case(name, "torch", TORCH_BOUND, settings), marks=skip)
    for name in CHECKPOINTS:
        more = settings | {"model": (str(GOLDEN / name),)}
        yield pytest.param(Case(name, "torch-safetensors", TORCH_BOUND, more), marks=skip)


def needs_packages(row: Backend) -> Any:
    """Skips a test of a backend whose packages are not installed."""
    missing = [name for name in row.packages if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{missing} not installed: make test-torch")


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
    """A case with a running engine."""

    case: Case
    reranker: Reranker

    @property
    def engine(self) -> Engine:
        found = self.reranker.state.engine
        assert found is not None
        return found
