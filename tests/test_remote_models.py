"""Models that are served elsewhere: which requests go to them, and how they look to users."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from remote_double import Double, Doubles
from rerankd.api.app import create_app
from rerankd.cli import serve, status
from rerankd.client import Client
from rerankd.config import Settings
from rerankd.domain import RerankRequest
from rerankd.embedding import EmbedRequest
from rerankd.errors import (
    Conflict,
    EngineStartFailed,
    EngineTimeout,
    EngineUnavailable,
    Overloaded,
    RerankdError,
    Stopping,
    UnknownModel,
)
from rerankd.remote_models import NoRemoteModels, Place
from rerankd.service import Reranker
from rerankd.serving.prepare_model import prepare

_GGUF = Path(__file__).parent / "golden" / "xlmr-head.gguf"
_BODY = {"query": "q", "documents": ["a", "ccc", "bb"]}
_DOWN = Place("gpu3", "failed", error="It refuses connections.")
_REQUEST = RerankRequest("q", ("a", "ccc", "bb"))


class Front:
    """A started Reranker with remote models, and its app."""

    def __init__(self, reranker: Reranker) -> None:
        self.reranker = reranker
        self._app = create_app(reranker=reranker)

    async def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app=self._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **options)

    async def json(self, path: str, body: Any = None) -> Any:
        answer = await self("POST" if body is not None else "GET", path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()


@asynccontextmanager
async def front(home: Path, remote: Doubles, **settings: Any) -> AsyncIterator[Front]:
    async with Reranker(Settings(home=home, **settings), remote=remote) as reranker:
        yield Front(reranker)


@asynccontextmanager
async def beside_a_local_model(home: Path, remote: Doubles) -> AsyncIterator[Front]:
    """A front with a local model, `local`, that is not loaded."""
    settings = Settings(home=home, model=(str(_GGUF),), alias=("local",), preload=False)
    remote.is_alone = False
    async with Reranker(settings, prepared=[prepare(settings)], remote=remote) as reranker:
        yield Front(reranker)


def run(test: Any) -> None:
    asyncio.run(test)


def test_a_request_goes_there_whole_and_its_result_is_completed(tmp_path: Path) -> None:
    async def test() -> None:
        model = Double("far", "alias")
        async with front(tmp_path, Doubles(model)) as ask:
            body = {**_BODY, "model": "alias", "top_n": 2, "return_documents": True, "instruction": "i"}
            found = await ask.json("/v1/rerank", body)
            assert [(row["index"], row["document"]["text"]) for row in found["results"]] == [
                (1, "ccc"),
                (2, "bb"),
            ]
            assert found["model"] == "alias"
            assert found["meta"]["warnings"] == ["A warning of the server."]
            ((request, timeout_s, _),) = model.asked
            assert isinstance(request, RerankRequest)
            assert (request.model, request.top_n, request.instruction) == ("far", 2, "i")
            assert not request.return_documents  # the texts are here
            assert 0 < timeout_s <= ask.reranker.settings.request_timeout_s
            metrics = (await ask("GET", "/metrics")).text
            assert "rerankd_cache_hits_total 1.0" in metrics
            assert 'rerankd_remote_places{model="far"} 2.0' in metrics
            assert 'rerankd_remote_places_ready{model="far"} 1.0' in metrics

    run(test())


def test_warnings_of_the_request_are_not_sent_and_not_lost(tmp_path: Path) -> None:
    async def test() -> None:
        model = Double("far")
        async with front(tmp_path, Doubles(model)) as ask:
            request = RerankRequest("q", ("a",), warnings=("An option is ignored.",))
            result = await ask.reranker.answer(request, client=Client("someone"))
            assert result.warnings == ("An option is ignored.", "A warning of the server.")
            ((sent, _, client),) = model.asked
            assert isinstance(sent, RerankRequest)
            assert (sent.warnings, client.name) == ((), "someone")

    run(test())


def test_the_time_that_has_passed_counts_for_the_budget(tmp_path: Path) -> None:
    async def test() -> None:
        model = Double("far")
        async with front(tmp_path, Doubles(model)) as ask:
            begun = asyncio.get_running_loop().time() - 0.2
            await ask.reranker.answer(RerankRequest("q", ("a",), budget_ms=1000), since=begun)
            await ask.reranker.answer(RerankRequest("q", ("a",), budget_ms=100), since=begun)
            await ask.reranker.answer(RerankRequest("q", ("a",), budget_ms=0), since=begun)
            left, late, none = (one.budget_ms for one, _, _ in model.asked if isinstance(one, RerankRequest))
            assert left is not None
            assert 500 < left <= 800
            assert (late, none) == (1, 0)

    run(test())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("far", "far"), ("FAR:latest", "far"), ("local", None), (None, None), ("", None)],
)
def test_names_of_this_machine_come_first(tmp_path: Path, name: str | None, expected: str | None) -> None:
    async def test() -> None:
        async with beside_a_local_model(tmp_path, Doubles(Double("far"), Double("local"))) as ask:
            found = ask.reranker.registry.remote_model(name)
            assert (found.name if found else None) == expected
            listed = [row["id"] for row in (await ask.json("/v1/models"))["data"]]
            assert listed == ["local", "far"]
            with pytest.raises(UnknownModel, match=r"Known model names: local, far\."):
                ask.reranker.registry.remote_model("other")

    run(test())


def test_one_remote_model_answers_to_every_name_once_all_places_are_known(tmp_path: Path) -> None:
    async def test() -> None:
        remote = Doubles(Double("far"))
        async with front(tmp_path, remote) as ask:
            registry = ask.reranker.registry
            assert registry.remote_model("rerank-v3.5") is remote.models[0]
            remote.unlisted = (_DOWN,)  # the name may be that of one of its models
            with pytest.raises(EngineUnavailable, match=r"'rerank-v3\.5' is not known, and .* yet: gpu3\."):
                registry.remote_model("rerank-v3.5")
            assert registry.remote_model(None) is remote.models[0]

    run(test())


async def begun(home: Path) -> tuple[Reranker, Doubles]:
    """A Reranker whose remote models have not been found yet."""
    remote = Doubles()
    remote.unlisted = (_DOWN,)
    remote.found.clear()
    reranker = Reranker(Settings(home=home), remote=remote)
    await reranker.registry.begin()
    return reranker, remote


def test_requests_wait_until_the_places_have_been_asked(tmp_path: Path) -> None:
    async def test() -> None:
        reranker, remote = await begun(tmp_path)
        waiting = asyncio.create_task(reranker.answer(_REQUEST))
        while not reranker.registry.setup._waiting:
            await asyncio.sleep(0)
        assert not waiting.done()
        remote.models, remote.unlisted = (Double("far"),), ()
        remote.found.set()
        assert (await waiting).model == "far"
        await reranker.close()
        assert remote.is_closed

    run(test())


def test_a_request_for_a_name_that_is_never_found_ends_in_time(tmp_path: Path) -> None:
    async def test() -> None:
        reranker, _ = await begun(tmp_path)
        with pytest.raises(EngineUnavailable, match="No model is known yet"):
            await reranker.answer(_REQUEST, timeout_s=0.05)
        await reranker.close()

    run(test())


def test_health_readiness_and_status_tell_who_answers(tmp_path: Path) -> None:
    async def test() -> None:
        model = Double("far", "alias")
        async with front(tmp_path, Doubles(model)) as ask:
            assert (await ask.json("/ready")) == {"status": "ready"}
            assert (await ask.json("/v1/models/far/ready")) == {"status": "ready"}
            assert (await ask.json("/health"))["models"] == [
                {"model": "far", "engine": {"state": "ready", "starts": 0}}
            ]
            (shown,) = (await ask.json("/v1/status"))["remote"]
            assert (shown["id"], shown["aliases"], shown["state"]) == ("far", ["alias"], "ready")
            assert [one["name"] for one in shown["places"]] == ["gpu1", "gpu2"]
            assert status.remote_lines(shown) == [
                "far: ready, served by 2 upstream servers",
                "  gpu1: ready, 0 requests under way, 0 answered, 0 failed",
                "  gpu2: failed, 0 requests under way, 0 answered, 3 failed; The server refuses connections.",
            ]
            ask.reranker.registry.remote.unlisted = (_DOWN,)  # type: ignore[misc]
            (shown,) = (await ask.json("/v1/status"))["unlisted"]
            assert status.unlisted_line(shown) == (
                "gpu3: failed, its models are not known yet; It refuses connections."
            )
            model.error = EngineStartFailed("All servers are down.")
            for path in ("/ready", "/v1/models/far/ready"):
                answer = await ask("GET", path)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
                assert "All servers are down." in answer.text
            assert (await ask("GET", "/health")).status_code == 503

    run(test())


@pytest.mark.parametrize("max_length", [512, None])
def test_other_lists_and_facts(tmp_path: Path, max_length: int | None) -> None:
    async def test() -> None:
        async with front(tmp_path, Doubles(Double("far", max_length=max_length))) as ask:
            assert [row["name"] for row in (await ask.json("/api/tags"))["models"]] == ["far:latest"]
            assert (await ask.json("/api/ps"))["models"] == []
            info = await ask.json("/info")
            assert (info["model_id"], info.get("max_input_length")) == ("far", max_length)
            assert (await ask.json("/meta"))["model_name"] == "far"
            assert (await ask.json("/v1/models/far"))["id"] == "far"

    run(test())


def test_embeddings_go_there_too(tmp_path: Path) -> None:
    async def test() -> None:
        model = Double("far")
        async with front(tmp_path, Doubles(model)) as ask:
            found = await ask.json("/v1/embeddings", {"model": "far", "input": ["a", "b"]})
            assert [row["embedding"] for row in found["data"]] == [[1.0, 1.0]] * 2
            ((request, _, _),) = model.asked
            assert isinstance(request, EmbedRequest)
            assert request.texts == ("a", "b")
            loaded = await ask.json("/api/embed", {"model": "far", "input": []})
            assert loaded["embeddings"] == []

    run(test())


def test_what_only_this_machine_can_do_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with front(tmp_path, Doubles(Double("far")), admin_api=True) as ask:
            for method, path in (
                ("POST", "/v1/models/far/reload"),
                ("POST", "/v1/models/far/load"),
                ("POST", "/v1/models/far/unload"),
                ("POST", "/api/show"),
                ("POST", "/api/generate"),
            ):
                answer = await ask(method, path, json={"model": "far"})
                assert answer.status_code == 409, path
                assert "far is served elsewhere (2 upstream servers)" in answer.text
            with pytest.raises(Conflict):
                _ = ask.reranker.model

    run(test())


def test_too_many_requests_are_refused_and_shares_are_fair(tmp_path: Path) -> None:
    async def test() -> None:
        model = Double("far")
        model.gate.clear()
        async with front(tmp_path, Doubles(model), max_requests=4) as ask:
            answer = ask.reranker.answer
            greedy = [asyncio.create_task(answer(_REQUEST, client=Client("greedy"))) for _ in range(4)]
            while len(model.asked) < 3:
                await asyncio.sleep(0)
            done, _ = await asyncio.wait(greedy, return_when=asyncio.FIRST_COMPLETED)
            (refused,) = done
            assert isinstance(refused.exception(), Overloaded)
            assert "This client has used its share of the queue (3 requests)" in str(refused.exception())
            other = asyncio.create_task(answer(_REQUEST, client=Client("other")))
            while len(model.asked) < 4:
                await asyncio.sleep(0)
            model.gate.set()
            results = await asyncio.gather(*greedy, other, return_exceptions=True)
            assert sum(isinstance(one, RerankdError) for one in results) == 1
            assert ask.reranker.registry.remote_calls.usage(model).requests == 0

    run(test())


def test_a_request_that_takes_too_long(tmp_path: Path) -> None:
    async def test() -> None:
        model = Double("far")
        model.gate.clear()
        async with front(tmp_path, Doubles(model)) as ask:
            with pytest.raises(EngineTimeout, match=r"deadline of 0\.02 s"):
                await ask.reranker.answer(_REQUEST, timeout_s=0.02)
            with pytest.raises(EngineTimeout, match=r"deadline of 0\.02 s"):
                await ask.reranker.answer_all([_REQUEST, _REQUEST], timeout_s=0.02)
            assert ask.reranker.registry.remote_calls.usage(model).requests == 0

    run(test())


def test_a_drain_waits_for_requests_elsewhere(tmp_path: Path) -> None:
    async def test() -> None:
        model = Double("far")
        model.gate.clear()
        remote = Doubles(model)
        async with front(tmp_path, remote) as ask:
            asked = asyncio.create_task(ask.reranker.answer(_REQUEST))
            while not model.asked:
                await asyncio.sleep(0)
            drain = asyncio.create_task(ask.reranker.drain())
            while not ask.reranker.registry.setup.is_closing:
                await asyncio.sleep(0)
            with pytest.raises(Stopping):
                await ask.reranker.answer(_REQUEST)
            assert not drain.done()
            assert not remote.is_closed
            model.gate.set()
            await drain
            assert remote.is_closed
            assert (await asked).model == "far"

    run(test())


def test_changed_settings_are_passed_on(tmp_path: Path) -> None:
    async def test() -> None:
        remote = Doubles(Double("far"))
        async with front(tmp_path, remote) as ask:
            changed = ask.reranker.settings.model_copy(update={"max_requests": 1})
            await ask.reranker.apply(changed)
            assert remote.applied == [changed]
            assert ask.reranker.registry.entries == ()

    run(test())


def test_the_startup_message_names_them(tmp_path: Path) -> None:
    async def test() -> None:
        import socket

        async with front(tmp_path, Doubles(Double("far"))) as ask:
            with socket.create_server(("127.0.0.1", 0)) as sock:
                message = serve._startup_message(ask.reranker, [sock])
            assert "serves far at" in message
            assert "  remote   far: served by 2 upstream servers" in message
            assert "    Model Name        far" in message
        nothing = Doubles()
        nothing.unlisted = (_DOWN,)
        async with front(tmp_path, nothing) as ask:
            with socket.create_server(("127.0.0.1", 0)) as sock:
                message = serve._startup_message(ask.reranker, [sock])
            assert "serves no model yet at" in message
            assert "  upstream gpu3 has not listed its models: It refuses connections." in message

    run(test())


def test_without_remote_models_nothing_changes(tmp_path: Path) -> None:
    assert not NoRemoteModels().replaces_local(Settings(home=tmp_path))
    assert Reranker(Settings(home=tmp_path)).registry.all == ()
