"""Every option in every dialect is applied, rejected with an error, or ignored with a warning.

The cases come from the table of options, so new options and dialects are tested without a change here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from rerankd.api.dialects import options, table
from rerankd.api.responses import warnings_header
from rerankd.domain import RerankRequest
from rerankd.errors import InvalidRequest
from rerankd.service import Reranker
from support import golden_settings

QUERY = "which bear lives in china?"
LONG = "a river runs through the mountain and the bread is fresh. " * 60
TEXTS = ["bread", "the panda is a bear of china", LONG]

# The name of each dialect, a path, and a minimal body.
DIALECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "jina": ("/v1/rerank", {"query": QUERY, "documents": TEXTS}),
    "tei": ("/rerank", {"query": QUERY, "texts": TEXTS}),
    "voyage": ("/voyage/v1/rerank", {"query": QUERY, "documents": TEXTS}),
    "mixedbread": ("/v1/reranking", {"query": QUERY, "input": TEXTS}),
    "weaviate": ("/rerank", {"query": QUERY, "documents": TEXTS, "property": ""}),
    "ollama": ("/api/rerank", {"query": QUERY, "documents": TEXTS}),
    "nvidia": ("/v1/ranking", {"query": {"text": QUERY}, "passages": [{"text": text} for text in TEXTS]}),
    "dashscope": (
        "/api/v1/services/rerank/text-rerank/text-rerank",
        {"input": {"query": QUERY, "documents": TEXTS}},
    ),
    "vllm": ("/v1/score", {"text_1": QUERY, "text_2": TEXTS}),
}
# The name of each option, the value that is sent, and the expected value in the request.
SENT: dict[str, tuple[Any, Any]] = {
    **dict.fromkeys(("top_n", "top_k", "k", "limit"), (2, 2)),
    **dict.fromkeys(("return_documents", "return_text", "return_input", "raw_scores", "raw"), (True, True)),
    **dict.fromkeys(("normalize", "use_activation", "activation"), (False, True)),
    **dict.fromkeys(("score_threshold", "min_score"), (0.5, 0.5)),
    **dict.fromkeys(("instruction", "instruct", "task", "chat_template_kwargs.instruction"), ("i", "i")),
    **dict.fromkeys(("truncate", "truncation"), (False, False)),
    **dict.fromkeys(("truncation_side", "truncation_direction"), ("Left", InvalidRequest)),
    **dict.fromkeys(
        ("max_tokens_per_doc", "max_tokens_per_query", "max_chunks_per_doc", "overlap_tokens", "overlap"),
        (9, 9),
    ),
    "truncate_prompt_tokens": (99, 99),
    "rank_fields": (["title"], ["title"]),
    "priority": (3, "low"),
    "budget_ms": (500, 500),
    "max_scored_documents": (2, 2),
    "truncate_at": ("sentence", "sentence"),
    "truncate_query": (True, True),
    "keep_alive": ("5m", 300.0),
}
# What a dialect does not support.
REFUSED = {(name, "score_threshold") for name in ("tei", "weaviate", "vllm")}
WARNED = {
    *((name, "top_n") for name in ("tei", "weaviate", "vllm")),
    *((name, "return_documents") for name in ("nvidia", "vllm")),
}

PAIRS = [
    pytest.param(dialect, option, spelling.name, id=f"{dialect}-{spelling.name}")
    for dialect in DIALECTS
    for option in options.OPTIONS
    for spelling in option.spellings
]


def body(dialect: str, name: str, value: Any) -> dict[str, Any]:
    """A minimal body of the dialect, with one option."""
    for part in reversed(name.split(".")[1:]):
        value = {part: value}
    return {**DIALECTS[dialect][1], name.split(".")[0]: value}


def parsed(dialect: str, sent: dict[str, Any]) -> RerankRequest:
    found = table.choose(DIALECTS[dialect][0], sent)
    if dialect != "jina":  # a Jina body with `truncation` or `top_k` is Voyage's
        assert found.name == dialect
    (request,) = found.parse(sent)
    return request


def test_the_samples_cover_the_table() -> None:
    assert set(SENT) == {spelling.name for option in options.OPTIONS for spelling in option.spellings}
    assert set(DIALECTS) == {dialect.name for dialect in table.DIALECTS}


@pytest.mark.parametrize(("dialect", "option", "name"), PAIRS)
def test_an_option_is_applied_rejected_or_reported(dialect: str, option: options.Option, name: str) -> None:
    value, meaning = SENT[name]
    sent = body(dialect, name, value)
    if name == "rank_fields":
        sent = json.loads(json.dumps(sent).replace('"bread"', '{"title": "bread", "other": "x"}'))
        if dialect == "nvidia":
            sent["passages"] = [{"title": "bread", "other": "x"}, "b"]
    if meaning is InvalidRequest or (dialect, option.name) in REFUSED:
        with pytest.raises(InvalidRequest) as caught:
            parsed(dialect, sent)
        message = caught.value.message
        assert repr(name) in message or value in message
        return
    request = parsed(dialect, sent)
    if (dialect, option.name) in WARNED:
        assert any(warning.startswith(f"'{name}' is ignored: ") for warning in request.warnings)
    else:
        assert request.warnings == ()
        if name == "rank_fields":
            assert request.documents[0] == "bread"
        else:
            assert getattr(request, option.name) == meaning


@pytest.mark.parametrize(("dialect", "option", "name"), PAIRS)
def test_null_is_the_same_as_not_sent(dialect: str, option: options.Option, name: str) -> None:
    plain = parsed(dialect, DIALECTS[dialect][1])
    assert parsed(dialect, body(dialect, name, None)) == plain
    top = name.split(".")[0]
    assert parsed(dialect, {**DIALECTS[dialect][1], top: None}) == plain
    for spelling in option.spellings:  # null under one name does not hide a value under another
        if spelling.name != name:
            sent = body(dialect, spelling.name, SENT[spelling.name][0])
            try:
                expected: Any = parsed(dialect, sent)
            except InvalidRequest:
                continue
            assert parsed(dialect, {**sent, top: sent.get(top)}) == expected


@pytest.mark.parametrize("dialect", DIALECTS)
def test_names_with_different_values_are_reported(dialect: str) -> None:
    request = parsed(dialect, {**DIALECTS[dialect][1], "instruction": "a", "instruct": "b", "task": "a"})
    assert request.instruction == "a"
    assert request.warnings == ("'instruct' is ignored: 'instruction' has a different value.",)


def test_a_default_value_does_not_hide_another_name() -> None:
    sent = {**DIALECTS["jina"][1], "raw_scores": False, "normalize": False, "top_n": 0, "limit": 3}
    request = parsed("jina", sent)
    assert (request.raw_scores, request.top_n, request.warnings) == (True, 3, ())


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        *[("low", "low"), ("High", "high"), (" normal ", "normal"), (0, "normal"), ("0", "normal")],
        *[(-3, "high"), ("-1", "high"), (999, "low"), ("+7", "low"), (2**70, "low"), (-(2**70), "high")],
        *[("urgent", None), (1.5, None), (True, None), (["low"], None), ("-", None), ("1_0", None)],
        *[("٣", None), ("9" * 5000, None)],
    ],
)
def test_a_priority_is_a_word_or_a_whole_number(dialect: str, sent: Any, meant: str | None) -> None:
    if meant is not None:
        assert parsed(dialect, body(dialect, "priority", sent)).priority == meant
        return
    with pytest.raises(
        InvalidRequest, match=r"'priority' is .* must be \"low\", \"normal\", \"high\" or"
    ) as caught:
        parsed(dialect, body(dialect, "priority", sent))
    assert len(caught.value.message) < 250


@pytest.mark.parametrize(
    ("name", "sent", "says"),
    [
        ("budget_ms", -1, "'budget_ms' is the number -1, but must not be negative"),
        ("budget_ms", "soon", "'budget_ms' is the string \"soon\", but must be a whole number."),
        (
            "max_scored_documents",
            2.5,
            "'max_scored_documents' is the number 2.5, but must be a whole number.",
        ),
        (
            "truncate_query",
            "perhaps",
            """'truncate_query' is the string "perhaps", but must be true or false.""",
        ),
        ("truncate_at", "word", """'truncate_at' is the string "word", but must be "token" or "sentence"."""),
        ("truncate_at", 5, "'truncate_at' is the number 5, but must be a string."),
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_invalid_option_is_an_error(dialect: str, name: str, sent: Any, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parsed(dialect, body(dialect, name, sent))
    assert caught.value.message.startswith(says)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_option_that_is_off_overrides_the_models_setting(dialect: str) -> None:
    sent = {**DIALECTS[dialect][1], "budget_ms": 0, "truncate_query": False, "truncate_at": "token"}
    request = parsed(dialect, sent)
    assert (request.budget_ms, request.truncate_query, request.truncate_at) == (0, False, "token")
    plain = parsed(dialect, DIALECTS[dialect][1])
    assert (plain.budget_ms, plain.truncate_query, plain.truncate_at) == (None, None, None)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_json_schema_has_every_option_once(dialect: str) -> None:
    (schema,) = (one.schema() for one in table.DIALECTS if one.name == dialect)
    for option in options.OPTIONS:
        names = {spelling.name for spelling in option.spellings}
        shown = [name for name in schema["properties"] if name in names]
        assert len(shown) == 1
        description = schema["properties"][shown[0]]["description"]
        assert all(name in description for name in names - {shown[0]})
        if (dialect, option.name) in REFUSED:
            assert "Not supported in this dialect" in description


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_entry_of_the_table_is_an_option_of_all_dialects(
    dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = options.Option("max_tokens_per_doc", "As many.", (options.Spelling("most", int),))
    monkeypatch.setattr(options, "OPTIONS", (*options.OPTIONS, new))
    assert parsed(dialect, body(dialect, "most", 7)).max_tokens_per_doc == 7
    (schema,) = (one.schema() for one in table.DIALECTS if one.name == dialect)
    assert schema["properties"]["most"] == {"type": "integer", "description": "As many."}


# Over HTTP, with a model that supports instructions: the effect of each option on the response.


@pytest.fixture(scope="module")
async def reranker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Reranker]:
    settings = golden_settings("qwen3-headless", tmp_path_factory.mktemp("home"))
    async with Reranker(settings) as made:
        yield made


Rows = list[tuple[float, str | None]]


def rows(answer: Any) -> Rows:
    """The score and the text of each row, under the dialect's names."""
    if isinstance(answer, dict):
        answer = answer.get("output", answer)
        answer = next(answer[key] for key in ("results", "data", "rankings", "scores") if key in answer)
    found = []
    for row in answer:
        score = next(row[key] for key in ("relevance_score", "score", "logit") if key in row)
        text = next((row[key] for key in ("document", "text", "input") if key in row), None)
        found.append((score, text["text"] if isinstance(text, dict) else text))
    return found


