"""The logit of a single label on llama.cpp, compared with transformers' and with a product of our own."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from cases import PAIRS
from test_lifecycle import started
from test_refusals import SPECS

from ggufs import rewrite
from rerankd.backends.base import Batch
from rerankd.backends.llama.backend import LlamaBackend
from rerankd.backends.llama.engines import EmbeddingEngine
from rerankd.domain import Normalization, Recipe
from rerankd.formats import model_files
from rerankd.recipes import catalog
from rerankd.scoring import prompt
from rerankd.scoring.engine_input import Input, Question
from rerankd.service import Reranker
from support import GOLDEN, golden, golden_settings, inputs

# The recipes of zerank, ctxl-rerank-v2 and bge-reranker-v2-gemma.
NAMES = {"qwen3-yes": "zerank-1", "qwen2-first": "ctxl-rerank-v2", "gemma-yes": "bge-reranker-v2-gemma"}
# With F16 matrices llama.cpp rounds activations to F16. For Gemma it reads GELU from an F16 table.
BOUNDS = {"f32": 1e-3, "f16": 0.02}


def converted(name: str, kind: str, folder: Path) -> Path:
    """The golden model's file with matrices in F32 or F16."""
    own = {"f32": np.float32, "f16": np.float16}[kind]

    def tensors(held: dict[str, Any]) -> dict[str, Any]:
        return {key: data.astype(own) if data.ndim > 1 else data for key, data in held.items()}

    return rewrite(GOLDEN / golden(name)["model"], folder / "model.gguf", tensors=tensors)


@pytest.mark.parametrize("kind", BOUNDS)
@pytest.mark.parametrize("name", NAMES)
async def test_raw_scores_are_the_reference_s_logits(name: str, kind: str, tmp_path: Path) -> None:
    path = converted(name, kind, tmp_path)
    settings = golden_settings(name, tmp_path, engine="llama").model_copy(update={"model": (str(path),)})
    cases = [case for case in golden(name)["cases"] if case["fits"]]
    cases = [case for case in cases if PAIRS[case["id"]]["document"].strip()]
    raw = [case["raw_f16"] if kind == "f16" and "raw_f16" in case else case["raw"] for case in cases]
    async with Reranker(settings) as reranker:
        engine = reranker.state.engine
        assert engine is not None
        found = []
        for case in cases:
            pair = PAIRS[case["id"]]
            (one,) = await inputs(reranker, pair["query"], [pair["document"]])
            assert one.whole.tolist() == case["ids"], case["id"]
            found += (await engine.score(Batch((one,)))).values
    apart = np.abs(np.array(found) - np.array(raw))
    print(f"{name} {kind}: {apart.max():.2g}")
    assert len(raw) >= 170 and apart.max() <= BOUNDS[kind]


async def test_a_row_that_is_not_zero_is_seen(tmp_path: Path) -> None:
    """Without the patch, the value is a difference of two logits."""
    values = golden("qwen3-yes")
    scoring = SPECS["qwen3-headless.gguf"].recipe
    recipe = replace(scoring, template=values["template"], labels=("Yes",), instruction="")
    spec = replace(SPECS["qwen3-headless.gguf"], recipe=recipe)
    cases = [case for case in values["cases"] if case["fits"]][:20]
    batch = Batch(
        tuple(Input(Question(""), "", np.array(one["ids"], np.int32), len(one["ids"])) for one in cases)
    )
    async with started(LlamaBackend(), spec, tmp_path) as (_, engine, _):
        found = (await engine.score(batch)).values
    apart = np.abs(np.array(found, float) - np.array([case["raw"] for case in cases]))
    assert apart.max() > 10 * BOUNDS["f16"]


