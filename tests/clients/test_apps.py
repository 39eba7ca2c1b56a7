"""Apps that are on no package index: their exact requests, and how each reads the response.

What they send and need was read in their sources. A reader below does with
the answer what its app does, so that a KeyError here is what the app's user would meet.
"""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
import venvs
from live import DOCUMENTS, QUERY, Server

Rows = list[tuple[int, float]]
_ASKED = {"model": "my-model", "query": QUERY, "documents": DOCUMENTS}
_ALL = len(DOCUMENTS)
_PLAIN = {"query": QUERY, "documents": DOCUMENTS}
_RANKING = {"model": "m", "query": {"text": QUERY}, "passages": [{"text": text} for text in DOCUMENTS]}
_TEI = {"query": QUERY, "texts": DOCUMENTS}
_NO_KEY = {"Authorization": "Bearer "}


def results(answer: Any) -> Rows:
    """Read the rows as most apps do."""
    return [(row["index"], row["relevance_score"]) for row in answer["results"]]


def open_webui(answer: Any) -> Rows:
    """Sorts the rows by index and zips them with the documents, so each must have one."""
    rows = sorted(results(answer))
    assert [index for index, _ in rows] == list(range(_ALL))
    return rows


def ragflow(answer: Any) -> Rows:
    """Spreads the scores only where one is outside 0 to 1; counts the tokens when they are there."""
    assert all(0 <= score <= 1 for _, score in results(answer))
    assert answer["usage"]["total_tokens"] > 0
    return results(answer)


def fastgpt(answer: Any) -> Rows:
    """Keeps a document's first row, so the best must come first; bills by meta.tokens."""
    assert answer["meta"]["tokens"]["input_tokens"] > 0
    return best_first(results(answer))


def best_first(rows: Rows) -> Rows:
    assert rows == sorted(rows, key=lambda row: -row[1])
    return rows


def bare_list(answer: Any) -> Rows:
    """A list, a row for each text."""
    assert len(answer) == _ALL
    return best_first([(row["index"], row["score"]) for row in answer])


def with_text(answer: Any) -> Rows:
    """Reads document.text without checking that it exists."""
    for row in answer["results"]:
        assert row["document"]["text"] == DOCUMENTS[row["index"]]
    return results(answer)


def text_or_object(answer: Any) -> Rows:
    """A document is a string, or an object with a text."""
    for row in answer["results"]:
        document = row["document"]
        text = document if isinstance(document, str) else document["text"]
        assert text == DOCUMENTS[row["index"]]
    return results(answer)


def without_document(answer: Any) -> Rows:
    """Were the key `document` there, its text would be read, so null is as bad as none."""
    assert all("document" not in row for row in answer["results"])
    return results(answer)


def string_if_any(answer: Any) -> Rows:
    assert all(isinstance(row.get("document", ""), str) for row in answer["results"])
    return results(answer)


def tei_with_text(answer: Any) -> Rows:
    assert all(row["text"] == DOCUMENTS[row["index"]] for row in answer)
    return bare_list(answer)


def voyage(answer: Any) -> Rows:
    assert answer["usage"]["total_tokens"] > 0
    for row in answer["data"]:
        assert isinstance(row.get("document", ""), str)
    return [(row["index"], row["relevance_score"]) for row in answer["data"]]


def openrouter(answer: Any) -> Rows:
    """Rejects rows whose index or score has the wrong type or is out of range."""
    for index, score in results(answer):
        assert type(index) is int and 0 <= index < _ALL
        assert type(score) in (int, float)
    return results(answer)


def weaviate(answer: Any) -> Rows:
    """Takes the scores by position."""
    assert [row["document"] for row in answer["scores"]] == DOCUMENTS
    return [(index, row["score"]) for index, row in enumerate(answer["scores"])]


def elasticsearch(answer: Any) -> Rows:
    """Fails on a field that it does not know."""
    assert all(set(row) <= {"index", "score", "text"} for row in answer)
    return bare_list(answer)


def opensearch(answer: Any) -> Rows:
    """Casts each score to a float, which fails for a whole number, and needs one for every document."""
    assert all(type(score) is float for _, score in results(answer))
    return open_webui(answer)


