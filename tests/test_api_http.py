"""Paths, headers, keys, model names and errors of the app, with a scripted reranker instead of an engine."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from rerankd.api.app import create_app
from rerankd.api.dialects import table
from rerankd.api.routes import router
from rerankd.api.server import Server
from rerankd.client import ANONYMOUS, Client
from rerankd.config import Settings, load
from rerankd.domain import RerankRequest
from rerankd.errors import ConfigError, EngineStartFailed, EngineTimeout, RerankdError
from rerankd.rerank_result import RerankResult, ScoredDocument
from rerankd.service import Reranker
from rerankd.serving.prepare_model import Model, prepare

_GGUF = Path(__file__).parent / "golden" / "xlmr-head.gguf"
_BODY = {"query": "q", "documents": ["a", "bb"]}


class Scripted(Reranker):
    """A reranker without an engine: the longest document is the best, or `error` is what happens."""

    def __init__(self, settings: Settings, model: Model, error: Exception | None = None) -> None:
        super().__init__(settings, prepared=[model])
        self.error = error
        self.asked: list[RerankRequest] = []

    async def answer(
        self,
        request: RerankRequest,
        *,
        timeout_s: float | None = None,
        client: Client = ANONYMOUS,
        since: float | None = None,
    ) -> RerankResult:
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        order = sorted(range(len(request.documents)), key=lambda at: -len(request.documents[at]))
        return RerankResult(
            model=request.model or self.model.name,
            results=tuple(ScoredDocument(at, 1 - 1 / (2 + len(request.documents[at]))) for at in order),
            tokens=3,
            normalization="sigmoid",
            engine_s=0.002,
            total_s=0.003,
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    settings = Settings(model=str(_GGUF), alias=("bge", "the/other"), home=tmp_path_factory.mktemp("home"))
    return prepare(settings)


class Service:
    """An app of `settings`, and requests to it."""

    def __init__(self, model: Model, error: Exception | None = None, **settings: Any) -> None:
        self.reranker = Scripted(Settings(**settings), model, error)
        self.app = create_app(reranker=self.reranker)

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        return ask(self.app, method, path, **options)

    def post(self, path: str = "/v1/rerank", body: Any = _BODY, **headers: str) -> httpx.Response:
        return self("POST", path, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


def ask(app: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            # A URL of its own, since a client joins //rerank as a host.
            return await client.request(method, httpx.URL(f"http://here{path}"), **options)

    return asyncio.run(send())


_RERANK_PATHS = [path for path in table.served() if not path.endswith("/score")] + [
    path for path in table.DEFAULT.named_paths
]


@pytest.mark.parametrize("path", _RERANK_PATHS)
@pytest.mark.parametrize("spelled", ["{}", "/{}", "{}/", "//{}//"])
def test_every_path_works_with_doubled_and_trailing_slashes(path: str, spelled: str, model: Model) -> None:
    answer = Service(model).post(spelled.format(path))
    assert answer.status_code == 200
    assert [row["index"] for row in answer.json()["results"]] == [1, 0]


def test_the_root_has_the_page_for_get_and_tei_for_post(model: Model) -> None:
    service = Service(model)
    page = service("GET", "/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    answer = service.post("/", {"query": "q", "texts": ["a", "bbb"]})
    assert [row["index"] for row in answer.json()] == [1, 0]  # TEI's answer is a list


@pytest.mark.parametrize("path", ["/rerank", "/v1//rerank/", "/v1/models/x", "/info", "/score"])
def test_all_paths_work_with_and_without_the_prefix(path: str, model: Model) -> None:
    service = Service(model, api_prefix="llm/")
    body = {"text_1": "q", "text_2": "a", **_BODY}
    for prefix in ("", "/llm", "//llm/"):
        method = "GET" if path in ("/v1/models/x", "/info") else "POST"
        assert service(method, prefix + path, json=body).status_code == 200, prefix


@pytest.mark.parametrize(
    ("written", "meant"), [("", ""), ("/", ""), ("llm", "/llm"), ("//a//b/", "/a/b"), ("/v1.2~x", "/v1.2~x")]
)
def test_spellings_of_a_prefix(written: str, meant: str) -> None:
    assert Settings(api_prefix=written).api_prefix == meant


def test_a_prefix_is_not_a_pattern() -> None:
    with pytest.raises(ConfigError, match=r"api_prefix = .* can't be used"):
        load('api_prefix = "/{x}"', {}, {})


def test_a_router_in_another_app_ignores_extra_slashes(model: Model) -> None:
    app = FastAPI()
    app.state.rerankd = Scripted(Settings(), model)
    app.include_router(router, prefix="/ai")
    assert ask(app, "POST", "/ai//v1/rerank/", json=_BODY).status_code == 200
    refused = ask(app, "POST", "/ai/rerank", json={"texts": []})
    assert refused.status_code == 400 and refused.json()["error_type"] == "Validation"
    assert refused.headers["x-request-id"]


def test_pairs_are_scored_in_the_order_sent(model: Model) -> None:
    service = Service(model)
    body = {"text_1": ["q", "q", "r"], "text_2": ["a", "bbb", "cc"]}
    scores = [row["score"] for row in service.post("/score", body).json()["data"]]
    assert scores == [1 - 1 / 3, 1 - 1 / 5, 1 - 1 / 4]
    assert [asked.query for asked in service.reranker.asked] == ["q", "r"]


def test_pairs_are_limited_like_documents(model: Model) -> None:
    body = {"text_1": ["a", "b", "c"], "text_2": ["a", "b", "c"]}
    answer = Service(model, max_documents=2).post("/v1/score", body)
    assert answer.status_code == 400 and "3 documents; the limit is 2" in answer.json()["message"]


# --- headers ---


def test_a_valid_request_id_is_returned(model: Model) -> None:
    answer = Service(model).post(x_request_id="trace-1/a:b")
    assert answer.headers["x-request-id"] == answer.json()["id"] == "trace-1/a:b"


@pytest.mark.parametrize("sent", ["", "a b", 'a"b', "é", "x" * 200])
def test_an_invalid_request_id_is_replaced(sent: str, model: Model) -> None:
    answer = Service(model)("POST", "/rerank", json=_BODY, headers=[(b"x-request-id", sent.encode())])
    assert answer.headers["x-request-id"] == answer.json()["id"]
    assert answer.json()["id"].startswith("rerank-")


@pytest.mark.parametrize("path", ["/nowhere", "/v1/cluster/auth", "/v1/models", "/health", "/rerank"])
def test_every_response_has_a_request_id(path: str, model: Model) -> None:
    assert Service(model)("GET", path).headers["x-request-id"].startswith("rerank-")


def test_a_response_has_the_model_and_the_durations(model: Model) -> None:
    headers = Service(model).post(body={**_BODY, "model": "theirs"}).headers
    assert headers["x-rerankd-model"] == "bge"
    assert (headers["x-rerankd-total-ms"], headers["x-rerankd-engine-ms"]) == ("3.0", "2.0")


def test_a_model_name_in_another_script_fits_a_header(tmp_path: Path) -> None:
    named = prepare(Settings(model=str(_GGUF), alias=("重排 100%\n",), home=tmp_path))
    headers = Service(named).post().headers
    assert headers["x-rerankd-model"] == "%E9%87%8D%E6%8E%92 100%25%0A"


# --- keys ---

_REFUSED = [
    ("/v1/rerank", _BODY, lambda body: body["error"]["message"] == body["detail"] == body["message"]),
    ("/v1/rerank", {"query": "q", "texts": ["a"]}, lambda body: set(body) == {"error", "error_type"}),
    ("/rerank", {**_BODY, "top_k": 1}, lambda body: set(body) == {"detail"}),
    ("/api/rerank", _BODY, lambda body: set(body) == {"error"}),
    ("/v1/ranking", {"query": {}, "passages": []}, lambda body: body["object"] == "error"),
    ("/score", {}, lambda body: body["error"]["code"] == 401),
]


@pytest.mark.parametrize(("path", "body", "fits"), _REFUSED)
@pytest.mark.parametrize("header", [{}, {"authorization": "Bearer wrong"}, {"x_api_key": "wrong"}])
def test_a_wrong_key_is_a_401_in_the_dialect(
    path: str, body: Any, fits: Any, header: dict[str, str], model: Model
) -> None:
    answer = Service(model, api_key="right").post(path, body, **header)
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert fits(answer.json())


@pytest.mark.parametrize("content", [b"", b"{", b'{"query": "' + b"a" * 100_000 + b'"}'])
def test_a_wrong_key_is_a_401_whatever_the_body(content: bytes, model: Model) -> None:
    assert Service(model, api_key="right")("POST", "/rerank", content=content).status_code == 401


@pytest.mark.parametrize("header", [{"authorization": "bearer  right"}, {"x_api_key": "right"}])
def test_the_key_is_accepted(header: dict[str, str], model: Model) -> None:
    assert Service(model, api_key="right").post(**header).status_code == 200


@pytest.mark.parametrize("sent", ["", "Bearer", "Bearer None", "Basic eA==", "x"])
def test_without_a_key_any_authorization_is_accepted(sent: str, model: Model) -> None:
    assert Service(model).post(authorization=sent).status_code == 200


def test_xinferences_clients_learn_whether_a_key_is_required(model: Model) -> None:
    assert Service(model, api_key="k")("GET", "/v1/cluster/auth").json() == {"auth": True}
    assert "detail" in Service(model)("GET", "/v1/cluster/auth").json()


# --- model names ---


@pytest.mark.parametrize("name", ["anything", "", None, "bge", "the/other"])
def test_any_name_selects_the_only_model(name: str | None, model: Model) -> None:
    assert Service(model).post(body={**_BODY, "model": name}).json()["model"] == (name or "bge")


@pytest.mark.parametrize("name", ["", None, "bge", "the/other"])
def test_strict_names_accept_a_served_name(name: str | None, model: Model) -> None:
    assert Service(model, strict_model_names=True).post(body={**_BODY, "model": name}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank", {**_BODY, "model": "nope"}),
        ("/rerank", {"query": "q", "texts": ["a"], "model": "nope"}),
        ("/score", {"text_1": "q", "text_2": "a", "model": "nope"}),
        ("/v1/models/nope", None),
    ],
)
def test_an_unknown_name_is_a_404_that_lists_the_known_names(path: str, body: Any, model: Model) -> None:
    service = Service(model, strict_model_names=True)
    answer = service("GET", path) if body is None else service.post(path, body)
    assert answer.status_code == 404
    assert "'nope'" in answer.text and "bge, the/other" in answer.text


# --- errors ---


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (EngineStartFailed("It died."), 503, "1"),
        (EngineStartFailed("It died.", retry_after_s=None), 503, "1"),
        (EngineTimeout("Too slow."), 504, None),
        (RerankdError("Wait.", retry_after_s=7), 500, "7"),
    ],
)
def test_an_error_has_retry_after(
    error: RerankdError, status: int, retry_after: str | None, model: Model
) -> None:
    answer = Service(model, error).post()
    assert (answer.status_code, answer.headers.get("retry-after")) == (status, retry_after)
    assert answer.json()["message"] == error.message


def test_a_crash_is_a_500_without_internal_details(model: Model) -> None:
    answer = Service(model, ZeroDivisionError("secret")).post(body={"query": "q", "texts": ["a"]})
    assert answer.status_code == 500
    assert answer.json() == {
        "error": "rerankd failed for an unexpected reason. See its log for details.",
        "error_type": "Backend",
    }


@pytest.mark.parametrize("content", [b"", b" ", b"{", b"[]", b"null", b"5", b'"a"', b"[" * 100_000, b"\xff"])
def test_a_body_that_is_not_an_object_is_a_400(content: bytes, model: Model) -> None:
    answer = Service(model)("POST", "/rerank", content=content)
    assert answer.status_code == 400 and "Send JSON like" in answer.json()["message"]


def test_a_body_that_is_too_large_is_a_413(model: Model) -> None:
    answer = Service(model, max_body_bytes=2000).post(body={**_BODY, "more": "a" * 3000})
    assert answer.status_code == 413


@pytest.mark.parametrize(("path", "status"), [("/rerank", 200), ("/nowhere", 404)])
def test_a_malformed_host_is_ignored(path: str, status: int, model: Model) -> None:
    assert Service(model).post(path, host="[").status_code == status


def test_an_unknown_path_names_the_rerank_endpoint(model: Model) -> None:
    answer = Service(model)("POST", "/v1/completions", json={})
    body = answer.json()
    assert answer.status_code == 404 and "POST /v1/rerank" in body["message"]
    assert body["detail"] == body["message"] == body["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "says"),
    [
        ("PUT", "/", "PUT is not allowed for /. The rerank endpoint is POST /v1/rerank"),
        ("POST", "/v1/rerankings", "Did you mean POST /v1/reranking? "),
        ("POST", "/llm/v1/rerank", "start rerankd with --api-prefix /llm."),
        ("GET", "/v1/rerank", "GET is not allowed for /v1/rerank. The rerank endpoint is POST /v1/rerank"),
    ],
)
def test_a_wrong_path_names_the_right_one(method: str, path: str, says: str, model: Model) -> None:
    answer = Service(model)(method, path, json=_BODY)
    assert answer.status_code in (404, 405)
    assert says in answer.json()["message"]


# GET /v1/models/rerank asks for the model of that name, and GET / for the page.
@pytest.mark.parametrize("path", [path for path in table.served() if path not in ("/v1/models/rerank", "/")])
def test_a_wrong_method_does_not_suggest_a_proxy_prefix(path: str, model: Model) -> None:
    body = Service(model)("GET", path).json()
    message = body["message"] if "message" in body else body["error"]  # Ollama's form
    assert f"GET is not allowed for {path}. The rerank" in message and "--api-prefix" not in message


def test_weaviates_startup_requests(model: Model) -> None:
    service = Service(model)
    assert service("GET", "/.well-known/live").status_code == 204
    assert service("GET", "/meta").json()["model_name"] == service.reranker.model.name
    # The scripted reranker was never entered, so it is not ready, here as in /ready.
    assert service("GET", "/.well-known/ready").status_code == service("GET", "/ready").status_code == 503


def test_a_wrong_method_gets_the_allow_header(model: Model) -> None:
    answer = Service(model)("GET", "/v1/rerank/")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_openapi_describes_the_served_paths(model: Model) -> None:
    paths = Service(model, api_prefix="/x")("GET", "/openapi.json").json()["paths"]
    for path in ("/v1/rerank", "/api/rerank", "/v1/ranking", "/v1/score"):
        described = paths[path]["post"]
        assert described["requestBody"]["content"]["application/json"]["schema"]
        assert described["responses"]["200"]["content"]["application/json"]["schema"]
    assert {"/info", "/v1/models", "/v1/models/{name}", "/health", "/ready"} <= set(paths)
    assert not any(path.startswith("/x") for path in paths)


def test_a_second_signal_leaves_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """uvx and pipx pass a signal on that the terminal has already sent."""

    async def serve_and_end() -> None:
        listening = asyncio.Event()
        server = Server(FastAPI(), settings=Settings(), listening=listening.set)
        with socket.create_server(("127.0.0.1", 0)) as own:
            serving = asyncio.create_task(server.serve([own]))
            await listening.wait()
            server.end()
            server.end(at_once=True)
            await serving

    asyncio.run(serve_and_end())
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
