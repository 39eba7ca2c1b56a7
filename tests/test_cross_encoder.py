"""CrossEncoder: its results are sentence-transformers', and what it can't do is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import checkpoints
from rerankd import AsyncCrossEncoder, CrossEncoder
from rerankd.errors import InvalidRequest, MissingExtra, Misuse, ModelFileError
from support import GOLDEN, golden

_TEXTS = json.loads((GOLDEN / "pairs.json").read_text())
PAIRS = {one["id"]: (one["query"], one["document"]) for one in _TEXTS}
# An F32 checkpoint against the reference in float32, after the sigmoid.
CLOSE = 2e-5
QUERY, DOCUMENTS = "which bear lives in China?", ["bread", "the giant panda", "the polar bear", "bread"]


def raws(cases: list[dict[str, Any]], count: int = 40) -> tuple[list[tuple[str, str]], list[float]]:
    """Pairs that fit, and their logits by the reference."""
    fitting = [case for case in cases if case.get("fits", True) and "raw" in case]
    found = [case for case in fitting if all(text.strip() for text in PAIRS[case["id"]])][:count]
    return [PAIRS[case["id"]] for case in found], [case["raw"] for case in found]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrossEncoder]:
    """A checkpoint without modules.json; the library then applies a sigmoid."""
    with CrossEncoder(str(GOLDEN / "xlmr-head"), home=tmp_path_factory.mktemp("home")) as made:
        yield made


def test_predict_returns_the_sigmoid_of_the_reference(model: CrossEncoder) -> None:
    pairs, raw = raws(golden("xlmr-head")["cases"])
    scores = model.predict(pairs)
    assert scores.dtype == np.float32 and scores.shape == (len(pairs),)
    assert scores == pytest.approx([1 / (1 + math.exp(-one)) for one in raw], abs=CLOSE)
    assert model.predict(pairs, activation_fn="identity") == pytest.approx(raw, abs=1e-4)
    assert model.predict(pairs[0]) == scores[0]
    assert model.predict(np.array(pairs[:3])) == pytest.approx(scores[:3], abs=1e-6)
    plain = model.predict(pairs[:3], convert_to_numpy=False)
    assert isinstance(plain, list) and plain == pytest.approx(scores[:3].tolist(), abs=1e-6)
    assert model.predict([]).shape == (0,)


def test_more_pairs_than_one_request_keep_their_order(model: CrossEncoder) -> None:
    pairs = [(f"query {at % 7}", f"document {at}") for at in range(300)]
    scores = model.predict(pairs, batch_size=4, show_progress_bar=True)
    for at in (0, 63, 64, 150, 299):
        assert scores[at] == pytest.approx(model.predict(pairs[at]), abs=1e-6)


def test_rank(model: CrossEncoder) -> None:
    found = model.rank(QUERY, DOCUMENTS, return_documents=True)
    scores = model.predict([(QUERY, document) for document in DOCUMENTS])
    assert [row["score"] for row in found] == sorted(scores.tolist(), reverse=True)
    for row in found:
        assert row["text"] == DOCUMENTS[row["corpus_id"]]
        assert row["score"] == scores[row["corpus_id"]]
    equal = [row["corpus_id"] for row in found if row["text"] == "bread"]
    assert equal == [0, 3]
    assert model.rank(QUERY, DOCUMENTS, top_k=2) == [
        {key: row[key] for key in ("corpus_id", "score")} for row in found[:2]
    ]
    assert model.rank(QUERY, []) == []


def test_the_activation_of_the_models_files_is_the_default(tmp_path: Path) -> None:
    """Ettin's declare Identity, so the library returns logits."""
    folder = checkpoints.with_modules("ettin", tmp_path / "ettin")
    pairs, raw = raws(json.loads((folder / "golden.json").read_text())["cases"], 10)
    with CrossEncoder(str(folder), home=tmp_path) as model:
        assert model.predict(pairs) == pytest.approx(raw, abs=1e-3)
        assert model.predict(pairs, activation_fn="sigmoid") == pytest.approx(
            [1 / (1 + math.exp(-one)) for one in raw], abs=1e-3
        )
    with CrossEncoder(str(folder), home=tmp_path, activation_fn="sigmoid") as model:
        assert max(model.predict(pairs)) <= 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"activation_fn": math.exp}, "only supports torch.nn.Identity"),
        ({"activation_fn": "softmax"}, "only supports torch.nn.Identity"),
        ({"batch_size": 0}, "batch_size must be a positive integer"),
        ({"prompt_name": "web"}, "prompt_name is not supported"),
        ({"prompt": "Search: "}, "prompt is not supported by xlmr-head"),
        ({"device": "cuda"}, "device and pool are not supported in a call"),
        ({"pool": {}}, "device and pool are not supported in a call"),
    ],
)
def test_what_it_cant_do_is_refused(model: CrossEncoder, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        model.predict([(QUERY, "a")], **arguments)
    with pytest.raises(InvalidRequest, match=says):
        model.rank(QUERY, ["a"], **arguments)


@pytest.mark.parametrize(
    "inputs",
    [
        "a text",
        [("only one",)],
        [("q", {"image": "a.png"})],
        [("a", "b", "c")],
        {"a": "b"},
        None,
        5,
        [("a", "b"), 5],
        [("a", "b"), "cd"],
    ],
)
def test_other_inputs_are_refused(model: CrossEncoder, inputs: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"strings|pairs"):
        model.predict(inputs)


@pytest.mark.parametrize("documents", ["a text", {"a": "b"}, None, [5]])
def test_other_documents_are_refused(model: CrossEncoder, documents: Any) -> None:
    with pytest.raises(InvalidRequest, match="strings"):
        model.rank(QUERY, documents)


def test_pairs_and_documents_of_any_kind(model: CrossEncoder) -> None:
    pairs = [(QUERY, document) for document in DOCUMENTS]
    scores = model.predict(pairs).tolist()
    assert model.predict(iter(pairs)).tolist() == pytest.approx(scores, abs=1e-6)
    assert model.predict([np.array(pair) for pair in pairs]).tolist() == pytest.approx(scores, abs=1e-6)
    ranked = model.rank(QUERY, DOCUMENTS, return_documents=True)
    for documents in (iter(DOCUMENTS), np.array(DOCUMENTS)):
        found = model.rank(QUERY, documents, return_documents=True)  # type: ignore[arg-type]
        assert [row["text"] for row in found] == [row["text"] for row in ranked]
        assert {type(row["text"]) for row in found} == {str}


def test_tensors_need_pytorch(model: CrossEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingExtra, match="convert_to_tensor needs PyTorch"):
        model.predict([(QUERY, "a")], convert_to_tensor=True)


def test_two_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="has 2 labels"):
        CrossEncoder(str(GOLDEN / "two-label-reranker"), home=tmp_path)


