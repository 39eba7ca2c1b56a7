"""Which llama.cpp binary is chosen for a model, and the installed engines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from built import CPU, engine, put
from rerankd.backends.base import EngineSpec
from rerankd.backends.llama import installed, manifest
from rerankd.backends.llama.backend import needed_build
from rerankd.backends.llama.binaries import Binaries, Binary, Installed, choose
from rerankd.backends.llama.options import LlamaOptions
from rerankd.domain import Normalization, Recipe
from rerankd.errors import ConfigError, EngineTooOld, EngineUnknown
from rerankd.formats import gguf_metadata
from rerankd.formats.metadata import ModelMetadata
from rerankd.machine import Gpu
from rerankd.recipes import catalog
from rerankd.serving import prepare_model
from support import golden_settings

GPU = Gpu("RTX", 24 * 2**30, 23 * 2**30, "8.9")
BUNDLED = Binary("bundled", ("python", "-m", "bundled"), "", 11549)


def offer(*engines: Installed, **more: Any) -> Binaries:
    plain = Binaries(None, 0, "", engines, BUNDLED, (), CPU)
    return replace(plain, **more)


@pytest.mark.parametrize(
    ("offered", "needs", "name", "says"),
    [
        (offer(), 0, "bundled", "no other engine is installed"),
        (offer(engine(1)), 0, "b1-cpu-0", "built for this machine"),
        (offer(engine(1), engine(2)), 0, "b2-cpu-0", "newest"),
        (offer(engine(1), engine(3, instructions=("amx_int8",))), 0, "b1-cpu-0", "built for this machine"),
        (offer(engine(3, instructions=("amx_int8",))), 0, "bundled", "another CPU"),
        (offer(engine(2), engine(1, "cuda"), gpus=(GPU,)), 0, "b1-cuda-0", "this machine"),
        (offer(engine(1), engine(2, "cuda")), 0, "b1-cpu-0", "this machine"),
        (offer(engine(1), used="bundled"), 0, "bundled", "engine use"),
        (offer(engine(1), engine(2), used="b1-cpu-0"), 0, "b1-cpu-0", "engine use"),
        (offer(engine(1), own=Path("/my/server"), used="b1-cpu-0"), 0, "/my/server", "llama_path"),
        (offer(engine(1)), 11000, "bundled", "older than b11000"),
        (offer(engine(0)), 11000, "b0-cpu-0", "built for this machine"),  # an unknown build number
        (offer(engine(12000)), 11600, "b12000-cpu-0", "built for this machine"),
    ],
)
def test_choice(offered: Binaries, needs: int, name: str, says: str) -> None:
    choice = choose(offered, needs=needs)
    assert choice.name == name
    assert says in choice.reason


def test_the_gpus_of_a_choice() -> None:
    assert choose(offer(engine(1, "cuda"), gpus=(GPU,))).gpus == (GPU,)
    assert choose(offer(engine(1), gpus=(GPU,), used="b1-cpu-0")).on_cpu
    assert choose(offer(gpus=(GPU,))).on_cpu
    assert choose(offer(engine(1, "vulkan"))).gpus is None
    assert not choose(offer(own=Path("/my/server"))).on_cpu


@pytest.mark.parametrize(
    ("offered", "says"),
    [
        (offer(), "needs llama.cpp b12000 or newer, but the bundled llama.cpp is b11549"),
        (offer(engine(1), used="b1-cpu-0"), "the engine b1-cpu-0 is b1. Build a newer one"),
        (offer(own=Path("/my/server"), own_build=5), "/my/server is b5. Set LLAMA_PATH to a newer one"),
        (offer(used="bundled"), "rerankd engine build"),
    ],
)
def test_an_engine_that_is_too_old_is_refused_with_the_number_needed(offered: Binaries, says: str) -> None:
    with pytest.raises(EngineTooOld) as caught:
        choose(offered, needs=12000)
    assert says in caught.value.message


def test_a_removed_engine_is_skipped_with_a_reason() -> None:
    chosen = choose(offer(used="b9-cpu-0"))
    assert chosen.name == "bundled"
    assert "b9-cpu-0, chosen with rerankd engine use, was removed" in chosen.reason
    assert choose(offer(engine(1), used="b9-cpu-0")).name == engine(1).name
    with pytest.raises(EngineUnknown, match="LLAMA_PATH"):
        choose(offer(bundled=None))


def test_the_catalog_can_require_a_build() -> None:
    table = '[[model]]\nname = "A"\nmethod = "cross_encoder"\nneeds_build = 12000\n'
    match = 'match = { architectures = ["bert"], names = ["a-b"], block_count = 1, embedding_length = 8 }'
    entry = catalog.load(table + match).entries[0]
    assert entry.needs_build == 12000


@pytest.mark.parametrize(("activation", "build"), [("", 0), ("gelu", 0), ("silu", 11434)])
def test_a_modern_bert_with_another_activation_needs_a_build_that_reads_it(
    activation: str, build: int
) -> None:
    metadata = ModelMetadata(Path("m.gguf"), "modern-bert", hidden_activation=activation)
    recipe = Recipe("cross_encoder", 512, Normalization("sigmoid"))
    assert needed_build(EngineSpec("m", metadata.path, recipe, {}, metadata=metadata)) == build


def test_a_model_that_needs_a_newer_llama_cpp_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = golden_settings("qwen3-headed", tmp_path)
    metadata = gguf_metadata.read(settings.model[0])
    sizes = f"block_count = {metadata.block_count}, embedding_length = {metadata.embedding_length}"
    prompt = (
        'method = "causal_lm"\nlabels = ["y", "n"]\ntemplate = "{query}{document}"\nneeds_build = 99999\n'
    )
    match = f'match = {{ architectures = ["qwen3"], names = ["{catalog.plain(metadata.name)}"], {sizes} }}'
    table = catalog.load(f'[[model]]\nname = "A"\n{prompt}{match}')
    monkeypatch.setattr(catalog, "known", lambda: table)
    with pytest.raises(
        ConfigError, match=r"needs llama\.cpp b99999 or newer, but the bundled llama\.cpp is b1"
    ):
        prepare_model.prepare(settings.model_copy(update={"engine": "llama"}))
    other = prepare_model.prepare(settings)
    assert other.engine.backend.name == "openvino" and "needs llama.cpp b99999" in other.engine.reason


def test_engines_on_disk(tmp_path: Path) -> None:
    engines = installed.Engines(tmp_path)
    assert engines.all() == []
    first, second = put(tmp_path, 1), put(tmp_path, 2)
    (tmp_path / "engines" / ".new").mkdir()
    broken = tmp_path / "engines" / "b3-cpu-0"
    broken.mkdir()
    (broken / manifest.FILE).write_text('{"build": 3}')
    assert [one.name for one in engines.all()] == [second, first]
    assert engines.used() == ""
    assert engines.use("b1-") == first
    assert engines.used() == first
    engines.remove(first)
    assert engines.used() == ""
    assert [one.name for one in engines.all()] == [second]
    assert sorted(path.name for path in engines.folder.iterdir()) == [".new", second, "b3-cpu-0"]
    with pytest.raises(EngineUnknown, match="comes with rerankd and can't be removed"):
        engines.remove("bundled")
    with pytest.raises(EngineUnknown, match=f"The engines are: bundled, {second}"):
        engines.use("b9")


def test_settings_choose(tmp_path: Path) -> None:
    name = put(tmp_path, 11434, instructions=())
    assert installed.chosen(LlamaOptions(), tmp_path).name == name
    program = tmp_path / "engines" / name / manifest.PROGRAM
    own = LlamaOptions(llama_path=program)
    assert choose(installed.survey(own, tmp_path, 11000), needs=11000).build == 11434
    with pytest.raises(EngineTooOld):
        choose(installed.survey(own, tmp_path, 11435), needs=11435)
    assert installed.chosen(own.model_copy(update={"gpu_layers": 0}), tmp_path).on_cpu


def test_the_bundled_engines_number() -> None:
    bundled = installed.bundled()
    assert bundled is not None
    assert bundled.build > 11000