def langchain4j(answer: Any) -> Rows:
    """Takes the tokens from Cohere's billed units."""
    assert answer["meta"]["billed_units"]["search_units"] > 0
    return open_webui(answer)


def nvidia(answer: Any) -> Rows:
    """Reads logits, that is, raw scores; the model's normalization is a sigmoid."""
    return [(row["index"], 1 / (1 + math.exp(-row["logit"]))) for row in answer["rankings"]]


def mixedbread(answer: Any) -> Rows:
    for row in answer["data"]:
        assert row["input"] == DOCUMENTS[row["index"]]
    return [(row["index"], row["score"]) for row in answer["data"]]


_ROWS = {row["name"]: row for row in venvs.TABLE["clients"]}


@dataclass(frozen=True)
class App:
    """One request of one app: a name of the table, or one and what is special about the request."""

    name: str
    body: dict[str, Any]
    read: Callable[[Any], Rows] = results
    headers: dict[str, str] = field(default_factory=dict)
    top: int = _ALL  # the rows that come back
    path: str = ""  # where it is another than the table's

    @property
    def row(self) -> str:
        return self.name.split(": ")[0]

    def posts(self) -> str:
        return self.path or _ROWS[self.row]["posts"]


APPS = [
    App(
        "Open WebUI",
        {**_ASKED, "top_n": _ALL},
        open_webui,
        {**_NO_KEY, "X-OpenWebUI-User-Name": "Zo%C3%AB", "X-OpenWebUI-User-Role": "admin"},
    ),
    App("RAGFlow, OpenAI-API-Compatible", {**_ASKED, "top_n": _ALL}, ragflow, _NO_KEY),
    App("RAGFlow, LocalAI", {**_ASKED, "top_n": _ALL}, ragflow),
    App(
        "RAGFlow, Xinference",
        {**_ASKED, "return_documents": "true", "return_len": "true"},
        ragflow,
    ),
    App("RAGFlow, GPUStack", {**_ASKED, "top_n": _ALL}, ragflow),
    App(
        "RAGFlow, VLLM",
        {**_ASKED, "top_n": _ALL, "return_documents": False},
        ragflow,
    ),
    App(
        "RAGFlow, HuggingFace",
        {**_TEI, "raw_scores": False, "truncate": True},
        bare_list,
    ),
    App("RAGFlow, Jina", {**_ASKED, "top_n": _ALL}, ragflow),
    App("FastGPT", _ASKED, fastgpt),
    App("MaxKB, vLLM", {**_ASKED, "top_n": 2}, results, top=2),
    App(
        "MaxKB, Xinference",
        {**_ASKED, "top_n": 2, "return_documents": True},
        text_or_object,
        top=2,
    ),
    App("Cherry Studio", {**_ASKED, "top_n": 2}, results, top=2),
    App("Cherry Studio: tei", {**_TEI, "return_text": True}, tei_with_text),
    App(
        "LibreChat",
        {
            "model": "jina-reranker-v2-base-multilingual",
            "query": QUERY,
            "documents": DOCUMENTS,
            "top_n": 3,
            "return_documents": True,
        },
        text_or_object,
        {"Authorization": "Bearer x"},
        top=3,
    ),
    App("LightRAG", {**_ASKED, "top_n": 3, "return_documents": False}, results, top=3),
    App("Continue, cohere or vllm", _ASKED, open_webui, {"x-api-key": "k"}),
    App("Continue, huggingface-tei", _TEI, bare_list, {"x-api-key": "k"}),
    App("n8n, community node", {**_ASKED, "top_n": 2}, results, top=2),
    App(
        "openai_api_compatible",
        {**_ASKED, "top_n": _ALL},
        openrouter,
        {"Authorization": ""},
    ),
    App("openai_api_compatible: with top_n 0", {**_ASKED, "top_n": 0}, openrouter, {"Authorization": ""}),
    App(
        "openai_api_compatible: vision",
        {**_ASKED, "documents": [{"content": [{"type": "text", "text": text}]} for text in DOCUMENTS]},
        openrouter,
    ),
    App("cohere", {**_ASKED, "return_documents": True}, with_text),
    App(
        "cohere: a later SDK",
        {**_ASKED, "return_documents": True, "top_n": 2},
        with_text,
        top=2,
        path="/v1/rerank",
    ),
    App("jina", {**_ASKED, "top_n": _ALL, "return_documents": False}),
    App(
        "jina: an m0 model",
        {**_ASKED, "documents": [{"text": text} for text in DOCUMENTS], "return_documents": False},
    ),
    App("siliconflow", {**_ASKED, "top_n": 3, "return_documents": True}, with_text, top=3),
    App(
        "localai",
        {**_ASKED, "top_n": _ALL},
        without_document,
        {"Authorization": "Bearer None"},
    ),
    App("gpustack", {**_ASKED, "top_n": 3}, without_document, top=3),
    App(
        "xinference",
        {
            **_ASKED,
            "top_n": None,
            "max_chunks_per_doc": None,
            "return_documents": True,
            "return_len": None,
            "kwargs": "{}",
        },
        text_or_object,
    ),
    App("huggingface_tei", {**_TEI, "return_text": True}, tei_with_text),
    App("voyage", {**_ASKED, "top_k": 2, "return_documents": True}, voyage, top=2),
    App("ollama", {**_ASKED, "top_n": _ALL, "return_documents": True}, string_if_any),
    App("openrouter", {**_ASKED, "top_n": _ALL}, openrouter),
    App(
        "openai_api_compatible: early 2026, with a threshold that every document reaches",
        {**_ASKED, "top_n": _ALL, "return_documents": True, "score_threshold": 1e-6},
        with_text,
        {"Authorization": ""},
    ),
    App("Weaviate, reranker-transformers", {**_PLAIN, "property": ""}, weaviate),
    App("Weaviate, reranker-nvidia", _RANKING, nvidia),
    App("KServe, OpenAI routes", _ASKED),
    App("OpenVINO Model Server's clients", {**_ASKED, "top_n": 2}, top=2),
    App(
        "mixedbread, plugin",
        {"model": "my-model", "query": QUERY, "input": DOCUMENTS, "top_k": 2, "return_input": True},
        mixedbread,
        top=2,
    ),
    App(
        "tongyi",
        {
            "model": "gte-rerank",
            "input": {"query": QUERY, "documents": DOCUMENTS},
            "parameters": {"top_n": 2, "return_documents": True},
        },
        lambda answer: with_text(answer["output"]),
        top=2,
    ),
    App("LangChain4j, VoyageAiScoringModel", _ASKED, voyage),
    App("Elasticsearch, service hugging_face", {**_TEI, "return_text": False, "top_n": _ALL}, elasticsearch),
    App("Elasticsearch, service hugging_face: with texts", {**_TEI, "return_text": True}, elasticsearch),
    App("OpenSearch, connector", {**_ASKED, "top_n": _ALL}, opensearch),
    App("Weaviate, reranker-cohere", {**_ASKED, "return_documents": False}, open_webui),
    App("Milvus, vllm", _PLAIN, open_webui),
    App("Milvus, tei", {**_TEI, "truncate": True, "truncation_direction": "Right"}, bare_list),
    App("LangChain4j, CohereScoringModel", _ASKED, langchain4j),
    App("LangChain4j, JinaScoringModel", {**_ASKED, "return_documents": False}, ragflow),
    App("Bifrost, vllm", {**_ASKED, "top_n": 3, "max_tokens_per_doc": 512, "priority": 0}, openrouter, top=3),
    App(
        "LiteLLM, hosted_vllm since 2026-09",
        {
            **_ASKED,
            "top_n": 3,
            "return_documents": True,
            "truncate_prompt_tokens": -1,
            "truncation_side": "right",
            "max_tokens_per_query": 256,
        },
        with_text,
        top=3,
    ),
    App("Hindsight, tei", {**_TEI, "return_text": False}, bare_list),
    App("Hindsight, cohere", {**_ASKED, "return_documents": False}, open_webui),
    App("OpenViking", _ASKED),
    App("MemMachine", {**_ASKED, "top_n": _ALL}),
    App("n8n, universal reranker", {**_ASKED, "top_n": 2, "return_documents": False}, top=2),
]