@pytest.mark.parametrize("name", NAMES)
def test_the_catalogs_prompts_are_those_of_the_golden_models(name: str) -> None:
    entry = catalog.known().find(NAMES[name])
    assert entry is not None
    pieces, template = golden(name)["pieces"], prompt.choose(entry.template, instructed=False)
    assert template == ("" if name == "qwen3-yes" else "\x1e").join(pieces)
    assert list(entry.labels) == golden(name)["labels"]


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0", "Q5_1"])
async def test_the_logit_of_a_quantised_file_is_the_product_with_the_label_s_row(
    quant: str, tmp_path: Path
) -> None:
    """Compares with the last token's hidden state, which llama.cpp returns as an embedding, times the row of
    the label in the output matrix. The self-test does not: it would need a second engine."""
    kind = gguf.GGMLQuantizationType[quant]

    path = tmp_path / "model.gguf"
    rewrite(GOLDEN / "qwen3-headless.gguf", tmp_path / "f32.gguf")
    row = quantise(tmp_path / "f32.gguf", path, kind)[golden("qwen3-yes")["label_ids"][0]]
    ids = [case["ids"] for case in golden("qwen3-yes")["cases"] if case["fits"]][:20]
    settings = golden_settings("qwen3-yes", tmp_path, engine="llama").model_copy(
        update={"model": (str(path),)}
    )
    batch = Batch(tuple(Input(Question(""), "", np.array(one, np.int32), len(one)) for one in ids))
    async with Reranker(settings) as reranker:
        assert reranker.state.engine is not None
        found = (await reranker.state.engine.score(batch)).values
    recipe = Recipe("embedding", 512, Normalization("affine"), pooling="last")
    spec = replace(SPECS["qwen3-headless.gguf"], recipe=recipe, path=path, metadata=model_files.read(path))
    async with started(LlamaBackend(), spec, tmp_path) as (_, engine, _):
        assert isinstance(engine, EmbeddingEngine)
        body = [{"content": one, "embd_normalize": -1} for one in ids]
        answers = await asyncio.gather(*(engine.compute("/embedding", one) for one in body))
    states = np.array([np.ravel(answer[0]["embedding"]) for answer in answers], np.float32)
    # llama.cpp also quantises the state before the product.
    assert found == pytest.approx((states @ row).tolist(), abs=0.05)


def quantise(source: Path, target: Path, kind: gguf.GGMLQuantizationType) -> np.ndarray[Any, Any]:
    """Write a copy with a quantised embedding matrix. Returns this matrix as the engine reads it."""
    held = gguf.GGUFReader(source)
    out = gguf.GGUFWriter(target, "qwen3")
    for name, field in held.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
            out.add_key_value(name, field.contents(), field.types[0], inner)
    read = np.zeros(0, np.float32)
    for tensor in held.tensors:
        if tensor.name == "token_embd.weight":
            data = gguf.quants.quantize(np.array(tensor.data), kind)
            read = gguf.quants.dequantize(data, kind)
            out.add_tensor(tensor.name, data, raw_dtype=kind)
        else:
            out.add_tensor(tensor.name, np.array(tensor.data))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return read


async def test_scores_are_scaled_as_the_catalog_says(tmp_path: Path) -> None:
    """zerank: sigmoid(logit / 5). A document without a score gets 0, and the lowest raw score."""
    more = {"scoring": {"logit_sigma": 5.0, "logit_mean": 1.0}}
    settings = golden_settings("qwen3-yes", tmp_path, engine="llama", **more)
    async with Reranker(settings) as reranker:
        raw, normal = [
            await reranker.rerank("a", ["b", "c d", " "], raw_scores=is_raw) for is_raw in (True, False)
        ]
    assert [row.index for row in raw.results] == [row.index for row in normal.results]
    for first, second in zip(raw.results[:2], normal.results[:2], strict=True):
        assert second.score == pytest.approx(1 / (1 + np.exp(-(first.score - 1) / 5)))
    assert (raw.results[2].score, normal.results[2].score) == (1 - 5 * 87, 0)


async def test_an_instruction_changes_the_prompt_only_if_there_is_one(tmp_path: Path) -> None:
    zerank = catalog.known().find("zerank-2")
    assert zerank is not None
    settings = golden_settings("qwen3-yes", tmp_path, engine="llama", scoring={"template": zerank.template})
    async with Reranker(settings) as reranker:
        plain, instructed = [
            (await inputs(reranker, "q", ["d"], instruction))[0].whole.tolist()
            for instruction in (None, "Prefer news.")
        ]
        reader = await reranker.registry.find(None).reader()
        texts = ["system\nq", "system\n<query>q</query>\n<instruction>Prefer news.</instruction>"]
        wanted = [ids.tolist() for ids in await reader.tokenizer.encode(texts)]
    for found, ids in zip((plain, instructed), wanted, strict=True):
        assert found[1 : 1 + len(ids)] == ids
