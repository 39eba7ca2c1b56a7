"""Every backend returns a consistent offer or a refusal, for every recipe on every kind of machine.

refusals.txt lists all refusals: a change in them, or in their reasons, fails here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from overlap import OVERLAP

from rerankd.backends import safer_steps
from rerankd.backends.base import Backend, EngineSpec, Offer
from rerankd.backends.llama.binaries import Binaries, Binary
from rerankd.backends.table import BACKENDS
from rerankd.backends.torch.devices import Device, Survey
from rerankd.domain import Refusal
from rerankd.formats import model_files
from rerankd.machine import Gpu
from rerankd.serving import backend_offers
from rerankd.serving.prepare_model import resolve_file, wanted
from support import GOLDEN, golden_settings, options_of

ROWS: Mapping[str, Backend] = {backend.name: backend for backend in (*BACKENDS, OVERLAP)}
CARD = Gpu("card", 2**34, 2**34, "9.0")
CPU, CUDA = Device("cpu", "a CPU"), Device("cuda:0", "a card", 2**34, True, (9, 0))
BUNDLED = Binaries(None, 0, "", (), Binary("bundled", ("bundled",), "", 11549), (), ())
# The survey of each backend on a machine without a GPU, on one with a GPU and an engine for it, and on one
# without the backend's packages.
MACHINES: Mapping[str, Mapping[str, Any]] = {
    "openvino": {"cpu": True, "gpu": True, "bare": False},
    "onnx": {"cpu": True, "gpu": True, "bare": False},
    "torch": {"cpu": Survey("2.14", (CPU,)), "gpu": Survey("2.14", (CUDA, CPU)), "bare": Survey("")},
    "llama": {
        "cpu": BUNDLED,
        "gpu": replace(BUNDLED, own=Path("/my/server"), gpus=(CARD,)),
        "bare": replace(BUNDLED, bundled=None),
    },
    "overlap": {"cpu": None, "gpu": None, "bare": None},
}
# Golden models of each scoring method, format and architecture.
MODELS = (
    *("xlmr-head.gguf", "modernbert-head.gguf", "bert-embedder.gguf", "qwen2-labels.gguf"),
    *("qwen3-headed.gguf", "qwen3-headless.gguf", "gemma-yes.gguf"),
    *("xlmr-head", "modernbert-head", "bert-pairs", "roberta-head", "qwen3-headless"),
)


def spec_of(model: str) -> EngineSpec:
    settings = golden_settings(model.removesuffix(".gguf"), Path("/none"), model=(str(GOLDEN / model),))
    (one,) = wanted(settings)
    metadata = model_files.read(GOLDEN / model)
    return backend_offers.spec(model, GOLDEN / model, metadata, resolve_file(metadata, one.scoring), one, "f")


SPECS = {model: spec_of(model) for model in MODELS}


def said(backend: Backend, spec: EngineSpec, machine: str) -> Offer | Refusal:
    return backend.offer(spec, options_of(backend), MACHINES[backend.name][machine])


ASKED = [(name, model, machine) for name in ROWS for model in MODELS for machine in MACHINES[name]]
OFFERED = [one for one in ASKED if isinstance(said(ROWS[one[0]], SPECS[one[1]], one[2]), Offer)]


def test_the_refusals_are_those_that_are_listed() -> None:
    found = [
        f"{name} {model} {machine}: {answer.reason}"
        for name, model, machine in ASKED
        if isinstance(answer := said(ROWS[name], SPECS[model], machine), Refusal)
    ]
    assert found == Path(__file__).with_name("refusals.txt").read_text().splitlines()


@pytest.mark.parametrize(("name", "model", "machine"), OFFERED)
def test_an_offer_is_consistent(name: str, model: str, machine: str) -> None:
    backend, spec = ROWS[name], SPECS[model]
    offer = said(backend, spec, machine)
    assert isinstance(offer, Offer)
    assert offer.backend is backend
    # A backend may lower max_length; everything else in the spec stays the same.
    max_length = offer.spec.recipe.max_length
    assert 0 < max_length <= spec.recipe.max_length
    assert offer.spec == replace(spec, recipe=replace(spec.recipe, max_length=max_length))
    assert offer.name and offer.build and offer.title and offer.reason
    assert offer.on_cpu or machine == "gpu"
    more = said(backend, replace(spec, replicas=3), machine)
    assert isinstance(more, Offer)
    assert more.memory_bytes == 3 * offer.memory_bytes > 0
    assert spec.metadata is not None
    larger = replace(spec, metadata=replace(spec.metadata, size_bytes=2 * spec.metadata.size_bytes))
    grown = said(backend, larger, machine)
    assert isinstance(grown, Offer) and grown.memory_bytes >= offer.memory_bytes


@pytest.mark.parametrize(("name", "model", "machine"), OFFERED)
def test_safer_steps_end_and_each_changes_the_launch(name: str, model: str, machine: str) -> None:
    backend = ROWS[name]
    offer = said(backend, SPECS[model], machine)
    steps = backend.steps(offer, ())
    assert len({step.name for step in steps}) == len(steps)
    taken = [0]
    while (following := safer_steps.after(steps, taken[-1], "crash", loaded=False)) != taken[-1]:
        taken.append(following)
    assert taken == list(range(len(steps) + 1))
    starts = [backend.launch(offer, steps[:count], (), Path("/s")) for count in taken]
    said_of = [(tuple(one.argv), tuple(one.environment.items())) for one in starts]
    assert len(set(said_of)) == len(said_of)


def test_every_row_of_the_table_is_covered() -> None:
    assert MACHINES.keys() == ROWS.keys()


def test_an_offer_imports_no_engine_library() -> None:
    code = "import sys, test_refusals as t; [t.said(t.ROWS[a], t.SPECS[b], c) for a, b, c in t.ASKED]; "
    code += "print({'onnxruntime', 'openvino', 'torch', 'xllamacpp'} & sys.modules.keys())"
    folders = [Path(__file__).parent, Path(__file__).parents[1]]
    paths = ":".join(map(str, folders))
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.stdout == "set()\n", done.stderr