def _send(
    server: Server, path: str, body: object = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """POST `body`, or GET without one. Some of these headers no HTTP library of today would send."""
    host = urlsplit(server.url)
    connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=30)
    try:
        data = None if body is None else json.dumps(body)
        sent = {"Content-Type": "application/json", **(headers or {})}
        connection.request("GET" if body is None else "POST", path, data, sent)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.parametrize("app", APPS, ids=[app.name for app in APPS])
def test_an_app_gets_what_it_reads(app: App, server: Server) -> None:
    status, answer = _send(server, app.posts(), app.body, app.headers)
    assert status == 200, answer
    expected = server.rows()[: app.top]
    assert sorted(app.read(answer)) == [(index, pytest.approx(score)) for index, score in sorted(expected)]


@pytest.mark.parametrize("app", APPS, ids=[app.name for app in APPS])
def test_an_app_without_the_key_gets_the_error_message(app: App, guarded: Server) -> None:
    status, answer = _send(guarded, app.posts(), app.body, app.headers)
    assert status == 401
    message = answer.get("detail") or answer.get("message") or answer["error"]
    assert message.startswith("The API key is missing or wrong.")


def test_every_app_of_the_table_is_replayed() -> None:
    without_program = {name for name, row in _ROWS.items() if "program" not in row}
    assert {app.row for app in APPS} | {_NVIDIA} == without_program


