"""The settings of the service itself: where it listens, who may ask, and what a request may cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from rerankd.backends.options import Needs, Options, setting
from rerankd.config import folders
from rerankd.config.model_settings import DAY_S, MemoryBytes, Names, Seconds
from rerankd.logs import LogFormat


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
    return "".join(f"/{part}" for part in value.split("/") if part) if isinstance(value, str) else value


class FixedSettings(Options):
    """What a running service can't take over from a file that is read again."""

    needs: ClassVar[Needs] = "restart"

    host: str = Field("127.0.0.1", pattern=r"\S", description="address to listen on; 0.0.0.0 for all")
    port: int = setting(
        11440, environment="LLAMA_PORT", ge=0, le=65535, description="port to listen on; 0 picks a free one"
    )
    api_prefix: Annotated[str, BeforeValidator(_slashed)] = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="serve all paths under this one too, as in /llm/v1/rerank",
    )
    home: Path = setting(
        default_factory=folders.user_data, names_program=True, description="folder for models and logs"
    )
    memory_budget: MemoryBytes = Field(
        None,
        description="bytes that all engines may hold together, of GPU memory where they work there; when "
        "not set, four fifths of the machine's memory and of each card",
    )
    # So that two models in turn don't spend all their time on loading.
    least_stay_s: float = Field(
        5.0,
        ge=0,
        le=DAY_S,
        description="seconds that a model at work stays loaded before it makes room for one that waits",
    )
    header_timeout_s: Seconds = Field(10, description="seconds a client may take to send its headers")
    send_timeout_s: Seconds = Field(
        60, description="seconds an answer may wait for a client that does not read it"
    )
    keep_alive_s: Seconds = Field(
        75, description="seconds a connection stays open for the client's next request"
    )
    max_connections: int | None = Field(
        None,
        ge=1,
        le=2**20,
        description="open connections; when not set, what the limit of open files leaves room for",
    )
    log_format: LogFormat = Field(
        "text", description="how log lines are written: text, or json, one object a line"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="how much is logged")


class LiveSettings(Options):
    """What a running service takes over without touching an engine."""

    needs: ClassVar[Needs] = "live"

    api_key: Annotated[str | None, BeforeValidator(_sendable)] = Field(
        None, description="when set, requests must carry it as a bearer token; other users can see a flag"
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
    strict_model_names: bool = Field(
        False, description="refuse a model name that is not served, even where only one model is"
    )
    admin_api: bool = Field(
        False, description="let clients load, unload, pull and delete models; set a key as well"
    )
    request_timeout_s: Seconds = Field(120, description="seconds a request may take")
    body_timeout_s: Seconds = Field(60, description="seconds a client may take to send its body")
    drain_timeout_s: float = Field(
        30, ge=0, le=DAY_S, description="seconds that requests under way get to finish after SIGTERM"
    )
    max_body_bytes: int = Field(
        32 * 2**20, ge=1024, le=2**31, description="the largest request body that is read"
    )
    max_documents: int = Field(10_000, ge=1, le=1_000_000, description="documents that one request may hold")
    max_document_characters: int = Field(
        1_000_000, ge=1, le=2**30, description="characters that a document may have"
    )
    max_requests: int = Field(256, ge=1, le=100_000, description="requests under way or waiting, before 429")
    max_queue_documents: int = Field(
        20_000,
        ge=1,
        le=10**8,
        description="documents of all requests under way or waiting, before 429; each chunk of a document "
        "counts",
    )
    max_queue_tokens: int = Field(
        8_000_000, ge=1, le=10**12, description="tokens of all requests under way or waiting, before 429"
    )
    max_queue_bytes: int = Field(
        256 * 2**20,
        ge=1024,
        le=2**40,
        description="bytes of text of all requests under way or waiting, before 429",
    )
    open_metrics: bool = Field(False, description="answer /metrics without the API key")
    access_log: bool = Field(False, description="log each request: method, path, status, time, model and key")