async def ask(client: httpx.AsyncClient, dialect: str, **sent: Any) -> httpx.Response:
    path, plain = DIALECTS[dialect]
    return await client.post(path, json={**plain, **sent})


def told(answer: httpx.Response) -> str:
    """The warnings in the response header, which every dialect has."""
    return " ".join(json.loads(answer.headers.get("x-rerankd-warnings", "[]")))


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_effect_of_each_option(client: httpx.AsyncClient, dialect: str) -> None:
    plain = await ask(client, dialect)
    base = rows(plain.json())
    assert len(base) == len(TEXTS)
    assert "Truncated to the limit of" in told(plain)
    scores = sorted(score for score, _ in base)

    def does(option: str) -> bool:
        return (dialect, option) not in WARNED | REFUSED

    top = await ask(client, dialect, limit=1)
    assert len(rows(top.json())) == (1 if does("top_n") else 3)
    assert does("top_n") or "'limit' is ignored" in told(top)

    shown = await ask(client, dialect, return_documents=True)
    texts = {text for _, text in rows(shown.json())}
    assert texts == (set(TEXTS) if does("return_documents") else {None})
    assert does("return_documents") or "'return_documents' is ignored" in told(shown)

    raw = await ask(client, dialect, normalize=False)
    values = sorted(score for score, _ in rows(raw.json()))
    jina = sorted(score for score, _ in rows((await ask(client, "jina", raw_scores=True)).json()))
    assert values == pytest.approx(jina, abs=1e-3)
    assert values != scores or dialect == "nvidia"

    told_apart = await ask(client, dialect, instruct="Find what contradicts the claim")
    assert sorted(score for score, _ in rows(told_apart.json())) != pytest.approx(scores, abs=1e-4)

    normalized = sorted(score for score, _ in rows((await ask(client, "jina")).json()))
    middle = (normalized[0] + normalized[-1]) / 2
    some = await ask(client, dialect, min_score=middle)
    if does("score_threshold"):
        assert 0 < len(rows(some.json())) < 3
        none = await ask(client, dialect, score_threshold=1.5)
        assert rows(none.json()) == [] and "No document reaches" in told(none)
    else:
        assert some.status_code == 400 and "'min_score' is not supported" in some.text

    whole = await ask(client, dialect, truncate="NONE")
    assert whole.status_code == 400 and "Document 2 has" in whole.text
    left = await ask(client, dialect, truncation_side="left")
    assert left.status_code == 400 and "keeps the start" in left.text

    short = await ask(client, dialect, max_tokens_per_doc=1)
    assert "Truncated to the limit of 1 token: documents 0, 1, 2." in told(short)
    small = await ask(client, dialect, max_tokens_per_query=2)
    assert "The query was truncated to 2 tokens" in told(small)
    chunks = await ask(client, dialect, max_chunks_per_doc=200)
    assert "Truncated to" not in told(chunks)
    # The smallest number of chunks that holds the text is too small if the chunks overlap.
    for most in range(2, 20):
        if "Truncated to" not in told(await ask(client, dialect, max_chunks_per_doc=most)):
            break
    assert "Truncated to" in told(await ask(client, dialect, max_chunks_per_doc=most, overlap=200))

    pair = await ask(client, dialect, truncate_prompt_tokens=5)
    assert pair.status_code == 400 and "limit of 5 tokens for an input leaves none" in pair.text


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_effect_of_truncation_and_budgets(client: httpx.AsyncClient, dialect: str) -> None:
    plain = rows((await ask(client, dialect)).json())
    path, sent = DIALECTS[dialect]
    long = json.loads(json.dumps(sent).replace(QUERY, LONG))
    refused = await client.post(path, json=long)
    assert refused.status_code == 400 and "tokens" in refused.text
    shortened = await client.post(path, json={**long, "truncate_query": True})
    assert shortened.status_code == 200 and "The query was truncated to " in told(shortened)

    sentence = await ask(client, dialect, truncate_at="sentence")
    assert sorted(score for score, _ in rows(sentence.json())) != sorted(score for score, _ in plain)
    token = await ask(client, dialect, truncate_at="token")
    assert [score for score, _ in rows(token.json())] == pytest.approx(
        [score for score, _ in plain], abs=1e-4
    )

    jina = (await ask(client, "jina", raw_scores=dialect == "nvidia")).json()["results"]
    first = next(row["relevance_score"] for row in jina if row["index"] == 0)
    few = await ask(client, dialect, max_scored_documents=1)
    lowest, other, best = sorted(score for score, _ in rows(few.json()))
    assert (lowest, best) == (other, pytest.approx(first, abs=1e-3)) and lowest < best
    assert "max_scored_documents was reached" in told(few) and "documents 1, 2;" in told(few)
    if dialect == "jina":
        assert few.json()["meta"]["unscored"] == [1, 2]

    all_of_them = await ask(client, dialect, budget_ms=60_000, priority="high")
    assert "Not scored" not in told(all_of_them)
    assert [score for score, _ in rows(all_of_them.json())] == pytest.approx(
        [score for score, _ in plain], abs=1e-4
    )


