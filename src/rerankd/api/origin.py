"""CORS, CSRF and DNS rebinding: which web pages and host names may use the service.

A browser runs the code of every page that its user opens, and that code can send requests to this machine.
Two checks protect the service:

- **Host.** If the name evil.example resolves to 127.0.0.1 (DNS rebinding), its page has the same origin as
  the service, and the browser lets the page read all responses. But the page can't choose the Host header,
  which is still evil.example. See `host_refusal`.
- **Origin.** A page of another origin can't read responses, but its requests arrive and take effect. The
  browser sends the page's origin with every POST and DELETE. See `change_refusal` and `work_refusal`.

Programs other than browsers send no Origin, and a Host that their user typed.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import logging
import re
import socket
import time
from collections.abc import Mapping, Sequence

from fastapi import Request
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rerankd import logs
from rerankd.api.disconnect import discard
from rerankd.api.limits import reranker_in
from rerankd.api.responses import error_response, request_id
from rerankd.config import Settings
from rerankd.errors import HostNotAllowed, OriginNotAllowed, RerankdError, UnsupportedMediaType
from rerankd.service import Reranker

_access = logging.getLogger("rerankd.access")

# The names by which containers reach the host machine in Docker and Podman.
_OF_CONTAINERS = ("host.docker.internal", "host.containers.internal")
_HOST = re.compile(r"(?:(?P<name>[^:/@\[\]]+)|\[(?P<address>[0-9a-f:.]+(?:%[^]]*)?)\])(?::\d*)?")
# The content types that an HTML form, or a fetch without a preflight, can send.
_FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")


def host_refusal(host: str | None, settings: Settings, server: str | None, *, has_keys: bool) -> str | None:
    """Return why a request with this Host header is rejected, or None if it is allowed.

    `server` is the local address that received the request. Host names are checked if the service listens on
    a loopback address and needs no key, or if `allowed_hosts` is set.
    """
    on_loopback = not has_keys and is_loopback(settings.host) and server is not None and is_loopback(server)
    if (
        host is None
        or not (on_loopback or settings.allowed_hosts)
        or is_own_host(host, settings.allowed_hosts)
    ):
        return None
    return (
        f"The host name {_shown(host)} is not allowed. If it is a name of this server, add it to "
        "allowed_hosts (RERANKD_ALLOWED_HOSTS) or set api_key. Behind nginx, 'proxy_set_header Host "
        "localhost;' works too."
    )


def is_own_host(host: str, allowed: Sequence[str]) -> bool:
    """Return whether a Host header has a name that no foreign page can have: a loopback name, an IP address,
    the machine's own name, a container's name for the host, or one of `allowed`."""
    name = _name(host)
    return name is not None and (
        _address(name) is not None
        or is_loopback(name)
        or name in _OF_CONTAINERS
        or name in _names_of_machine()
        or any(_matches(name, pattern) for pattern in allowed)
    )


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's loopback, unreachable from others."""
    address = _address(host)
    if address is not None:
        return address.is_loopback
    return host == "localhost" or host.endswith(".localhost")


def change_refusal(headers: Mapping[str, str], settings: Settings, *, has_keys: bool) -> RerankdError | None:
    """Return the error for a request that must not change the service, or None.

    Rejected are pages of other origins, and content types that an HTML form can send. If the service needs no
    key, a page of the same origin is trusted only if `is_own_host` accepts its host name.
    """
    origin, host = headers.get("origin"), headers.get("host", "")
    # Old browsers send forms without an Origin.
    is_page = origin is not None or headers.get("sec-fetch-site") in ("cross-site", "same-site")
    if is_page and _is_same_origin(headers):
        if not has_keys and not is_own_host(host, settings.allowed_hosts):
            return HostNotAllowed(
                f"A web page from {_shown(host)} is not allowed to change this server, because no API key is "
                "set. Add the name to allowed_hosts (RERANKD_ALLOWED_HOSTS), or set api_key."
            )
    elif is_page and not _is_allowed(origin, settings.allowed_origins):
        return OriginNotAllowed(
            f"A web page from {_shown(origin or 'another site')} is not allowed to change this server. To "
            "allow it, add its origin to allowed_origins (RERANKD_ALLOWED_ORIGINS)."
        )
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _FORM_TYPES:
        return UnsupportedMediaType(
            f"Requests that change this server can't have the content type {kind}, because any web page can "
            "send it. Use 'Content-Type: application/json', or send neither a body nor a content type."
        )
    return None


def work_refusal(headers: Mapping[str, str], settings: Settings) -> RerankdError | None:
    """Return the error for a web page of another machine that requests work without a key, or None.

    Apps with an embedded page (Electron, Tauri, browser extensions) are allowed: their origin has its own
    scheme, which no web page can have.
    """
    origin = headers.get("origin")
    if origin is None or _is_same_origin(headers) or _is_allowed(origin, settings.allowed_origins):
        return None
    scheme, _, netloc = origin.lower().partition("://")
    # The origin "null" is a sandboxed frame, which any page can contain.
    if scheme not in ("http", "https", "null") or (scheme != "null" and is_loopback(_name(netloc) or "")):
        return None
    return OriginNotAllowed(
        f"A web page from {_shown(origin)} is not allowed to use this server, because no API key is set. To "
        "allow it, add its origin to allowed_origins (RERANKD_ALLOWED_ORIGINS)."
    )