def test_a_missing_model_is_not_downloaded_if_only_local_files_are_wanted(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        CrossEncoder(str(tmp_path / "none"), home=tmp_path, local_files_only=True)
    with pytest.raises(Exception, match="rerankd pull hf:someone/some-reranker"):
        CrossEncoder("someone/some-reranker", home=tmp_path, local_files_only=True)


def test_it_stops_with_its_last_reference(tmp_path: Path) -> None:
    model = CrossEncoder(str(GOLDEN / "xlmr-head"), home=tmp_path)
    inner, close = model._reranker, model.close
    assert close.alive and close.atexit
    del model
    with pytest.raises(Misuse, match="closed"):
        inner.rerank(QUERY, ["a"])


async def test_async(tmp_path: Path) -> None:
    pairs, raw = raws(golden("xlmr-head")["cases"], 5)
    outside = AsyncCrossEncoder(str(GOLDEN / "xlmr-head"), home=tmp_path, max_length=128)
    with pytest.raises(Misuse, match="has not been started"):
        await outside.predict(pairs)
    async with outside as model:
        scores = await model.predict(pairs)
        assert scores == pytest.approx([1 / (1 + math.exp(-one)) for one in raw], abs=CLOSE)
        assert len(await model.rank(QUERY, DOCUMENTS, top_k=3)) == 3


@pytest.mark.parametrize("name", ["xlmr-head", "bert-pairs", "ettin"])
def test_values_are_those_of_sentence_transformers_on_torch(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="no PyTorch here: make test-torch")
    theirs = pytest.importorskip("sentence_transformers", reason="make test-torch")
    folder = checkpoints.with_modules(name, tmp_path / name) if name == "ettin" else GOLDEN / name
    pairs = [pair for pair in PAIRS.values() if all(text.strip() for text in pair)][:60]
    reference = theirs.CrossEncoder(str(folder), device="cpu", model_kwargs={"torch_dtype": torch.float32})
    with CrossEncoder(str(folder), home=tmp_path, precision="f32") as model:
        assert model.predict(pairs) == pytest.approx(reference.predict(pairs), abs=1e-4)
        as_tensor = model.predict(pairs, convert_to_tensor=True, activation_fn=torch.nn.Sigmoid())
        assert torch.allclose(
            as_tensor,
            reference.predict(pairs, convert_to_tensor=True, activation_fn=torch.nn.Sigmoid()),
            atol=1e-4,
        )
        query = pairs[0][0]
        documents = [document for _, document in pairs[:20]]
        ours = model.rank(query, documents, top_k=5, return_documents=True)
        wanted = reference.rank(query, documents, top_k=5, return_documents=True)
        assert [row["corpus_id"] for row in ours] == [row["corpus_id"] for row in wanted]
        assert [set(row) for row in ours] == [set(row) for row in wanted]


def test_a_gguf_file_has_rerankds_own_scores(tmp_path: Path) -> None:
    """The library can't read one, so there is no activation of its own."""
    with CrossEncoder(str(GOLDEN / "bert-embedder.gguf"), home=tmp_path) as model:
        assert set(model.predict([(QUERY, document) for document in DOCUMENTS]) <= 1) == {True}
        cosines = model.predict([(QUERY, document) for document in DOCUMENTS], activation_fn="identity")
        assert min(cosines) >= -1 and max(cosines) <= 1