async def test_ignored_images_are_reported(client: httpx.AsyncClient) -> None:
    parts = [{"type": "text", "text": "a panda"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    documents = ["bread", {"content": parts}, {"text": "a bear", "image": "https://here/a.png"}]
    answer = await client.post("/v1/rerank", json={"query": {"content": parts}, "documents": documents})
    ignored = "Images are ignored, because the model qwen3-headless reads only text"
    assert told(answer) == f"{ignored}: the query has one. {ignored}: documents 1, 2."


async def test_a_text_model_refuses_an_image_without_text_and_names_models_that_read_it(
    client: httpx.AsyncClient,
) -> None:
    for body in (
        {"query": {"image": "aGk="}, "documents": ["a"]},
        {"query": "q", "documents": [{"image": "aGk="}]},
    ):
        answer = await client.post("/v1/rerank", json=body)
        assert answer.status_code == 400
        assert "qwen3-headless reads only text" in (says := answer.json()["message"]) and "Qwen3-VL" in says


async def test_warnings_are_in_the_body_if_the_dialect_has_a_field_for_them(
    client: httpx.AsyncClient,
) -> None:
    answer = await ask(client, "jina", max_scored_documents=1)
    assert answer.json()["meta"]["warnings"] == json.loads(answer.headers["x-rerankd-warnings"])


async def test_weaviates_readiness_check_succeeds(client: httpx.AsyncClient) -> None:
    assert (await client.get("/.well-known/ready")).status_code == 204


async def test_an_answer_without_warnings_has_no_header(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/rerank", json={"query": "q", "documents": ["a"]})
    assert answer.status_code == 200 and "x-rerankd-warnings" not in answer.headers


async def test_warnings_with_several_queries_name_the_pairs(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/score",
        json={
            "text_1": ["a", "a", "b", "b"],
            "text_2": ["c", "d", "c", LONG],
            "top_n": 1,
            "return_documents": True,
        },
    )
    warnings = json.loads(answer.headers["x-rerankd-warnings"])
    assert [warning.startswith("Pairs 0 to 1: '") for warning in warnings] == [True, True, False]
    assert warnings[2].startswith("Pairs 2 to 3: Truncated") and "document 1." in warnings[2]


@pytest.mark.parametrize(
    "warnings",
    [[], ["熊猫 \n\x00"], ["x" * 10_000], ["熊" * 290] * 3, [f"{at} " + "x" * 200 for at in range(50)]],
)
def test_a_header_of_warnings_is_ascii_and_bounded(warnings: list[str]) -> None:
    text = warnings_header(warnings)
    assert text.isascii() and text.isprintable() and len(text) <= 2000
    said = json.loads(text)
    assert len(said) <= len(warnings)
    if len(said) < len(warnings) or (said and said[-1] != warnings[-1]):
        assert said[-1].endswith("…") or said[-1] == f"{len(warnings) - len(said) + 1} more"


def test_the_table_has_every_field_of_a_request() -> None:
    """Every field of a request except its texts is an option."""
    fields = {field.name for field in dataclasses.fields(RerankRequest) if field.init}
    known = {option.name for option in options.OPTIONS}
    assert fields - known == {"query", "documents", "model", "warnings"}
