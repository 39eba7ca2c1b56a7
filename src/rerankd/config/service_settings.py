"""Settings of the service: address, API keys, allowed hosts, timeouts and request limits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from rerankd.backends.options import Needs, Options, setting
from rerankd.config import folders
from rerankd.config.model_settings import DAY_S, MemoryBytes, Names, Seconds
from rerankd.logs import LogFormat


def _sendable(value: object) -> object:
    """Strip a key, since files and shells often append a line break; reject what a header can't contain."""
    if not isinstance(value, str):
        return value
    key = value.strip()
    if not key:
        raise ValueError(
            "an empty value would admit every client; set a value, or remove the setting to require no key"
        )
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in key):
        raise ValueError("a header can't contain line breaks or control characters")
    return key


def _none_or_enough(megabytes: int) -> int:
    if 0 < megabytes < 32:
        raise ValueError("must be 0 or at least 32")
    return megabytes


def _in_utf8(key: str | None) -> str | None:
    if key is not None and any("\ud800" <= letter <= "\udfff" for letter in key):
        raise ValueError("it contains bytes that are not text")
    return key


ApiKey = Annotated[str | None, BeforeValidator(_sendable), AfterValidator(_in_utf8)]


def _slashed(value: object) -> object:
    return "".join(f"/{part}" for part in value.split("/") if part) if isinstance(value, str) else value


class FixedSettings(Options):
    """Settings that take effect only when rerankd restarts."""

    needs: ClassVar[Needs] = "restart"

    host: str = Field("127.0.0.1", pattern=r"\S", description="address to listen on; 0.0.0.0 for all")
    port: int = setting(
        11440, environment="LLAMA_PORT", ge=0, le=65535, description="port to listen on; 0 picks a free one"
    )
    api_prefix: Annotated[str, BeforeValidator(_slashed)] = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="path prefix under which all paths are served as well; /llm: /llm/v1/rerank",
    )
    home: Path = setting(
        default_factory=folders.user_data, names_program=True, description="folder for models and logs"
    )
    # Who can write there can change scores, so a settings file in the current folder does not choose it.
    cache_path: Path | None = setting(
        None,
        names_program=True,
        description="folder on a local disk for scores and vectors that survive a restart; if not set, they "
        "are kept in memory only",
    )
    cache_disk_mb: int = Field(
        256, ge=32, le=2**24, description="maximum MiB of scores in cache_path; about 80 bytes each"
    )
    vectors_disk_mb: Annotated[int, AfterValidator(_none_or_enough)] = Field(
        1024,
        ge=0,
        le=2**24,
        description="maximum MiB of vectors in cache_path, of embeddings and of documents of "
        "late_interaction models; at least 32, or 0 to write none",
    )
    cache_ttl_s: float = Field(
        30 * DAY_S,
        ge=0,
        le=3650 * DAY_S,
        description="seconds after which a score or vector in cache_path is not used any more; 0: never",
    )
    memory_budget: MemoryBytes = Field(
        None,
        description="bytes of memory that all engines together may use (GPU memory for engines on a GPU); "
        "if not set, 80 % of the machine's memory and of each GPU's",
    )
    # Prevents two models that are requested alternately from spending all their time on loading.
    least_stay_s: float = Field(
        5.0,
        ge=0,
        le=DAY_S,
        description="minimum seconds that a busy model stays loaded before another model may evict it",
    )
    header_timeout_s: Seconds = Field(10, description="timeout in seconds for a client to send its headers")
    send_timeout_s: Seconds = Field(60, description="timeout in seconds for a client to read its response")
    keep_alive_s: Seconds = Field(75, description="seconds before an idle connection is closed")
    max_connections: int | None = Field(
        None,
        ge=1,
        le=2**20,
        description="maximum open connections; if not set, derived from the limit of open files (ulimit -n)",
    )
    max_image_pixels: int = Field(
        50_000_000,
        ge=1024,
        le=2**31,
        description="maximum pixels of one image; the engine takes up to 16 bytes of memory for each while "
        "it decodes the image",
    )
    log_format: LogFormat = Field("text", description="format of the log: text, or json (one object a line)")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="lowest severity that is logged: debug, info, warning or error"
    )
    ray_ingresses: int = Field(
        1, ge=1, le=1000, description="Ray Serve: replicas of the ingress, which speaks HTTP"
    )


class LiveSettings(Options):
    """Settings that take effect when they are reloaded, without a restart of any engine."""

    needs: ClassVar[Needs] = "live"

    api_key: ApiKey = Field(
        None,
        description="API key that requests must send as a bearer token; other users of the machine can see "
        "the value of a flag",
    )
    api_keys_file: Annotated[Path | None, BeforeValidator(_sendable)] = Field(
        None,
        description="file of named API keys, whose names appear in logs and metrics; see `rerankd key new`",
    )
    allowed_hosts: Names = Field(
        (),
        description="additional host names to accept, such as a proxy's; *.example.com: all its subdomains; "
        "*: any. Other hosts are rejected if this is set, or if rerankd listens on a loopback address and "
        "requires no key",
    )
    allowed_origins: Names = Field(
        (),
        description="origins (CORS) of web pages and browser extensions that may use the service and read "
        "its responses, such as https://app.example.com or chrome-extension://*; *: any",
    )
    strict_model_names: bool = Field(
        False, description="reject unknown model names even if only one model is served"
    )
    admin_api: bool = Field(
        False, description="allow clients to load, unload, pull and delete models; set an API key as well"
    )
    request_timeout_s: Seconds = Field(120, description="timeout of a request in seconds")
    body_timeout_s: Seconds = Field(60, description="timeout in seconds for a client to send its body")
    drain_timeout_s: float = Field(
        30, ge=0, le=DAY_S, description="seconds that requests in progress may take to finish after SIGTERM"
    )
    max_body_bytes: int = Field(
        32 * 2**20, ge=1024, le=2**31, description="maximum size of a request body in bytes"
    )
    max_documents: int = Field(10_000, ge=1, le=1_000_000, description="maximum documents in one request")
    max_document_characters: int = Field(
        1_000_000, ge=1, le=2**30, description="maximum characters in one document"
    )
    image_urls: bool = Field(
        False,
        description="fetch images that requests name by URL; only from public addresses, without a proxy",
    )
    max_requests: int = Field(
        256, ge=1, le=100_000, description="maximum requests queued or in progress; more get status 429"
    )
    max_queue_documents: int = Field(
        20_000,
        ge=1,
        le=10**8,
        description="maximum documents of all requests queued or in progress; more get status 429; each "
        "chunk of a document counts",
    )
    max_queue_tokens: int = Field(
        8_000_000,
        ge=1,
        le=10**12,
        description="maximum tokens of all requests queued or in progress; more get status 429",
    )
    max_queue_bytes: int = Field(
        256 * 2**20,
        ge=1024,
        le=2**40,
        description="maximum bytes of text of all requests queued or in progress; more get status 429",
    )
    open_metrics: bool = Field(False, description="serve /metrics without an API key")
    access_log: bool = Field(False, description="log each request: method, path, status, time, model and key")
