"""Serving the page, its files and its translations; tests/test_page.py tests it in a browser."""

from __future__ import annotations

import json
import re

import pytest
from fastapi import FastAPI

import rerankd
from rerankd import errors
from rerankd.config import Settings
from rerankd.serving.prepare_model import Model, prepare
from support import GOLDEN, ROOT
from test_api_http import Service, ask

STATIC = ROOT / "src" / "rerankd" / "api" / "static"
SOURCE = ROOT / "src" / "rerankd"
# Errors of the command line, of a library's caller, and of addresses that the page does not request.
NOT_ON_THE_PAGE = {
    "address_in_use", "body_timeout", "bulk_error", "collection_error", "config_error",
    "engine_build_failed", "engine_too_old", "engine_unknown", "host_not_allowed", "method_not_allowed",
    "misuse", "missing_extra", "not_found", "origin_not_allowed", "output_failed",
    "tuning_failed", "unsupported_media_type",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    file = str(GOLDEN / "xlmr-head.gguf")
    return prepare(Settings(model=(file,), alias=("bge", "the/other"), home=tmp_path_factory.mktemp("home")))


def test_the_page_is_small() -> None:
    files = list(STATIC.iterdir())
    assert sum(path.stat().st_size for path in files) < 200_000
    code = [path for path in files if path.suffix in (".js", ".css", ".html")]
    assert sum(path.read_text(encoding="utf-8").count("\n") for path in code) < 2000


def test_every_text_of_the_page_has_a_chinese_translation() -> None:
    known = set(json.loads((STATIC / "chinese.json").read_text(encoding="utf-8"))["page"])
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    used = set(re.findall(r"data-t>([^<]+)<", html)) | set(re.findall(r'data-t-\w+="([^"]+)"', html))
    for path in STATIC.glob("*.js"):
        code = path.read_text(encoding="utf-8")
        used |= set(re.findall(r'\bt\("([^"]+)"', code))
        used |= set(re.findall(r'\bact\("\w+", "[^"]*", "([^"]+)"', code)) | set(
            re.findall(r'\bmake\("(\w+)"', code)
        )
        used |= {word for pair in re.findall(r'\bt\([^"()]+\? "([^"]+)" : "([^"]+)"', code) for word in pair}
    clients = json.loads((STATIC / "clients.json").read_text(encoding="utf-8"))
    used |= {
        client[part]
        for client in clients
        for part in ("where", "note")
        if part in client and not client[part].startswith("pip ")
    }
    assert used - known == set()
    assert len(used) > 80


def test_every_error_of_a_request_has_a_chinese_text() -> None:
    known = json.loads((STATIC / "chinese.json").read_text(encoding="utf-8"))["errors"]
    codes = {
        one.code
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, errors.RerankdError)
    }
    assert codes - known.keys() - NOT_ON_THE_PAGE == set()
    assert known.keys() - codes == set()
    assert not known.keys() & NOT_ON_THE_PAGE


def test_every_sentence_of_the_server_that_is_translated_is_one_that_it_can_write() -> None:
    """Sentences are put together from parts, so half of the groups of three words must stand in the code."""
    code = "".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    source = re.sub(r'"\s*f?"', "", code).replace('\\"', '"')
    translated = json.loads((STATIC / "chinese.json").read_text(encoding="utf-8"))["server"]
    for english, chinese in translated.items():
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", chinese)), english
        words = max(re.split(r"\{\w+\}", english), key=len).strip(" ,;:().").split()
        groups = [" ".join(words[at : at + 3]) for at in range(max(len(words) - 2, 1))]
        assert sum(group in source for group in groups) * 2 >= len(groups), english


def test_the_page_and_its_files_need_no_key_and_allow_no_other_host(model: Model) -> None:
    service = Service(model, api_key="secret")
    for path in ("/", "/static/main.js", "/static/style.css"):
        answer = service("GET", path)
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        tag = {"if-none-match": answer.headers["etag"]}
        assert service("GET", path, headers=tag).status_code == 304
    assert 'data-key="yes"' in service("GET", "/").text and 'data-key="no"' in Service(model)("GET", "/").text
    assert service("GET", "/v1/status").status_code == 401


@pytest.mark.parametrize("name", ["", "nothing.js", "..%2fpage.py", "../page.py", "index.html"])
def test_other_files_are_not_served(name: str, model: Model) -> None:
    assert Service(model)("GET", f"/static/{name}").status_code == 404


def test_the_page_is_under_the_prefix_too(model: Model) -> None:
    service = Service(model, api_prefix="/llm")
    assert service("GET", "/llm").headers["location"] == "llm/"
    assert service("GET", "/llm/").text == service("GET", "/").text
    assert service("GET", "/llm/static/main.js").status_code == 200
    assert service("GET", "/llm/openapi.json").json() == service("GET", "/openapi.json").json()


def test_the_api_reference_loads_nothing_from_other_hosts(model: Model) -> None:
    service = Service(model)
    assert service("GET", "/docs").headers["location"] == "./#api"
    assert service("GET", "/redoc").status_code == 404


def test_an_app_with_the_router_keeps_its_own_root_page(model: Model) -> None:
    app = FastAPI()
    app.include_router(rerankd.router)
    app.state.rerankd = Service(model).reranker
    assert ask(app, "GET", "/").status_code == 404
    assert ask(app, "POST", "/", json={}).status_code == 404


def test_the_status_has_the_models_data(model: Model) -> None:
    service = Service(model)
    service.post()
    service.post(body={})
    status = service("GET", "/v1/status").json()
    (told,) = status["models"]
    assert (told["id"], told["aliases"], told["method"], told["normalization"]) == (
        "bge",
        ["the/other"],
        "cross_encoder",
        "sigmoid",
    )
    length = model.recipe.max_length
    assert told["explain"] == model.resolution.explanation and told["max_length"] == length
    # The names of 0.1, for one release.
    assert (told["way"], told["window"], told["transform"]) == ("head", length, "sigmoid")
    assert (sum(status["recent"]["requests"]), sum(status["recent"]["failed"])) == (2, 1)
    assert len(status["recent"]["median_ms"]) == 120
    assert told["queue"]["requests"] == 0 and told["state"] == "unloaded" and status["admin"] is False
