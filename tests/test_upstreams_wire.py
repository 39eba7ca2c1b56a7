"""Requests to other servers and their responses, without a network: nothing is lost on the way."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd import errors
from rerankd.api import embedding_answers, embeddings
from rerankd.api.dialects import jina, table
from rerankd.api.dialects.option_rules import with_headers
from rerankd.api.responses import result_headers
from rerankd.config import UpstreamSettings
from rerankd.content import Document, Image, ImageLink
from rerankd.domain import Priority, RerankRequest, TruncateAt
from rerankd.embedding import EmbedRequest, EmbedResult, TokenIds
from rerankd.errors import InvalidRequest, RemoteError, RerankdError
from rerankd.remote_client import Shape
from rerankd.rerank_result import DocumentError, RerankResult, ScoredDocument, StageResult
from rerankd.upstreams import other_wire, rerankd_wire
from rerankd.upstreams.refusals import TryAnother, error_of

_TEXTS = st.text(min_size=1, max_size=20)
_PARTS = st.one_of(
    _TEXTS, st.binary(min_size=1, max_size=9).map(Image), st.just(ImageLink("https://example.com/a.png"))
)
_DOCUMENTS = st.lists(_PARTS, min_size=1, max_size=3).map(
    lambda parts: Document(tuple(sorted(parts, key=lambda part: isinstance(part, str))))
)
_CONTENTS = _TEXTS | _DOCUMENTS.filter(lambda one: any(not isinstance(part, str) for part in one.parts))
_COUNTS = st.none() | st.integers(1, 10**6)
_MILLISECONDS = st.integers(0, 10**5).map(lambda tenths: tenths / 10_000)


@st.composite
def requests(draw: st.DrawFn) -> RerankRequest:
    return RerankRequest(
        query=draw(_CONTENTS),
        documents=tuple(draw(st.lists(_CONTENTS, min_size=1, max_size=4))),
        model="m",
        top_n=draw(_COUNTS),
        instruction=draw(st.none() | _TEXTS),
        max_tokens_per_doc=draw(_COUNTS),
        max_chunks_per_doc=draw(st.integers(1, 9)),
        overlap_tokens=draw(st.integers(0, 9)),
        truncate=draw(st.booleans()),
        raw_scores=draw(st.booleans()),
        score_threshold=draw(st.none() | st.floats(0.001, 1)),
        max_tokens_per_query=draw(_COUNTS),
        max_tokens_per_pair=draw(_COUNTS),
        truncate_query=draw(st.none() | st.booleans()),
        truncate_at=draw(st.none() | st.sampled_from(get_args(TruncateAt))),
        budget_ms=draw(st.none() | st.integers(0, 10**6)),
        max_scored_documents=draw(_COUNTS),
        priority=draw(st.sampled_from(get_args(Priority))),
        keep_alive_s=draw(st.none() | st.just(math.inf) | st.floats(0, 10**6)),
    )


@given(requests())
def test_another_rerankd_reads_the_same_request(request: RerankRequest) -> None:
    body = json.loads(rerankd_wire.rerank_body("m", request))
    dialect = table.choose(rerankd_wire.RERANK_PATH, body)
    assert dialect is jina.DIALECT
    (found,) = dialect.parse(with_headers(body, {}))
    for field in dataclasses.fields(RerankRequest):
        sent, read = getattr(request, field.name), getattr(found, field.name)
        if field.name in ("query", "documents"):  # several texts of one document arrive as one, on lines
            sent, read = (
                [
                    (
                        one
                        if isinstance(one, str)
                        else (one.text, *(p for p in one.parts if not isinstance(p, str)))
                    )
                    for one in (value if isinstance(value, tuple) else (value,))
                ]
                for value in (sent, read)
            )
        assert read == sent, field.name


def test_every_option_of_a_request_is_sent_or_belongs_to_the_server_in_front() -> None:
    """A new option that this fails for is missing in rerankd_wire.py and in `requests` above."""
    at_front = {"query", "documents", "model", "return_documents", "warnings", "has_images"}
    sent = {*rerankd_wire._OPTIONS, "max_tokens_per_pair", "keep_alive_s"}
    assert sent | at_front == {field.name for field in dataclasses.fields(RerankRequest)}


_STAGES = st.builds(
    StageResult,
    model=_TEXTS,
    documents=st.integers(0, 9),
    scored=st.integers(0, 9),
    skipped=st.integers(0, 9),
    tokens=st.integers(0, 9),
    cached=st.integers(0, 9),
    queue_s=_MILLISECONDS,
    engine_s=_MILLISECONDS,
    total_s=_MILLISECONDS,
    error=st.just("") | _TEXTS,
)


@st.composite
def results(draw: st.DrawFn) -> tuple[RerankRequest, RerankResult]:
    count = draw(st.integers(1, 5))
    indexes = st.lists(st.integers(0, count - 1), unique=True).map(tuple)
    order = draw(st.permutations(range(count)))
    result = RerankResult(
        model="m",
        results=tuple(ScoredDocument(at, draw(st.floats(-50, 50))) for at in order),
        tokens=draw(st.integers(0, 10**6)),
        normalization=draw(st.sampled_from(("sigmoid", "affine", "identity", "isotonic", "raw"))),
        warnings=tuple(draw(st.lists(_TEXTS, max_size=3))),
        truncated=draw(indexes),
        blank=draw(indexes),
        errors=tuple(draw(st.lists(st.builds(DocumentError, st.integers(0, count - 1), _TEXTS), max_size=2))),
        unscored=draw(indexes),
        cached=draw(st.integers(0, 9)),
        cached_tokens=draw(st.integers(0, 10**6)),
        queue_s=draw(_MILLISECONDS),
        engine_s=draw(_MILLISECONDS),
        divisor=draw(st.integers(1, 99)),
        stages=tuple(draw(st.lists(_STAGES, max_size=2))),
    )
    return RerankRequest("q", ("d",) * count), result


@given(results())
def test_every_field_of_a_result_arrives(case: tuple[RerankRequest, RerankResult]) -> None:
    request, result = case
    answer = json.loads(json.dumps(jina.render(result, "id")))
    found = rerankd_wire.rerank_result("m", request, answer, result_headers("m", result))
    rounded = {field: getattr(found, field) for field in ("queue_s", "engine_s", "total_s")}
    assert found == dataclasses.replace(result, **rounded, stages=found.stages)
    assert found.queue_s == pytest.approx(result.queue_s, abs=1e-4)
    assert found.engine_s == pytest.approx(result.engine_s, abs=1e-4)
    for sent, read in zip(result.stages, found.stages, strict=True):
        assert dataclasses.asdict(read) == pytest.approx(dataclasses.asdict(sent), abs=1e-4)


GOOD = jina.render(RerankResult("m", (ScoredDocument(1, 0.75), ScoredDocument(0, 0.5)), 9, "sigmoid"), "id")


@pytest.mark.parametrize(
    "wrong",
    [
        {"results": GOOD["results"][:1]},
        {"results": GOOD["results"] * 2},
        {"results": [*GOOD["results"][:1], {"index": 2, "relevance_score": 0.1}]},
        {"results": [*GOOD["results"][:1], {"index": 0.0, "relevance_score": 0.1}]},
        {"results": [*GOOD["results"][:1], {"index": 0, "relevance_score": math.nan}]},
        {"results": [*GOOD["results"][:1], {"index": 0, "relevance_score": "high"}]},
        {"results": 5},
        {"meta": None},
        {"meta": {}},
        {"meta": {"normalization": "sigmoid", "cut": [2]}},
        {"meta": {"normalization": "sigmoid", "stages": [{}]}},
        {"usage": {"prompt_tokens": "many"}},
        {"usage": {"prompt_tokens": -1}},
        {"usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 10}}},
        {"meta": {"normalization": "sigmoid", "cached": -1}},
    ],
)
def test_a_response_to_something_else_is_rejected(wrong: dict[str, Any]) -> None:
    request = RerankRequest("q", ("a", "b"))
    assert len(rerankd_wire.rerank_result("m", request, GOOD, {}).results) == 2
    with pytest.raises(RemoteError):
        rerankd_wire.rerank_result("m", request, {**GOOD, **wrong}, {})


def test_fewer_rows_are_right_only_if_the_request_allows_them() -> None:
    row = {**GOOD, "results": GOOD["results"][:1]}
    for options in ({"top_n": 1}, {"score_threshold": 0.6}):
        request = RerankRequest("q", ("a", "b"), **options)
        assert len(rerankd_wire.rerank_result("m", request, row, {}).results) == 1
    with pytest.raises(RemoteError, match="must have 1"):
        rerankd_wire.rerank_result("m", RerankRequest("q", ("a", "b"), top_n=1), GOOD, {})


@given(
    st.builds(
        EmbedRequest,
        texts=st.lists(
            _TEXTS | st.lists(st.integers(0, 10**5), min_size=1).map(TokenIds.of), min_size=1, max_size=4
        ).map(tuple),
        model=st.just("m"),
        truncate=st.booleans(),
        dimensions=st.none() | st.integers(1, 99),
        normalize=st.booleans(),
        keep_alive_s=st.none() | st.just(math.inf) | st.floats(0, 10**6),
    )
)
def test_another_rerankd_reads_the_same_request_for_vectors(request: EmbedRequest) -> None:
    body = json.loads(rerankd_wire.embed_body("m", request))
    form = embeddings._FORMS[0]
    assert rerankd_wire.EMBED_PATH in form.paths
    assert embeddings._request(form, embeddings._parsed(form, body)) == request


def test_vectors_and_their_facts_arrive_exactly() -> None:
    request = EmbedRequest(("a", "b"), input_type="query")
    body = embeddings._parsed(embeddings._FORMS[0], json.loads(rerankd_wire.embed_body("m", request)))
    assert body.input_type == "query"
    vectors = np.array([[1 / 3, -1e-30], [np.pi, 2]], np.float32)
    result = EmbedResult("m", vectors, 7, cached_tokens=3, truncated=(1,), warnings=("watch out",))
    answer = json.loads(json.dumps(embedding_answers.openai(body, result)))
    found = rerankd_wire.embed_result("m", request, answer)
    assert found.vectors.dtype == np.float32 and (found.vectors == vectors).all()
    assert dataclasses.replace(found, vectors=vectors) == dataclasses.replace(result, vectors=vectors)
    for wrong in (
        {"data": answer["data"][:1]},
        {"data": [answer["data"][0]] * 2},
        {"data": [{**row, "embedding": "!"} for row in answer["data"]]},
        {"data": [{**row, "embedding": ""} for row in answer["data"]]},
        {"data": None},
    ):
        with pytest.raises(RemoteError):
            rerankd_wire.embed_result("m", request, {**answer, **wrong})


def _all(kind: type[RerankdError]) -> list[type[RerankdError]]:
    found = [one for one in kind.__subclasses__() if one.__module__ == errors.__name__]
    return [*found, *(more for one in found for more in _all(one))]


FINAL = {"invalid_request", "too_long", "query_refused", "texts_refused", "payload_too_large"}
FINAL |= {"engine_timeout", "upstream_loop"}


@pytest.mark.parametrize("kind", _all(RerankdError), ids=lambda kind: kind.code)
def test_each_error_of_another_rerankd_is_the_same_here_or_goes_to_another_server(
    kind: type[RerankdError],
) -> None:
    error = kind("Why.", {}) if kind is errors.TextsRefused else kind("Why.")
    data = json.dumps(jina.render_error(error)).encode()
    found = error_of("gpu1", kind.status_hint, {"retry-after": "3"}, data)
    if kind.code in FINAL:
        assert isinstance(found, RerankdError) and found.message == "Why." and found.code in FINAL
        return
    assert isinstance(found, TryAnother)
    assert found.error.status_hint in (429, 502, 503, 504, 422, 507), "a client can do nothing about it"
    assert "gpu1" in found.error.message
    if kind is errors.Overloaded:
        assert (found.error.code, found.error.retry_after_s, found.blame) == ("overloaded", 3, "none")


@pytest.mark.parametrize(
    ("status", "data", "expected"),
    [
        (422, b'{"error":"`inputs` must be short","error_type":"Validation"}', InvalidRequest),
        (413, b'{"error":"batch size 99 > 32","error_type":"Validation"}', InvalidRequest),
        (413, b"", errors.PayloadTooLarge),
        (400, b'{"message":"invalid model"}', InvalidRequest),
        (429, b'{"error":"Model is overloaded","error_type":"Overloaded"}', errors.Overloaded),
        (503, b"<html>Service Unavailable</html>", errors.EngineUnavailable),
        (502, b"<html>Bad Gateway</html>", errors.EngineError),
        (401, b'{"message":"no api key"}', errors.EngineUnavailable),
        (200, b"", errors.EngineError),
    ],
)
def test_errors_of_other_servers(status: int, data: bytes, expected: type[RerankdError]) -> None:
    found = error_of("tei", status, {}, data)
    error = found.error if isinstance(found, TryAnother) else found
    assert type(error) is expected and "tei" in error.message


TEI = Shape("/rerank", "texts")
COHERE = Shape("/v2/rerank", "documents")


def test_other_servers_get_each_text_once_and_the_rest_is_done_here() -> None:
    request = RerankRequest("q", ("b", "a", " ", "b", "c"), top_n=3, max_scored_documents=4)
    call = other_wire.rerank_call("tei", TEI, 1, None, request)
    assert [body["texts"] for body in call.bodies] == [["b"], ["a"]]
    result = other_wire.rerank_result(
        "m", TEI, request, call, [[{"index": 0, "score": 0.2}], [{"index": 0, "score": 0.9}]]
    )
    assert [(row.index, row.score) for row in result.results] == [(1, 0.9), (0, 0.2), (3, 0.2)]
    assert (result.blank, result.unscored, result.normalization) == ((2,), (4,), other_wire.NORMALIZATION)
    assert len(result.warnings) == 2


@pytest.mark.parametrize(
    ("shape", "options", "sent", "warned"),
    [
        (TEI, {"raw_scores": True, "truncate": False}, {"raw_scores": True, "truncate": False}, ()),
        (COHERE, {"max_tokens_per_doc": 9}, {"max_tokens_per_doc": 9}, ()),
        (TEI, {"max_tokens_per_doc": 9}, {"truncate": True}, ("max_tokens_per_doc",)),
        (COHERE, {"raw_scores": True, "truncate": False}, {}, ("raw_scores", "truncate")),
        (COHERE, {"instruction": "i", "priority": "high"}, {}, ("instruction", "priority")),
        (COHERE, {"keep_alive_s": 0.0, "truncate_query": False}, {}, ("keep_alive_s", "truncate_query")),
        (COHERE, {"budget_ms": 0, "return_documents": True, "score_threshold": 0.5, "top_n": 1}, {}, ()),
    ],
)
def test_options_that_another_server_does_not_have_cause_a_warning(
    shape: Shape, options: dict[str, Any], sent: dict[str, Any], warned: tuple[str, ...]
) -> None:
    call = other_wire.rerank_call("s", shape, None, "m", RerankRequest("q", ("a",), **options))
    body = {key: value for key, value in call.bodies[0].items() if key not in ("query", shape.key, "model")}
    assert body == sent
    assert sorted(warning.split("'")[1] for warning in call.warnings) == sorted(warned)


def test_blank_documents_alone_need_no_call() -> None:
    request = RerankRequest("q", (" ", ""))
    call = other_wire.rerank_call("s", COHERE, None, "m", request)
    assert call.bodies == ()
    result = other_wire.rerank_result("m", COHERE, request, call, [])
    assert [(row.index, row.score) for row in result.results] == [(0, 0.0), (1, 0.0)]


def test_images_are_refused_for_other_servers() -> None:
    request = RerankRequest("q", (Document((Image(b"x"),)),))
    with pytest.raises(InvalidRequest, match="only texts"):
        other_wire.rerank_call("s", COHERE, None, "m", request)


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("gpu1:11440", "http://gpu1:11440"),
        (" https://gpu1/base/ ", "https://gpu1/base"),
        ("http://[::1]:80/", "http://[::1]:80"),
    ],
)
def test_an_address_is_read(url: str, read: str) -> None:
    assert UpstreamSettings(url=url).url == read


@pytest.mark.parametrize(
    "url",
    [
        *("", "http://", "http:///", "//gpu1", "ftp://gpu1", "http://gpu 1", "http://gpu1:x"),
        *("http://gpu1:99999", "http://me:secret@gpu1", "http://gpu1?x=1", "http://gpu1#x", "http://[::1"),
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"upstream|url"):
        UpstreamSettings(url=url)
