"""Embeddings: the vectors are the reference's on each engine, in the forms of OpenAI, TEI and Ollama."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from rerankd.config import Settings
from rerankd.errors import InvalidRequest, ModelUnavailable
from rerankd.scoring.cache import VectorCache
from rerankd.service import Reranker
from rerankd.serving.model_tokenizer import OwnTokenizer
from support import GOLDEN, asking, golden, golden_settings

TEXTS = ["a bear of China", "a kind of bread", "the river"]
PAIRS = {one["id"]: one for one in json.loads((GOLDEN / "pairs.json").read_text())}


@pytest.fixture(scope="module", params=["llama", "openvino", "torch"])
async def reranker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Reranker]:
    home = tmp_path_factory.mktemp("home")
    if request.param == "torch":
        pytest.importorskip("torch", reason="no PyTorch here: make test-torch")
    settings = golden_settings("bert-embedder", home, engine=request.param, precision="f32")
    async with Reranker(settings) as made:
        yield made


async def vectors(client: httpx.AsyncClient, texts: Any, **more: Any) -> Any:
    answer = await client.post("/v1/embeddings", json={"input": texts, **more})
    assert answer.status_code == 200, answer.text
    return np.array([row["embedding"] for row in answer.json()["data"]], np.float32)


async def test_cosines_of_the_vectors_are_the_references(
    client: httpx.AsyncClient, reranker: Reranker
) -> None:
    """The golden raw values are the cosines of query and document, each with its prefix."""
    # llama.cpp rounds what it multiplies with F16 matrices to F16.
    close = 1e-3 if reranker.registry.find(None).engine.backend.name == "llama" else 1e-4
    cases = [case for case in golden("bert-embedder")["cases"] if case["fits"]]
    cases = [case for case in cases if all(PAIRS[case["id"]][one].strip() for one in ("query", "document"))]
    cases = cases[:40]
    queries = await vectors(client, [PAIRS[case["id"]]["query"] for case in cases], input_type="query")
    documents = await vectors(
        client, [PAIRS[case["id"]]["document"] for case in cases], input_type="search_document"
    )
    assert np.linalg.norm(queries, axis=1) == pytest.approx(1, abs=1e-5)
    assert (queries * documents).sum(axis=1) == pytest.approx([case["raw"] for case in cases], abs=close)


async def test_a_prefix_is_only_added_on_request(client: httpx.AsyncClient, reranker: Reranker) -> None:
    recipe = reranker.model.recipe
    assert recipe.query_prefix and recipe.document_prefix
    plain = await vectors(client, [recipe.query_prefix + TEXTS[0], TEXTS[0]])
    query = await vectors(client, TEXTS[0], input_type="query")
    assert query[0] == pytest.approx(plain[0], abs=1e-4)
    assert np.abs(query[0] - plain[1]).max() > 1e-3


async def test_a_vector_does_not_depend_on_its_neighbours(
    client: httpx.AsyncClient, reranker: Reranker
) -> None:
    alone = [await vectors(client, text) for text in TEXTS]
    reranker.registry.find(None).cache.vectors.clear()
    together, ranked = await asyncio.gather(
        vectors(client, [*TEXTS, TEXTS[0], "long " * 90]),
        client.post("/v1/rerank", json={"query": "a bear", "documents": TEXTS}),
    )
    assert together[:3] == pytest.approx(np.concatenate(alone), abs=1e-4)
    assert together[3] == pytest.approx(together[0])
    assert len(ranked.json()["results"]) == 3


async def test_openai(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/embeddings", json={"input": TEXTS, "model": "m"})).json()
    assert (answer["object"], answer["model"]) == ("list", "m")
    assert [row["index"] for row in answer["data"]] == [0, 1, 2]
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 6
    found = await vectors(client, TEXTS)
    sent = {"input": TEXTS, "encoding_format": "base64"}
    encoded = (await client.post("/embeddings", json=sent)).json()["data"]
    assert np.frombuffer(base64.b64decode(encoded[1]["embedding"]), "<f4") == pytest.approx(found[1])
    short = await vectors(client, TEXTS, dimensions=4)
    assert short.shape == (3, 4)
    assert short == pytest.approx(
        found[:, :4] / np.linalg.norm(found[:, :4], axis=1, keepdims=True), abs=1e-6
    )


async def test_token_ids_of_the_models_own_tokenizer_are_the_text(
    client: httpx.AsyncClient, reranker: Reranker
) -> None:
    served = reranker.registry.find(None)
    reader = await served.reader()
    if not isinstance(reader.tokenizer, OwnTokenizer) or reader.reads_text:
        refused = await client.post("/v1/embeddings", json={"input": [1, 2]})
        assert refused.status_code == 400 and "reads no token ids" in refused.json()["message"]
        return
    frame = reader.tokenizer.frame
    whole = [
        [int(one) for one in np.concatenate((frame.start, ids, frame.alone))]
        for ids in await reader.tokenizer.encode(TEXTS)
    ]
    found = await vectors(client, TEXTS)
    served.cache.vectors.clear()
    assert await vectors(client, whole) == pytest.approx(found, abs=1e-5)
    mixed = (await client.post("/v1/embeddings", json={"input": [whole[1], "the river", whole[1]]})).json()
    rows = np.array([row["embedding"] for row in mixed["data"]])
    assert rows == pytest.approx(found[[1, 2, 1]], abs=1e-5)
    assert mixed["usage"]["prompt_tokens"] == 2 * len(whole[1]) + len(whole[2])
    assert await vectors(client, whole[0]) == pytest.approx(found[:1], abs=1e-5)
    tei = await client.post("/embed", json={"inputs": whole})
    assert np.array(tei.json()) == pytest.approx(found, abs=1e-5)
    long = [*whole[0][:-1], *whole[1][1:-1] * 300, whole[0][-1]]
    answer = await client.post("/v1/embeddings", json={"input": long})
    assert "texts 0" in answer.headers["x-rerankd-warnings"]
    for sent, says in (
        (whole[0][1:], "may be another tokenizer's"),
        (whole[0][:-1], "may be another tokenizer's"),
        ([whole[0][0], whole[0][-1]], "may be another tokenizer's"),
        ([whole[0][0]], "may be another tokenizer's"),
        ([whole[0][0], 10**6, whole[0][-1]], "has the token id 1000000; those of this model are 0 to"),
        ([whole[0][0], -1, whole[0][-1]], "has the token id -1"),
    ):
        refused = await client.post("/v1/embeddings", json={"input": [sent]})
        assert refused.status_code == 400 and says in refused.json()["message"], sent
    refused = await client.post("/v1/embeddings", json={"input": [long], "truncate": False})
    assert refused.status_code == 400 and "Text 0 has" in refused.json()["message"]


async def test_tei(client: httpx.AsyncClient) -> None:
    found = await vectors(client, TEXTS)
    assert np.array((await client.post("/embed", json={"inputs": TEXTS})).json()) == pytest.approx(found)
    sent = {"inputs": TEXTS[0], "normalize": False, "truncate": True}
    (raw,) = (await client.post("/embed", json=sent)).json()
    assert np.linalg.norm(raw) != pytest.approx(1, abs=1e-2)
    assert np.array(raw) / np.linalg.norm(raw) == pytest.approx(found[0], abs=1e-5)
    assert (await client.get("/info")).json()["model_type"] == {"embedding": {"pooling": "mean"}}


async def test_ollama(client: httpx.AsyncClient) -> None:
    found = await vectors(client, TEXTS)
    answer = (await client.post("/api/embed", json={"model": "m", "input": TEXTS, "keep_alive": -1})).json()
    assert np.array(answer["embeddings"]) == pytest.approx(found, abs=1e-6)
    assert answer["total_duration"] > 0 and answer["prompt_eval_count"] > 6
    old = (await client.post("/api/embeddings", json={"model": "m", "prompt": TEXTS[0]})).json()["embedding"]
    assert np.array(old) / np.linalg.norm(old) == pytest.approx(found[0], abs=1e-5)
    shown = (await client.post("/api/show", json={"model": "m"})).json()
    assert shown["capabilities"] == ["rerank", "embedding"]


async def test_ollamas_request_without_text_loads_and_unloads(
    client: httpx.AsyncClient, reranker: Reranker
) -> None:
    for sent in ({}, {"input": ""}, {"input": []}):
        answer = await client.post("/api/embed", json={"model": "m", **sent})
        assert answer.status_code == 200 and answer.json()["embeddings"] == []
        assert answer.json()["model"] == "m"
    old = await client.post("/api/embeddings", json={"model": "m", "prompt": ""})
    assert old.status_code == 200 and old.json() == {"embedding": []}
    assert (await client.get("/api/ps")).json()["models"]
    await client.post("/api/embed", json={"model": "m", "keep_alive": 0})
    assert not (await client.get("/api/ps")).json()["models"]
    await client.post("/api/embed", json={"model": "m", "keep_alive": "5m"})
    assert (await client.get("/api/ps")).json()["models"]
    for texts in (["", "a"], [""], ["", ""]):  # a vector each
        refused = await client.post("/api/embed", json={"model": "m", "input": texts})
        assert refused.status_code == 400 and "Text 0 is empty" in refused.json()["error"]


async def test_long_texts_are_truncated_or_refused(client: httpx.AsyncClient) -> None:
    sent = {"input": ["word " * 3000, "short"]}
    answer = await client.post("/v1/embeddings", json=sent)
    assert "Truncated to the model's max_length: texts 0." in answer.headers["x-rerankd-warnings"]
    for again in (sent, {"input": ["other " * 3000]}):  # the first one's vector is cached
        refused = await client.post("/v1/embeddings", json={**again, "truncate": False})
        assert refused.status_code == 400
        assert "Text 0 has" in refused.json()["message"] and "query" not in refused.json()["message"]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v1/embeddings", {}, "'input' is missing"),
        ("/v1/embeddings", {"input": []}, "The list of texts is empty"),
        ("/v1/embeddings", {"input": ["a", " "]}, "Text 1 is empty"),
        ("/v1/embeddings", {"input": [1, 2, 3]}, "check_embedding_ctx_length=False"),
        ("/v1/embeddings", {"input": ["a", [11, 12]]}, "Text 1 consists of token ids"),
        ("/v1/embeddings", {"input": [[]]}, "Text 0 consists of token ids"),
        ("/v1/embeddings", {"input": [2**40]}, "token id that no vocabulary has"),
        ("/v1/embeddings", {"input": [True, False]}, "Text 0 is "),
        ("/v1/embeddings", {"input": [2, 9, 3], "input_type": "query"}, "which token ids can't have"),
        ("/v1/embeddings", {"input": "a", "dimensions": 10**6}, "but the vectors of this model have"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, "but must be 'float' or 'base64'"),
        ("/v1/embeddings", {"input": "a", "input_type": "clustering"}, 'must be "query" or "document"'),
        ("/embed", {"inputs": [{"text": "a"}]}, "Text 0 is an object"),
        ("/api/embed", {"input": "a", "keep_alive": "long"}, "a duration such as"),
    ],
)
async def test_errors(client: httpx.AsyncClient, path: str, body: dict[str, Any], says: str) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == 400
    told = answer.json().get("message") or answer.json()["error"]
    assert says in told


async def test_a_known_text_is_not_read_again(reranker: Reranker) -> None:
    first = await reranker.embed(["a text that is new", "another one"])
    again = await reranker.embed(["another one", "a third text"])
    assert first.cached_tokens == 0 and 0 < again.cached_tokens < again.tokens
    assert again.vectors[0] == pytest.approx(first.vectors[1])
    with pytest.raises(InvalidRequest, match="must be a list of strings"):
        await reranker.embed("a text")


async def test_a_cross_encoder_computes_no_embeddings(tmp_path: Any) -> None:
    async with Reranker(golden_settings("xlmr-head", tmp_path)) as reranker:
        with pytest.raises(InvalidRequest, match="ranks documents and computes no embeddings"):
            await reranker.embed(["a"])


PARTS = ("model", "data", "embedding", "embeddings")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": TEXTS[0]}),
        ("/embed", {"inputs": TEXTS[0]}),
        ("/api/embed", {"input": TEXTS[0]}),
        ("/api/embed", {"input": ""}),  # loads the model
        ("/api/embeddings", {"prompt": TEXTS[0]}),
    ],
)
async def test_without_a_name_the_first_model_that_embeds_answers(
    path: str, body: dict[str, Any], tmp_path: Path
) -> None:
    """The first model and the first cascade only rank."""
    ranks, embeds = str(GOLDEN / "xlmr-head.gguf"), str(GOLDEN / "bert-embedder.gguf")
    prefixes = {"query_prefix": "", "document_prefix": ""}
    cascade = {"stages": ["b", {"model": "c", "keep": 1}]}
    models = {"a": cascade, "b": {"ref": ranks}, "c": {"ref": embeds, **prefixes}}
    settings = Settings.model_validate({"models": models, "home": tmp_path})
    async with Reranker(settings) as made, asking(made) as client:
        answers = [await client.post(path, json=body | more) for more in ({}, {"model": "c"})]
    assert [one.status_code for one in answers] == [200, 200], answers[0].text
    plain, named = (one.json() for one in answers)
    if path != "/embed":  # Ollama's answers have times
        plain, named = ({key: one.get(key) for key in PARTS} for one in (plain, named))
    assert plain == named


async def test_a_model_that_is_not_read_yet_may_be_the_first_that_embeds(tmp_path: Path) -> None:
    ranks, embeds = tmp_path / "ranks.gguf", tmp_path / "embeds.gguf"
    shutil.copy(GOLDEN / "xlmr-head.gguf", ranks)
    prefixes = {"query_prefix": "", "document_prefix": ""}
    models = {"a": {"ref": str(ranks)}, "b": {"ref": str(embeds), **prefixes}}
    models["c"] = {"ref": str(GOLDEN / "bert-embedder.gguf"), **prefixes}
    async with Reranker(Settings.model_validate({"models": models, "home": tmp_path})) as made:
        with pytest.raises(ModelUnavailable, match="b can't be served"):  # not the vectors of c
            await made.embed(["a"])
        shutil.copy(GOLDEN / "bert-embedder.gguf", embeds)
        await made.apply(made.settings.model_copy(update={"stop_timeout_s": 9.0}))
        assert (await made.embed(["a"])).model == "b"


def test_the_cache_of_vectors_is_bounded_in_bytes() -> None:
    cache = VectorCache(5000)
    for at in range(10):
        cache.put(b"%d" % at, np.zeros(256, np.float32), 3, is_truncated=False)
        assert cache.held_bytes <= 5000
    assert cache.get(b"0") is None and cache.get(b"9") is not None
    cache.put(b"9", np.zeros(256, np.float32), 3, is_truncated=False)
    assert cache.held_bytes <= 5000
    kept = VectorCache(0).put(b"a", np.ones(2, np.float32), 1, is_truncated=True)
    assert kept.is_truncated and kept.vector.tolist() == [1, 1]
