"""Parsing and rendering of each dialect, against golden pairs from the vendors' documentation and clients."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.api.dialects import lenient, options, table
from rerankd.api.dialects.dialect import joined
from rerankd.api.responses import plain_path
from rerankd.content import Document, Image, ImageLink, text_of
from rerankd.domain import RerankRequest
from rerankd.errors import EngineUnavailable, InvalidRequest, RerankdError, Unauthorized
from rerankd.rerank_result import RerankResult, ScoredDocument

_FOLDER = Path(__file__).parent / "dialects"
_DIALECTS = {dialect.name: dialect for dialect in table.DIALECTS}
_CASES = [
    pytest.param(name, case, id=f"{name}: {case['name']}")
    for name in _DIALECTS
    for case in json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("name", "case"), _CASES)
def test_a_request_is_parsed(name: str, case: dict[str, Any]) -> None:
    dialect = table.choose(case["path"], case["request"])
    assert dialect.name == name
    parsed = dialect.parse(case["request"])
    assert [_asks(one) for one in parsed] == (case["asks"] if name == "vllm" else [case["asks"]])


@pytest.mark.parametrize(("name", "case"), _CASES)
def test_a_result_is_rendered(name: str, case: dict[str, Any]) -> None:
    dialect = _DIALECTS[name]
    given = case["result"] if name == "vllm" else [case["result"]]
    results = [_result(*pair) for pair in zip(dialect.parse(case["request"]), given, strict=True)]
    answer = dialect.render(joined(results), "the-id")
    if isinstance(answer, dict) and "created" in answer:
        assert answer["created"] > 1_700_000_000
        answer["created"] = 0
    assert answer == case["answer"]


def _asks(request: RerankRequest) -> dict[str, Any]:
    """The fields of a request that differ from the defaults."""
    sent = {
        field.name: getattr(request, field.name)
        for field in dataclasses.fields(RerankRequest)
        if field.init and getattr(request, field.name) != field.default
    }
    return {name: _shown(value) for name, value in sent.items()}


def _shown(value: Any) -> Any:
    """A value as JSON: a document with images is the list of its parts."""
    match value:
        case tuple():
            return [_shown(one) for one in value]
        case Document():
            return {"parts": _shown(value.parts)}
        case Image():
            return {"bytes": base64.b64encode(value.data).decode()}
        case ImageLink():
            return {"link": value.url}
        case _:
            return value


def _result(request: RerankRequest, given: dict[str, Any]) -> RerankResult:
    return RerankResult(
        model=request.model or "the-model",
        results=tuple(
            ScoredDocument(
                index, score, text_of(request.documents[index]) if request.return_documents else None
            )
            for index, score in given["scores"]
        ),
        tokens=given["tokens"],
        normalization=given.get("transform", "sigmoid"),
        warnings=tuple(given.get("warnings", ())),
        unscored=tuple(given.get("unscored", ())),
    )


_UNION = {
    "error": {"message": "Send a key.", "type": "unauthorized", "code": 401},
    "detail": "Send a key.",
    "message": "Send a key.",
}


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("jina", _UNION),
        ("vllm", _UNION),
        ("tei", {"error": "Send a key.", "error_type": "Validation"}),
        ("voyage", {"detail": "Send a key."}),
        ("ollama", {"error": "Send a key."}),
        ("mixedbread", _UNION),
        ("dashscope", {"code": "unauthorized", "message": "Send a key."}),
        ("weaviate", {"error": "Send a key."}),
        (
            "nvidia",
            {"object": "error", "message": "Send a key.", "detail": "Send a key.", "type": "unauthorized"},
        ),
    ],
)
def test_an_error_has_the_dialects_shape(name: str, answer: dict[str, Any]) -> None:
    assert _DIALECTS[name].render_error(Unauthorized("Send a key.")) == answer


def test_a_tei_error_has_its_type() -> None:
    assert _DIALECTS["tei"].render_error(EngineUnavailable("Wait."))["error_type"] == "Unhealthy"


@pytest.mark.parametrize(
    ("path", "body", "dialect"),
    [
        ("/v1/rerank", {"documents": [], "top_k": 3, "top_n": 3}, "jina"),
        ("/v1/rerank", {"passages": []}, "nvidia"),
        ("/v1/ranking", {}, "nvidia"),
        ("/v1/ranking", {"documents": []}, "jina"),
        ("/v1/reranking", {}, "jina"),
        ("/v1/retrieval/nvidia/reranking", {}, "nvidia"),
        ("/api/v1/services/rerank/text-rerank/text-rerank", {}, "dashscope"),
        ("/v1/rerank", {"input": {"query": "q", "documents": []}}, "dashscope"),
        ("/v1/rerank", {"input": []}, "mixedbread"),
        ("/v1/rerank", {"input": [], "documents": ["a"]}, "jina"),
        ("/rerank", {"documents": [], "property": ""}, "weaviate"),
        ("/v2/rerank", {"truncation": None, "top_k": None, "documents": []}, "jina"),
        ("/api/v1/rerank", {}, "jina"),
        ("/voyage/v1/rerank", {"documents": []}, "voyage"),
        ("/llm/voyage/rerank", {"texts": []}, "voyage"),
        ("/cohere/v2/rerank", {"documents": [], "top_k": 1}, "jina"),
        ("/tei/rerank", {"documents": []}, "tei"),
        ("/", {"texts": []}, "tei"),
        ("/", {"documents": []}, "jina"),
        ("/api/rerank", {"texts": []}, "tei"),
        ("/llm/api/rerank", {}, "ollama"),
        ("/v2/rerank", {"truncation": True}, "voyage"),
        ("/v1/rerank", {"documents": ["a"], "truncation": True, "top_n": 3}, "jina"),
        ("/rerank", {"documents": ["a"], "texts": None, "passages": None}, "jina"),
        ("/rerank", {"documents": None, "texts": ["a"]}, "tei"),
        ("/v1/ranking", {"input": []}, "mixedbread"),
        ("/v1/ranking", {"input": {}}, "dashscope"),
        ("/ranking", {"texts": []}, "tei"),
        ("/score", {"documents": [], "top_k": 1}, "vllm"),
        ("/voyage/score", {}, "vllm"),
    ],
)
def test_the_body_and_the_path_select_the_dialect(path: str, body: dict[str, Any], dialect: str) -> None:
    assert table.choose(path, body).name == dialect


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/rerank", {"documents": ["a"]}, "'query' is missing. Send JSON like"),
        ("/rerank", {"query": "q"}, "'documents' is missing"),
        ("/rerank", {"query": None, "documents": ["a"]}, "'query' is missing"),
        ("/rerank", {"query": "q", "documents": None}, "'documents' is missing"),
        (
            "/rerank",
            {"query": "q", "documents": "a"},
            """'documents' is the string "a", but must be a list""",
        ),
        ("/rerank", {"query": "q", "documents": ["a", 5]}, "'documents.1' is the number 5, but must be a st"),
        ("/rerank", {"query": "q", "documents": ["a", None]}, "'documents.1' is null"),
        ("/rerank", {"query": "q", "documents": [["a"]]}, "'documents.0' is a list"),
        ("/rerank", {"query": "q", "documents": ["a", {}]}, "Document 1 is empty"),
        ("/rerank", {"query": "q", "documents": [{"content": []}]}, "without a text or an image"),
        (
            "/rerank",
            {"query": "q", "documents": [{"a": "b"}], "rank_fields": ["c"]},
            "none of the fields that rank_fields names",
        ),
        (
            "/rerank",
            {"query": "q", "documents": ["a"], "top_n": -1},
            "'top_n' is the number -1, but must not",
        ),
        ("/rerank", {"query": "q", "documents": ["a"], "top_n": 1.5}, "but must be a whole number"),
        ("/rerank", {"query": "q", "documents": ["a"], "top_n": "x"}, "but must be a whole number"),
        ("/rerank", {"query": "q", "documents": ["a"], "top_n": True}, "but must be a whole number"),
        ("/rerank", {"query": "q", "documents": ["a"], "top_n": float("inf")}, "but must be a whole number"),
        ("/rerank", {"query": "q", "documents": ["a"], "min_score": float("nan")}, "but must be a number"),
        ("/rerank", {"query": "q", "documents": ["a"], "min_score": "-Infinity"}, "but must be a number"),
        ("/rerank", {"query": "q", "documents": ["a"], "return_documents": "?"}, "but must be true or false"),
        ("/rerank", {"texts": ["a"]}, '"texts": ["Deep Learning'),
        ("/rerank", {"query": "q", "texts": ["a"], "truncation_direction": "Left"}, "keeps the start"),
        ("/rerank", {"query": "q", "documents": ["a"], "top_k": -3}, "'top_k' is the number -3"),
        ("/v1/ranking", {"query": {"text": "q"}}, "'passages' is missing"),
        (
            "/score",
            {"text_1": ["a", "b"], "text_2": ["a"]},
            "queries (2) does not match the number of documents (1)",
        ),
        ("/score", {"text_1": "a", "text_2": []}, "queries (1) does not match the number of documents (0)"),
        ("/score", {"text_1": [], "text_2": []}, "Send at least one document"),
    ],
)
def test_an_invalid_request_is_an_error(path: str, body: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        table.choose(path, body).parse(body)
    assert says in caught.value.message


def _asked(**sent: Any) -> RerankRequest:
    (request,) = table.DEFAULT.parse({"query": "q", "documents": ["a"], **sent})
    return request


@pytest.mark.parametrize("spelled", [None, 0, "0", "", 0.0])
def test_spellings_of_no_top_n(spelled: object) -> None:
    assert not _asked(top_n=spelled).top_n


@pytest.mark.parametrize("spelled", [True, "true", "True", 1, "1"])
def test_spellings_of_true(spelled: object) -> None:
    assert _asked(return_documents=spelled).return_documents


@pytest.mark.parametrize("spelled", [False, "false", "False", 0, "0", None, ""])
def test_spellings_of_false(spelled: object) -> None:
    assert not _asked(return_documents=spelled).return_documents


def test_a_document_nested_too_deeply_is_rejected() -> None:
    deep: Any = "a"
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        _asked(documents=[{"a": deep}])


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_OPTIONS = {spelling.name for option in options.OPTIONS for spelling in option.spellings}
_FIELDS = sorted(_OPTIONS.union(*(dialect.schema()["properties"] for dialect in table.DIALECTS)))


@given(
    path=st.sampled_from(["/rerank", *(path for dialect in table.DIALECTS for path in dialect.paths)]),
    body=st.dictionaries(st.sampled_from(_FIELDS) | st.text(max_size=5), _JSON, max_size=6),
)
def test_any_json_is_parsed_or_rejected_with_a_message(path: str, body: dict[str, Any]) -> None:
    try:
        parsed = table.choose(path, body).parse(body)
    except RerankdError as error:
        assert error.status_hint == 400 and error.message
    else:
        for one in parsed:
            assert isinstance(one.query, str) and all(isinstance(text, str) for text in one.documents)


@given(st.dictionaries(st.text(min_size=1), _JSON, min_size=1, max_size=4))
def test_an_object_becomes_text_or_is_rejected(document: dict[str, Any]) -> None:
    try:
        assert isinstance(lenient.text(document, "Document 0"), str)
    except InvalidRequest as error:
        assert error.message.startswith("Document 0 ")


@given(st.text(alphabet="/ab.", max_size=12))
def test_a_plain_path_has_no_doubled_or_trailing_slashes(path: str) -> None:
    plain = plain_path(path)
    assert plain.startswith("/") and "//" not in plain and (plain == "/" or not plain.endswith("/"))
    assert plain_path(plain) == plain


@pytest.mark.parametrize("name", ["text", "page_content", "content"])
def test_an_object_with_a_known_text_field_is_that_text(name: str) -> None:
    """LangChain's documents have page_content and metadata."""
    document = {name: "a", "metadata": {"source": "x.pdf"}, "id": None, "type": "Document"}
    assert lenient.text(document, "Document 0") == "a"