_NVIDIA = "langchain-nvidia-ai-endpoints, NVIDIARerank"


def test_nvidias_clients_read_logits(server: Server) -> None:
    body = {"model": "m", "query": {"text": QUERY}, "passages": [{"text": text} for text in DOCUMENTS]}
    status, answer = _send(server, _ROWS[_NVIDIA]["posts"], body)
    assert status == 200
    assert [row["index"] for row in answer["rankings"]] == [index for index, _ in server.rows()]
    assert all(type(row["logit"]) is float for row in answer["rankings"])


def test_dify_validates_with_three_documents_and_keeps_raw_scores(server: Server) -> None:
    body = {**_ASKED, "documents": DOCUMENTS[:3], "top_n": 3}
    _, answer = _send(server, "/v1/rerank", body, {"Authorization": ""})
    # The plugin compares these with its threshold as they are.
    assert all(0 <= score <= 1 for _, score in results(answer))


def test_a_threshold_that_nothing_reaches_is_an_empty_list(server: Server) -> None:
    """The version of Dify's openai_api_compatible that sends a threshold sorts and filters the rows again,
    and takes an empty list. The older class of Dify's SDK fails on one, but sends no threshold: it gets all
    rows and applies its own (see test_clients_dify.py)."""
    sent = {**_ASKED, "top_n": _ALL, "return_documents": True, "score_threshold": 1.0}
    status, answer = _send(server, "/v1/rerank", sent, {"Authorization": ""})
    assert (status, answer["results"]) == (200, [])
    assert answer["meta"]["warnings"] == ["No document reaches the score_threshold of the request."]


def test_weaviate_waits_until_the_service_is_ready(server: Server) -> None:
    with server.client() as http:
        assert http.get("/.well-known/ready").status_code == 204
        assert http.get("/meta").json()["model_name"]


def test_xinference_clients_look_up_any_model_first(server: Server) -> None:
    status, answer = _send(server, "/v1/cluster/auth")
    assert (status, "detail" in answer) == (404, True)
    status, answer = _send(server, "/v1/models/BAAI/bge-reranker-v2-m3")
    assert (status, answer["model_type"], answer["id"]) == (200, "rerank", "BAAI/bge-reranker-v2-m3")


def test_tei_clients_look_up_the_kind_and_the_limits_first(server: Server) -> None:
    status, answer = _send(server, "/info")
    assert status == 200
    assert "reranker" in answer["model_type"]
    assert answer["max_input_length"] > 0 and answer["max_client_batch_size"] > 0


def test_maxkb_falls_back_when_a_path_is_a_plain_404(server: Server) -> None:
    status, answer = _send(server, "/v9/rerank", _ASKED)
    assert status == 404 and "/v1/rerank" in answer["message"]


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", ""])
def test_the_content_type_does_not_matter(content_type: str, server: Server) -> None:
    status, answer = _send(server, "/v1/rerank", _ASKED, {"Content-Type": content_type})
    assert status == 200 and results(answer) == server.rows()
