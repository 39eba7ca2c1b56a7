"""Options from headers, and the identity of the client, as the Reranker receives them; without an engine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import httpx
import pytest

from heard import Heard
from rerankd.api.app import create_app
from rerankd.client import Client
from rerankd.config import Settings

BODY: dict[str, Any] = {"query": "q", "documents": ["a", "b"]}


async def ask(
    heard: Heard,
    body: dict[str, Any] = BODY,
    *,
    path: str = "/v1/rerank",
    headers: dict[str, str] | None = None,
    address: str = "192.0.2.7",
) -> httpx.Response:
    transport = httpx.ASGITransport(create_app(reranker=heard), client=(address, 40000))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        return await client.post(path, json=body, headers=headers)


@pytest.fixture
def heard(tmp_path: Path) -> Heard:
    return Heard(Settings(home=tmp_path))


@pytest.mark.parametrize(
    ("sent", "body", "priority", "budget_ms"),
    [
        ({}, {}, "normal", None),
        ({"x-rerank-priority": "low"}, {}, "low", None),
        ({"x-rerank-priority": "-1"}, {}, "high", None),
        ({"x-rerank-priority": "low"}, {"priority": "high"}, "high", None),
        ({"x-rerank-priority": "low"}, {"priority": 0}, "normal", None),
        ({"x-rerank-priority": "low"}, {"priority": None}, "low", None),
        ({"x-rerank-priority": ""}, {}, "normal", None),
        ({"x-rerank-budget-ms": "250"}, {}, "normal", 250),
        ({"x-rerank-budget-ms": "250"}, {"budget_ms": 100}, "normal", 100),
        ({"x-rerank-budget-ms": "250"}, {"budget_ms": 0}, "normal", 0),
        ({"x-rerank-budget-ms": "0"}, {}, "normal", 0),
    ],
)
async def test_an_option_in_the_body_overrides_the_header(
    heard: Heard, sent: dict[str, str], body: dict[str, Any], priority: str, budget_ms: int | None
) -> None:
    answer = await ask(heard, {**BODY, **body}, headers=sent)
    assert answer.status_code == 200, answer.text
    ((request, _),) = heard.asked
    assert (request.priority, request.budget_ms) == (priority, budget_ms)


async def test_a_header_applies_to_all_queries_of_a_body_and_to_nested_options(heard: Heard) -> None:
    pairs = {"text_1": ["a", "b"], "text_2": ["c", "d"]}
    await ask(heard, pairs, path="/v1/score", headers={"x-rerank-budget-ms": "9"})
    inner = {"input": {"query": "q", "documents": ["a"]}, "parameters": {"priority": "high"}}
    await ask(heard, inner, headers={"x-rerank-priority": "low", "x-rerank-budget-ms": "8"})
    assert [request.budget_ms for request, _ in heard.asked] == [9, 9, 8]
    assert heard.asked[-1][0].priority == "high"


@pytest.mark.parametrize(
    ("header", "value", "says"),
    [
        ("x-rerank-priority", "urgent", 'The header x-rerank-priority is the string "urgent", but must be'),
        ("x-rerank-budget-ms", "2.5", 'The header x-rerank-budget-ms is the string "2.5", but'),
        ("x-rerank-budget-ms", "-2", "must not be negative"),
    ],
)
async def test_an_invalid_header_is_rejected(heard: Heard, header: str, value: str, says: str) -> None:
    answer = await ask(heard, headers={header: value})
    assert answer.status_code == 400 and says in answer.json()["message"]
    assert heard.asked == []


async def test_a_client_is_its_key_with_the_keys_weight(tmp_path: Path) -> None:
    lines = [
        f"{name}:{hashlib.sha256(name.encode()).hexdigest()}{priority}\n"
        for name, priority in (("plain", ""), ("batch", ":low"), ("desk", ":high"))
    ]
    file = tmp_path / "keys"
    file.write_text("".join(lines))
    file.chmod(0o600)
    heard = Heard(Settings(home=tmp_path, api_keys_file=file, api_key="one"))
    for key in ("plain", "batch", "desk", "one"):
        answer = await ask(heard, headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 200, answer.text
    assert [client for _, client in heard.asked] == [
        Client("key plain", 1),
        Client("key batch", 1 / 4),
        Client("key desk", 4),
        Client("key default", 1),
    ]


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::1:2:3", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a-unix-socket", "a-unix-socket"),
    ],
)
async def test_without_a_key_a_client_is_its_address(heard: Heard, address: str, name: str) -> None:
    await ask(heard, headers={"authorization": "Bearer nobodys"}, address=address)
    assert [client for _, client in heard.asked] == [Client(name, 1)]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rerank", BODY),
        ("/rerank", {"query": "q", "texts": ["a", "b"]}),
        ("/v1/rerank", {**BODY, "top_k": 2}),
        ("/v1/reranking", {"query": "q", "input": ["a", "b"]}),
        ("/rerank", {**BODY, "property": ""}),
        ("/api/rerank", BODY),
        ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"text": "a"}, {"text": "b"}]}),
        ("/v1/rerank", {"input": {"query": "q", "documents": ["a", "b"]}}),
        ("/v1/score", {"text_1": "q", "text_2": ["a", "b"]}),
    ],
)
async def test_every_document_has_a_row_with_a_score(heard: Heard, path: str, body: dict[str, Any]) -> None:
    """Also one that was not scored: clients give scores out by position, or compare them."""
    answer = (await ask(heard, body, path=path)).json()
    if isinstance(answer, dict):
        found = answer.get("output", answer)
        rows = next(found[name] for name in ("results", "data", "scores", "rankings") if name in found)
    else:
        rows = answer
    scores = [row[name] for row in rows for name in ("relevance_score", "score", "logit") if name in row]
    assert scores == [0.9, 0.0]
    meta = answer.get("meta") if isinstance(answer, dict) else None
    assert meta is None or meta["unscored"] == [1]
