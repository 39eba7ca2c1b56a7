"""Clients that ask for embeddings, against a server that has an embedding model beside a reranker."""

from __future__ import annotations

from pathlib import Path

import pytest
from live import DOCUMENTS, Run, Server, StartServer

_MODEL = "bert-embedder"
_FILE = Path(__file__).parent.parent / "golden" / f"{_MODEL}.gguf"


@pytest.fixture(scope="module", params=["no key", "key"])
def either(request: pytest.FixtureRequest, start_server: StartServer) -> Server:
    return start_server(str(_FILE), key="secret-key" if request.param == "key" else "")


@pytest.mark.parametrize("program", ["embeddings.py", pytest.param("embeddings.mjs", marks=pytest.mark.wide)])
def test_a_client_gets_the_servers_vectors(program: str, either: Server, run: Run) -> None:
    with either.client() as http:
        sent = {"model": _MODEL, "input": DOCUMENTS}
        answer = http.post("/v1/embeddings", json=sent).raise_for_status().json()
        short = http.post("/v1/embeddings", json={**sent, "dimensions": 4}).raise_for_status().json()
    found, first = ([row["embedding"] for row in one["data"]] for one in (answer, short))
    answer = run(program, either, model=_MODEL, ids=_ids())
    for call, rows in answer.items():
        if call == "openai, short":
            assert rows == [pytest.approx(row, abs=1e-6) for row in first]
        elif call == "ollama, one":  # /api/embeddings does not scale to length 1
            length = sum(one * one for one in rows[0]) ** 0.5
            assert [one / length for one in rows[0]] == pytest.approx(found[0], abs=1e-5)
        elif isinstance(rows, list) and isinstance(rows[0], list):
            assert rows == [pytest.approx(row, abs=1e-5) for row in found[: len(rows)]], call
    if "models" in answer:
        assert answer["models"] == ["xlmr-head", _MODEL]
        assert "Text 0 is empty" in answer["refused"]
        assert "another tokenizer's" in answer["other ids"]


def _ids() -> list[list[int]]:
    """The first document, as the model's own tokenizer returns it."""
    from rerankd.formats import model_files, tokenizer

    vocabulary = tokenizer.read(model_files.read(_FILE))
    (own,) = vocabulary.encode(DOCUMENTS[:1])
    return [[int(one) for part in (vocabulary.frame.start, own, vocabulary.frame.alone) for one in part]]