def _is_same_origin(headers: Mapping[str, str]) -> bool:
    # The scheme is not compared, because TLS may end at a proxy. Sec-Fetch-Site is set by the browser,
    # can't be forged by a page, and is right even if a proxy has replaced the Host.
    origin = headers.get("origin", "").lower().partition("://")[2]
    same_host = origin != "" and origin == headers.get("host", "").lower()
    return same_host or headers.get("sec-fetch-site") == "same-origin"


def _is_allowed(origin: str | None, allowed: Sequence[str]) -> bool:
    return origin is not None and re.fullmatch(_pattern(tuple(allowed)), origin, re.IGNORECASE) is not None


def check_change(request: Request, reranker: Reranker) -> None:
    """Raise OriginNotAllowed, HostNotAllowed or UnsupportedMediaType for a request that must not change the
    service (see `change_refusal`)."""
    refused = change_refusal(request.headers, reranker.settings, has_keys=bool(reranker.keys))
    if refused is not None:
        raise refused


class Gate:
    """ASGI middleware: checks Host and Origin, handles CORS preflights, and writes the access log.

    An app that includes `rerankd.router` applies its own rules instead; only `check_change` applies there
    too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._cors: tuple[tuple[str, ...], ASGIApp] = ((), app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive) if scope["type"] == "http" else None
        reranker = reranker_in(request) if request is not None else None
        if request is None or reranker is None:
            return await self._app(scope, receive, send)
        logs.belongs_to(request_id(request))
        level = logging.INFO if reranker.settings.access_log else logging.DEBUG
        if _access.isEnabledFor(level):
            send = _logged(request, send, level)
        refused = _refusal(request, reranker)
        if refused is not None:
            await discard(receive, request.headers, reranker.settings.max_body_bytes)
            answer = error_response(request, refused, {"connection": "close"})
            return await answer(scope, receive, send)
        if scope["method"] == "HEAD":  # the server omits the body
            scope = {**scope, "method": "GET"}
        await self._for(reranker.settings.allowed_origins)(scope, receive, send)

    def _for(self, allowed: tuple[str, ...]) -> ASGIApp:
        """Return the app with CORS for these origins, which a reload can change."""
        if self._cors[0] != allowed:
            app = CORSMiddleware(
                self._app,
                allow_origins=["*"] if "*" in allowed else (),
                allow_origin_regex=f"(?i:{_pattern(allowed)})",
                allow_methods=["GET", "HEAD", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=["retry-after", "x-request-id"],
            )
            self._cors = (allowed, app)
        return self._cors[1] if allowed else self._app


def _logged(request: Request, send: Send, level: int) -> Send:
    """Wrap `send` to write an access log line when the response starts. The query string is not logged,
    because it may contain a key."""
    started = time.perf_counter()

    async def logged(message: Message) -> None:
        await send(message)
        if message["type"] != "http.response.start":
            return
        state, status = request.state, message["status"]
        model, key = getattr(state, "model", ""), getattr(state, "key", "")
        path = request.scope.get("raw_path", b"").decode("latin-1").partition("?")[0][:200]
        duration_ms = round((time.perf_counter() - started) * 1000, 1)
        logs.belongs_to(request_id(request), key)
        fields = {"method": request.method, "path": path, "status": status, "duration_ms": duration_ms}
        _access.log(
            level,
            "%s %s %d %s ms %s",
            *fields.values(),
            model,
            extra={"fields": {**fields, **({"model": model} if model else {})}},
        )

    return logged


def _refusal(request: Request, reranker: Reranker) -> RerankdError | None:
    settings, headers, scope = reranker.settings, request.headers, request.scope
    has_keys = bool(reranker.keys)
    # A UNIX socket has no port, and no browser can connect to it.
    server = scope["server"][0] if scope.get("server") and scope["server"][1] is not None else None
    why = host_refusal(headers.get("host"), settings, server, has_keys=has_keys)
    if why is not None:
        return HostNotAllowed(why)
    if has_keys or scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return None
    return work_refusal(headers, settings)


@functools.lru_cache(maxsize=8)
def _pattern(allowed: tuple[str, ...]) -> str:
    """Return a regular expression for these origins, in which * matches any part of a name."""
    if "*" in allowed:
        return ".*"
    return "|".join(re.escape(one.rstrip("/")).replace(r"\*", "[^/]*") for one in allowed) or "(?!)"


@functools.cache
def _names_of_machine() -> frozenset[str]:
    name = socket.gethostname().lower().rstrip(".")
    first = name.partition(".")[0]
    return frozenset({name, first, f"{first}.local"}) - {"", ".local"}


def _name(host: str) -> str | None:
    """Return the name in a Host header without port, brackets and final dot; None if it is not a host."""
    found = _HOST.fullmatch(host.strip().lower())
    return (found["name"] or found["address"]).rstrip(".") or None if found else None


def _shown(text: str) -> str:
    return repr(text[:100])


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name.partition("%")[0])
    return None


def _matches(name: str, pattern: str) -> bool:
    pattern = pattern.lower().rstrip(".")
    return pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:]))
