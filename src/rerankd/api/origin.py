"""Which web pages and which host names may reach the service.

A browser runs the code of any page that its user opens, and that code can send requests to this machine. Two
rules keep it out:

- **Host.** A page of evil.example whose name is pointed at 127.0.0.1 (DNS rebinding) has the same origin as
  the service, so the browser lets it read everything. It can't choose the Host header, though: that one names
  evil.example. See `host_refusal`.
- **Origin.** A page of another origin can't read answers, but its requests arrive and have their effect. A
  browser names the page's origin in each POST and DELETE. See `change_refusal` and `work_refusal`.

Programs other than browsers send no Origin, and a Host that was typed by their user.
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

# Docker's and Podman's names for the host machine, which containers use to reach it.
_OF_CONTAINERS = ("host.docker.internal", "host.containers.internal")
_HOST = re.compile(r"(?:(?P<name>[^:/@\[\]]+)|\[(?P<address>[0-9a-f:.]+(?:%[^]]*)?)\])(?::\d*)?")
# What an HTML form, or a fetch without a preflight, can send.
_FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")


def host_refusal(host: str | None, settings: Settings, server: str | None, *, has_keys: bool) -> str | None:
    """Why a request with this Host header is refused; None where it is served.

    `server` is the local address that the request came in at. Names are checked where the service listens
    on a loopback address and asks for no key, and where `allowed_hosts` is set.
    """
    on_loopback = not has_keys and is_loopback(settings.host) and server is not None and is_loopback(server)
    if (
        host is None
        or not (on_loopback or settings.allowed_hosts)
        or is_own_host(host, settings.allowed_hosts)
    ):
        return None
    return (
        f"This server is not served under the host name {_shown(host)}. If the name is right, add it to "
        "allowed_hosts (RERANKD_ALLOWED_HOSTS), or set api_key. Behind nginx, either that or "
        "'proxy_set_header Host localhost;'."
    )


def is_own_host(host: str, allowed: Sequence[str]) -> bool:
    """Whether a Host header names this machine in a way that a foreign page can't: a loopback name, an IP
    address, the machine's own name, a container's name for it, or one of `allowed`."""
    name = _name(host)
    return name is not None and (
        _address(name) is not None
        or is_loopback(name)
        or name in _OF_CONTAINERS
        or name in _names_of_machine()
        or any(_matches(name, pattern) for pattern in allowed)
    )


def is_loopback(host: str) -> bool:
    """Whether a host name or an address means this machine, and nobody else can reach it."""
    address = _address(host)
    if address is not None:
        return address.is_loopback
    return host == "localhost" or host.endswith(".localhost")


def change_refusal(headers: Mapping[str, str], settings: Settings, *, has_keys: bool) -> RerankdError | None:
    """Why a request may not change the service: its page is of another origin, or a form may have sent it.

    Without a key, a page of the same origin is only trusted where its host name is (see `is_own_host`).
    """
    origin, host = headers.get("origin"), headers.get("host", "")
    # Old browsers send a form without an Origin.
    is_page = origin is not None or headers.get("sec-fetch-site") in ("cross-site", "same-site")
    if is_page and _is_same_origin(headers):
        if not has_keys and not is_own_host(host, settings.allowed_hosts):
            return HostNotAllowed(
                f"A page of {_shown(host)} may not change this server, which asks for no key. Add the name "
                "to allowed_hosts (RERANKD_ALLOWED_HOSTS), or set api_key."
            )
    elif is_page and not _is_allowed(origin, settings.allowed_origins):
        return OriginNotAllowed(
            f"A page of {_shown(origin or 'another site')} may not change this server. If it should, add its "
            "origin to allowed_origins (RERANKD_ALLOWED_ORIGINS)."
        )
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _FORM_TYPES:
        return UnsupportedMediaType(
            f"A request that changes this server can't be of type {kind}, which any web page can send. Send "
            "it with the header 'Content-Type: application/json', or without body and Content-Type."
        )
    return None


def work_refusal(headers: Mapping[str, str], settings: Settings) -> RerankdError | None:
    """Why a page may not have this machine work for it, where no key is asked for.

    Only web pages of other machines are refused: apps with a page inside (Electron, Tauri, browser
    extensions) have an origin with a scheme of their own, which no web page can claim.
    """
    origin = headers.get("origin")
    if origin is None or _is_same_origin(headers) or _is_allowed(origin, settings.allowed_origins):
        return None
    scheme, _, netloc = origin.lower().partition("://")
    # "null" is a sandboxed frame, of any page.
    if scheme not in ("http", "https", "null") or (scheme != "null" and is_loopback(_name(netloc) or "")):
        return None
    return OriginNotAllowed(
        f"A page of {_shown(origin)} may not use this server, which asks for no key. If it should, add its "
        "origin to allowed_origins (RERANKD_ALLOWED_ORIGINS)."
    )


def _is_same_origin(headers: Mapping[str, str]) -> bool:
    # The scheme is not compared: TLS may end at a proxy. The browser's own word, which a page can't forge,
    # also holds where a proxy has replaced the Host.
    origin = headers.get("origin", "").lower().partition("://")[2]
    same_host = origin != "" and origin == headers.get("host", "").lower()
    return same_host or headers.get("sec-fetch-site") == "same-origin"


def _is_allowed(origin: str | None, allowed: Sequence[str]) -> bool:
    return origin is not None and re.fullmatch(_pattern(tuple(allowed)), origin, re.IGNORECASE) is not None


def check_change(request: Request, reranker: Reranker) -> None:
    """Raise OriginNotAllowed, HostNotAllowed or UnsupportedMediaType for a request that must not change the
    service."""
    refused = change_refusal(request.headers, reranker.settings, has_keys=bool(reranker.keys))
    if refused is not None:
        raise refused


class Gate:
    """ASGI middleware of the whole service: refuses hosts and pages, and answers CORS preflights.

    An app that includes `rerankd.router` has its own rules instead; only `check_change` holds there too.
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
        if scope["method"] == "HEAD":  # the server leaves the body out
            scope = {**scope, "method": "GET"}
        await self._for(reranker.settings.allowed_origins)(scope, receive, send)

    def _for(self, allowed: tuple[str, ...]) -> ASGIApp:
        """The app behind CORS of these origins; a reload may change them."""
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
    """`send`, with a line in the log when the answer is on its way. Without the query, which may hold a
    key."""
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
    # A UNIX socket has no port, and no browser reaches it.
    server = scope["server"][0] if scope.get("server") and scope["server"][1] is not None else None
    why = host_refusal(headers.get("host"), settings, server, has_keys=has_keys)
    if why is not None:
        return HostNotAllowed(why)
    if has_keys or scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return None
    return work_refusal(headers, settings)


@functools.lru_cache(maxsize=8)
def _pattern(allowed: tuple[str, ...]) -> str:
    """A regular expression of these origins, in which * stands for any part of a name."""
    if "*" in allowed:
        return ".*"
    return "|".join(re.escape(one.rstrip("/")).replace(r"\*", "[^/]*") for one in allowed) or "(?!)"


@functools.cache
def _names_of_machine() -> frozenset[str]:
    name = socket.gethostname().lower().rstrip(".")
    first = name.partition(".")[0]
    return frozenset({name, first, f"{first}.local"}) - {"", ".local"}


def _name(host: str) -> str | None:
    """The name in a Host header, without port, brackets and a last dot; None for what is no host."""
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
