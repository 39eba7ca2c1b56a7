"""The interface of models that are served elsewhere: on other servers, or by replicas in a cluster.

A remote model answers whole requests. rerankd has no file, recipe or engine of it, so it neither tokenizes
nor normalizes anything for it. The registry lists remote models after its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from rerankd.client import Client
from rerankd.config import Settings
from rerankd.domain import RerankRequest
from rerankd.embedding import EmbedRequest, EmbedResult
from rerankd.errors import RerankdError
from rerankd.rerank_result import RerankResult

Phase = Literal["starting", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class RemoteState:
    """Whether a remote model can answer, and `since` when (monotonic clock). `starting`: no place has
    answered yet. `failed`: none can answer now, for the reason `error`."""

    phase: Phase = "starting"
    error: RerankdError | None = None
    since: float = field(default_factory=time.monotonic)
    starts: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """A server or replica that answers for a model, as shown to users. `requests` are under way; `answered`
    and `failed` count calls since the start. `error`: why it can't answer now."""

    name: str
    phase: Phase
    requests: int = 0
    answered: int = 0
    failed: int = 0
    error: str = ""


class RemoteModel(Protocol):
    """A model that is served elsewhere. `names[0]` is displayed. `where` says in words who answers.
    `max_length` is in tokens of a pair, None if it is not known. `is_embedder`: it returns vectors; a model
    that is not known to do so may still answer."""

    names: tuple[str, ...]
    where: str
    max_length: int | None
    is_embedder: bool

    @property
    def name(self) -> str:
        """The displayed name."""
        return self.names[0]

    @property
    def state(self) -> RemoteState: ...

    @property
    def places(self) -> Sequence[Place]: ...

    def retry_after_s(self) -> int | None:
        """Seconds until a failed model is tried again; None if that is not known."""

    async def answer(self, request: RerankRequest, timeout_s: float, client: Client) -> RerankResult:
        """Answer a request. It has no warnings and wants no documents back: the service adds both. Raises
        the errors of the error tree, as a local model does."""

    async def embed(self, request: EmbedRequest, timeout_s: float, client: Client) -> EmbedResult:
        """Return the vectors of texts. Raises the errors of the error tree."""


class RemoteModels(Protocol):
    """The owner of all remote models. `on_change` is called when `models` or the state of one changes."""

    on_change: Callable[[], None]

    @property
    def models(self) -> tuple[RemoteModel, ...]:
        """The models, in order; they may change while rerankd runs."""

    @property
    def unlisted(self) -> Sequence[Place]:
        """The places whose models are not known, because they have not answered yet."""
        return ()

    @property
    def is_complete(self) -> bool:
        """Whether every place has listed its models. Until then, an unknown name may be a model's."""
        return not self.unlisted

    @property
    def behind(self) -> tuple[str, ...]:
        """Identities of the servers that a request may pass, this one's first; () if none is passed on.
        Another server that passes requests on to this one finds circles with them."""
        return ()

    def replaces_local(self, settings: Settings) -> bool:
        """Whether rerankd itself serves no model with these settings."""

    async def start(self) -> None:
        """Find the models. Returns when every place has answered once or failed to."""

    def apply(self, settings: Settings) -> None:
        """Use changed settings."""

    async def metrics(self, own: bytes) -> bytes:
        """The page for Prometheus: `own`, and what the places report that is not in it."""
        return own

    async def close(self) -> None:
        """Abandon all calls. Safe to call again."""


class NoRemoteModels(RemoteModels):
    """All models are served here."""

    models = ()

    def __init__(self) -> None:
        self.on_change = lambda: None

    def replaces_local(self, settings: Settings) -> bool:
        return False

    async def start(self) -> None:
        pass

    def apply(self, settings: Settings) -> None:
        pass

    async def close(self) -> None:
        pass
