"""llama.cpp as an engine for token ids, and as a tokenizer: a real process, called directly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import BOUNDS, OTHER_TOKENS, PAIRS
from test_lifecycle import started
from test_refusals import SPECS

from ggufs import rewrite
from rerankd.backends.base import Batch
from rerankd.backends.llama.backend import LlamaBackend
from rerankd.backends.llama.engines import LlamaEngine
from rerankd.errors import EngineError, InputTooLong, Unscorable
from rerankd.formats import gguf_metadata, model_files, tokenizer
from rerankd.formats.tokenizer import Vocabulary
from rerankd.ids import Ids
from rerankd.scoring import deduplicate
from rerankd.scoring.engine_input import Input, Question
from rerankd.scoring.inputs import Reader
from support import GOLDEN, golden

BACKEND = LlamaBackend()
# One model per kind of vocabulary: SentencePiece, WordPiece, and byte-level BPE with and without a rank head.
NAMES = ("xlmr-head", "bert-embedder", "modernbert-head", "qwen2-labels", "qwen3-headless")
ROWS = json.loads((GOLDEN / "tokens.json").read_text(encoding="utf-8"))
TEXTS = [deduplicate.clean(pair["document"], nfc=True) for pair in PAIRS.values() if pair["document"].strip()]


@pytest.fixture(scope="module", params=NAMES)
async def running(
    request: pytest.FixtureRequest, anyio_backend: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[str, LlamaEngine, Reader]]:
    spec = SPECS[f"{request.param}.gguf"]
    async with started(BACKEND, spec, tmp_path_factory.mktemp("llama")) as (_, engine, reader):
        assert isinstance(engine, LlamaEngine)
        yield request.param, engine, reader


def vocabulary(name: str) -> Vocabulary:
    metadata = SPECS[f"{name}.gguf"].metadata
    assert metadata is not None
    return tokenizer.read(metadata)


def inputs(name: str, *ids: list[Any]) -> Batch:
    """Make a batch of complete inputs, or for the embedding model of (query ids, document ids)."""
    if name == "bert-embedder":
        made = [(Question("", ids=array(query)), array(document)) for query, document in ids]
    else:
        made = [(Question(""), array(one)) for one in ids]
    return Batch(tuple(Input(question, "", own, len(own)) for question, own in made))


def array(ids: list[int]) -> Ids:
    return np.array(ids, np.int32)


async def test_values_are_those_of_the_reference(running: tuple[str, LlamaEngine, Reader]) -> None:
    name, engine, reader = running
    cases = [
        case for case in golden(name)["cases"] if case["fits"] and (name, case["id"]) not in OTHER_TOKENS
    ]
    cases = [case for case in cases if PAIRS[case["id"]]["document"].strip()]  # blank: never scored
    if reader.reads_text:
        pairs = [PAIRS[case["id"]] for case in cases]
        texts = [(pair["query"], deduplicate.clean(pair["document"], nfc=True)) for pair in pairs]
        batches = [Batch(tuple(await reader.plain(query, [document]))) for query, document in texts]
    else:
        ids = [case["ids"] for case in cases]
        batches = [inputs(name, *ids[start : start + 32]) for start in range(0, len(ids), 32)]
    found = [value for batch in batches for value in (await engine.score(batch)).values]
    assert found == pytest.approx([case["raw"] for case in cases], abs=BOUNDS[name])


async def test_its_ids_are_those_of_the_vocabulary(running: tuple[str, LlamaEngine, Reader]) -> None:
    """Except for a word of more than 100 letters, which is one unknown token for the WordPiece reference."""
    name, engine, _ = running
    wanted = vocabulary(name).encode(TEXTS)
    found = await engine.encode(TEXTS)
    differ = [text for text, a, b in zip(TEXTS, found, wanted, strict=True) if a.tolist() != b.tolist()]
    assert all(max(map(len, text.split())) > 100 for text in differ) and len(differ) <= 2
    # Without a separator id, each text is a call of its own.
    assert [ids.tolist() for ids in found[:20]] == await engine.tokenize_all(TEXTS[:20], None)
    assert await engine.encode([]) == []


async def test_a_text_truncated_at_a_token_end_is_mostly_tokenized_as_before(
    running: tuple[str, LlamaEngine, Reader],
) -> None:
    _, engine, _ = running
    every, places = await asyncio.gather(engine.encode(TEXTS), engine.ends(TEXTS))
    cuts = []
    for text, ids, ends in zip(TEXTS, every, places, strict=True):
        assert len(ids) == len(ends)
        assert (np.diff(ends, prepend=0, append=len(text)) >= 0).all()
        cuts += [
            (text[: ends[at]], ids[: at + 1].tolist())
            for at in range(0, len(ends) - 1, 5)
            if ends[at] < ends[at + 1]
        ]
    again = await engine.encode([text for text, _ in cuts])
    same = sum(ids.tolist() == wanted for ids, (_, wanted) in zip(again, cuts, strict=True))
    assert same > 0.85 * len(cuts) > 100


async def test_it_reports_the_special_tokens_around_texts(running: tuple[str, LlamaEngine, Reader]) -> None:
    name, engine, _ = running
    start, between, end, alone, _ = engine.frame
    own = vocabulary(name).frame
    if name in ("xlmr-head", "modernbert-head"):
        # llama.cpp adds them itself; only their number is known.
        assert len(start) == len(own.start) + len(own.between) + len(own.end)
        assert not len(between) + len(end) + len(alone)
    else:
        assert (start.tolist(), alone.tolist()) == (own.start.tolist(), own.alone.tolist())


async def test_an_input_may_have_max_length_tokens_and_no_more(
    running: tuple[str, LlamaEngine, Reader], tmp_path: Path
) -> None:
    name, engine, reader = running
    longest = reader.recipe.max_length
    if not reader.reads_text:
        whole = [5] * longest
        both = [whole, whole] if name == "bert-embedder" else whole
        assert None not in (await engine.score(inputs(name, both))).values
        over = [whole, [*whole, 5]] if name == "bert-embedder" else [*whole, 5]
        with pytest.raises(InputTooLong):
            await engine.score(inputs(name, over))
        return
    (a,) = await engine.encode(["a"])
    room = longest - len(engine.frame.start) - len(a)
    texts = [" ".join("a" * count) for count in range(1, 2 * longest)]
    counts = [len(ids) for ids in await engine.encode(texts)]
    fits = max(text for text, count in zip(texts, counts, strict=True) if count <= room)
    over_ = min(text for text, count in zip(texts, counts, strict=True) if count > room)
    assert None not in (await engine.score(Batch((Input(Question("a"), fits, a, 1),)))).values
    with pytest.raises(InputTooLong):
        await engine.score(Batch((Input(Question("a"), over_, a, 1),)))


@pytest.mark.parametrize("pre", ["qwen2", "qwen35"])
async def test_pre_tokenizer_rules_are_those_of_llama_cpp(tmp_path: Path, pre: str) -> None:
    """Compares with llama.cpp, because no golden model uses these rules."""
    source = GOLDEN / "qwen3-headless.gguf"
    header, _ = gguf_metadata.header_of(source, tokenizer.ARRAYS)
    tokens, kinds, merges = (
        header.values[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type", "merges")
    )
    # Replace an unused token by a letter and the first byte of a mark: only Qwen3.5's rule keeps them
    # together.
    joined, unused = "e\u00cc", 1605
    keys = {
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [joined if at == unused else one for at, one in enumerate(tokens.texts())],
        "tokenizer.ggml.token_type": [1 if at == unused else kind for at, kind in enumerate(kinds)],
        "tokenizer.ggml.merges": [*merges.texts(), "e \u00cc"],
    }
    path = rewrite(source, tmp_path / "m.gguf", keys=keys)
    spec = replace(SPECS["qwen3-headless.gguf"], path=path, metadata=model_files.read(path))
    assert spec.metadata is not None
    marked = "xe\u0331a 'S'LL 12 \r\n\n e\u0331"
    texts = [*TEXTS, *(deduplicate.clean(row["text"], nfc=True) for row in ROWS), marked]
    async with started(BACKEND, spec, tmp_path) as (_, engine, _):
        found = await engine.encode(texts)
    wanted = tokenizer.read(spec.metadata).encode(texts)
    assert (unused in wanted[-1]) == (pre == "qwen35")
    assert [ids.tolist() for ids in found] == [ids.tolist() for ids in wanted]


async def test_a_query_is_embedded_once_and_each_document_by_its_own(tmp_path: Path) -> None:
    async with started(BACKEND, SPECS["bert-embedder.gguf"], tmp_path) as (_, engine, reader):
        assert isinstance(engine, LlamaEngine)
        sizes: list[int] = []
        compute = engine.compute

        async def counted(path: str, body: dict[str, Any]) -> Any:
            sizes.append(len(body["input"]))
            return await compute(path, body)

        engine.compute = counted  # type: ignore[method-assign]
        mixed = [
            one
            for query in ("a panda", "bread", "a panda")
            for one in await reader.plain(query, ["a bear", "flour"])
        ]
        first = (await engine.score(Batch(tuple(mixed)))).values
        again = (await engine.score(Batch(tuple(mixed[::-1])))).values
        assert sizes == [8, 6]
        assert first[:2] == pytest.approx(first[4:]) and first[0] != pytest.approx(first[2])
        assert again[::-1] == pytest.approx(first, abs=1e-5)


async def test_labels_that_are_not_single_tokens_are_refused(tmp_path: Path) -> None:
    spec = SPECS["qwen3-headless.gguf"]
    spec = replace(spec, recipe=replace(spec.recipe, labels=("yes", "certainly not")))
    with pytest.raises(Unscorable, match=r"'certainly not' is . tokens"):
        async with started(BACKEND, spec, tmp_path):
            pass


async def test_malformed_responses_are_engine_errors(tmp_path: Path) -> None:
    async with started(BACKEND, SPECS["bert-embedder.gguf"], tmp_path) as (_, engine, reader):
        assert isinstance(engine, LlamaEngine)
        prepared = Batch(tuple(await reader.plain("a", ["b"])))
        for answer in ({}, {"data": []}, {"data": [{"index": 0, "embedding": "AAAA"}]}, [], None):

            async def other(path: str, body: dict[str, Any], answer: Any = answer) -> Any:
                return answer

            engine.post = other  # type: ignore[method-assign]
            with pytest.raises(EngineError, match="unexpected form"):
                await engine.score(prepared)
            with pytest.raises(EngineError, match="unexpected form"):
                await engine.encode(["a"])
