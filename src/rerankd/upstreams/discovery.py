"""Find out what a server is and which models it serves: rerankd, Text Embeddings Inference, or a server of
one of the shapes in remote_client.py."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from rerankd import remote_client
from rerankd.config import UpstreamSettings
from rerankd.errors import EngineError, EngineUnavailable, RemoteError, RerankdError, Stopping, UpstreamLoop
from rerankd.remote_client import PROBE, Shape
from rerankd.upstreams import rerankd_wire
from rerankd.upstreams.connection import Connection, Response
from rerankd.upstreams.refusals import TryAnother, error_of, unauthorized

# Phases of a model on another rerankd in which it can answer the next request.
_CAN_ANSWER = ("ready", "unloaded")
# How long a server may take to answer a check, and a trial request, for which it may load its model.
CHECK_S = 5.0
_TRIAL_S = 30.0


@dataclass(frozen=True, slots=True)
class Kind:
    """What a server is. `shape` is None for rerankd. `most` is the most texts in one request."""

    name: Literal["rerankd", "Text Embeddings Inference", "another server"]
    shape: Shape | None = None
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """A model of a server: its names there, the displayed one first. `problem`: why it can't answer now, ""
    if it can; `is_starting`: it will soon."""

    names: tuple[str, ...]
    max_length: int | None = None
    is_embedder: bool = False
    problem: str = ""
    is_starting: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """A server's state: its models, and why it takes no requests at all, None if it does. `behind`:
    identities of the servers that it passes requests on to, its own included."""

    kind: Kind
    models: tuple[Served, ...]
    problem: RerankdError | None = None
    behind: tuple[str, ...] = ()


def base(url: str) -> str:
    """The path below which a server's own paths are, of the URL in the settings: that of /v1/rerank is ""."""
    path = httpx.URL(url).path.rstrip("/")
    endpoint = next((one.path for one in remote_client.SHAPES if path.endswith(one.path)), "")
    return path.removesuffix(endpoint).removesuffix("/v1")


class Explorer:
    """Asks one server. `identity` is that of the server that asks."""

    def __init__(self, name: str, settings: UpstreamSettings, connection: Connection, identity: str) -> None:
        self._name = name
        self._settings = settings
        self._connection = connection
        self._identity = identity
        self._base = base(settings.url)

    async def look(self, known: Kind | None) -> Found:
        """The state of the server. `known` is what it was before. Raises TryAnother or TimeoutError if it
        does not answer, or not as a rerank server does."""
        answer = await self._get(f"{self._base}/health")
        health = _json(answer)
        if isinstance(health, dict) and {"status", "engine", "models"} <= health.keys():
            return await self._rerankd(health)
        if answer.status in (502, 503, 504):
            raise TryAnother(
                EngineUnavailable(f"The upstream server {self._name} is not healthy: status {answer.status}.")
            )
        if known is not None and known.shape is not None and known.shape.key == "documents":
            return Found(known, self._named(await self._listed()))
        info = _json(await self._get(f"{self._base}/info"))
        if isinstance(info, dict) and isinstance(info.get("model_id"), str):
            return self._tei(info)
        return await self._other()

    async def _get(self, path: str) -> Response:
        async with asyncio.timeout(CHECK_S):
            return await self._connection.send("GET", path)

    async def _rerankd(self, health: Mapping[str, Any]) -> Found:
        answer = await self._get(f"{self._base}/v1/models")
        value = _json(answer)
        try:
            groups: dict[str, list[str]] = {}
            facts: dict[str, Any] = {}
            for row in value["data"]:
                groups.setdefault(str(row["model_name"]), []).append(str(row["id"]))
                facts.setdefault(str(row["model_name"]), row)
            states = {str(row["model"]): row["engine"] for row in health["models"]}
            models = [
                _served(name, names, facts[name], states.get(name, {})) for name, names in groups.items()
            ]
            behind = tuple(map(str, value.get("behind", ())))
        except (AttributeError, KeyError, TypeError):
            raise self._error(answer) from None
        problem: RerankdError | None = None
        if health["status"] == "stopping":
            problem = Stopping(f"The upstream server {self._name} is shutting down.")
        elif self._identity in behind:
            problem = UpstreamLoop(
                f"The upstream server {self._name} passes requests on to this server, so that they would "
                f"never end. Remove [upstreams.{self._name}] here, or the section for this server there."
            )
        wanted = self._settings.models
        if wanted:
            missing = [one for one in wanted if not any(one in model.names for model in models)]
            models = [one for one in models if {*one.names} & {*wanted}]
            models += [
                Served(
                    (one,), problem=f"it lists no model {one!r}", is_starting=health["status"] == "starting"
                )
                for one in missing
            ]
        return Found(Kind("rerankd"), tuple(models), problem, behind)

    def _tei(self, info: Mapping[str, Any]) -> Found:
        kind = Kind(
            "Text Embeddings Inference", Shape(f"{self._base}/rerank", "texts"), remote_client.tei_bound(info)
        )
        length = info.get("max_input_length")
        model = Served(
            self._settings.models or (info["model_id"],),
            max_length=length if isinstance(length, int) else None,
            is_embedder="embedding" in (info.get("model_type") or {}),
        )
        return Found(kind, (model,))

    async def _other(self) -> Found:
        """Try one request in each shape."""
        models = self._named(await self._listed(), is_required=False)
        refusals = []
        for shape in remote_client.shapes(httpx.URL(self._settings.url).path.rstrip("/")):
            body = remote_client.body(shape, *PROBE, models[0].names[0] if models else None)
            async with asyncio.timeout(_TRIAL_S):
                answer = await self._connection.send("POST", shape.path, body=rerankd_wire.encoded(body))
            if answer.status in (401, 403):
                raise TryAnother(unauthorized(self._name, answer.status))
            try:
                if answer.status != 200:
                    raise RemoteError(f"status {answer.status}")
                remote_client.read(_json(answer), len(PROBE[1]))
            except RemoteError as error:
                refusals.append(f"  {shape.path} with {shape.key}: {error.message}")
                continue
            kind = Kind("another server", shape)
            return Found(kind, self._named([name for one in models for name in one.names]))
        raise TryAnother(
            EngineError(
                f"The upstream server {self._name} accepts none of the known rerank requests. Give the full "
                "URL of its rerank endpoint, such as http://HOST:PORT/v1/rerank.\n" + "\n".join(refusals)
            )
        )

    async def _listed(self) -> list[str]:
        """The models that the server lists as OpenAI's servers do; [] if it lists none."""
        if self._settings.models:
            return []
        value = _json(await self._get(f"{self._base}/v1/models"))
        rows = value.get("data") if isinstance(value, dict) else None
        return [row["id"] for row in rows or () if isinstance(row, dict) and isinstance(row.get("id"), str)]

    def _named(self, listed: list[str], *, is_required: bool = True) -> tuple[Served, ...]:
        names = self._settings.models or listed
        if not names and is_required:
            raise TryAnother(
                EngineError(
                    f"The upstream server {self._name} does not list its models. Name them in "
                    f'[upstreams.{self._name}]: models = ["…"]'
                )
            )
        return tuple(Served((one,)) for one in names)

    def _error(self, answer: Response) -> TryAnother:
        """Why a rerankd does not list its models."""
        found = error_of(self._name, answer.status, answer.headers, answer.data)
        if answer.status == 200:
            found = EngineError(f"The upstream server {self._name} lists its models in an unknown form.")
        return found if isinstance(found, TryAnother) else TryAnother(found)


def _served(name: str, names: list[str], facts: Mapping[str, Any], engine: Mapping[str, Any]) -> Served:
    """A model of a rerankd. Cascades have no state of an engine."""
    phase = str(engine.get("state", "ready"))
    length = facts.get("max_model_len")
    reason = str(engine.get("error", ""))
    return Served(
        tuple(dict.fromkeys((name, *names))),
        max_length=length if isinstance(length, int) else None,
        is_embedder=facts.get("method") == "embedding",
        problem="" if phase in _CAN_ANSWER else f"the model is {phase}{f': {reason}' if reason else ''}",
        is_starting=phase == "starting",
    )


def _json(answer: Response) -> Any:
    """The JSON of a response, None if it is none."""
    try:
        return json.loads(answer.data)
    except (ValueError, RecursionError):
        return None
