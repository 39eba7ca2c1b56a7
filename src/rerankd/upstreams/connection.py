"""HTTP to one server: a pool of connections that are kept open, responses of bounded size, and network errors
as TryAnother."""

from __future__ import annotations

import contextlib
import functools
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Self

import httpx

from rerankd import network_errors, text_files
from rerankd.config import UpstreamSettings
from rerankd.errors import ConfigError, EngineError, EngineUnavailable
from rerankd.upstreams.refusals import TryAnother

# Idle connections are closed before the other rerankd does it (keep_alive_s, 75 s), which would cost a retry.
_IDLE_S = 55.0
_BROKEN = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


@dataclass(frozen=True, slots=True)
class Response:
    """A response, its headers in lower case."""

    status: int
    headers: Mapping[str, str]
    data: bytes


def api_key(settings: UpstreamSettings) -> str | None:
    """The key for a server. Raises ConfigError if it is in a file that can't be read."""
    if settings.api_key_file is None:
        return settings.api_key
    try:
        key = text_files.read(settings.api_key_file).strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"The API key file {settings.api_key_file} can't be read: {error}.") from None
    if not key or not key.isprintable():
        raise ConfigError(f"The API key file {settings.api_key_file} must hold one key, on one line.")
    return key


@functools.cache
def _certificates() -> ssl.SSLContext:
    """The trusted certificates, read once for all servers: this takes 20 ms."""
    return httpx.create_ssl_context()


class Connection:
    """Sends requests to one server; `name` is the server's, for messages."""

    def __init__(self, name: str, url: str, key: str | None, connect_timeout_s: float) -> None:
        """Raises ValueError if the environment's proxy or certificates are invalid."""
        self._name = name
        self._users = 0
        self._is_retired = False
        address = httpx.URL(url)
        is_near = network_errors.is_near(address.host)
        self._origin = f"{address.scheme}://{address.netloc.decode()}"
        authorization = {b"authorization": b"Bearer " + key.encode()} if key else {}
        with network_errors.environment():
            verify = _certificates() if address.scheme == "https" or not is_near else False
        self._http = network_errors.async_client(
            headers={b"accept-encoding": b"identity", b"content-type": b"application/json"} | authorization,
            timeout=httpx.Timeout(None, connect=connect_timeout_s),
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=None, keepalive_expiry=_IDLE_S
            ),
            verify=verify,
            # Proxies from the environment are used only for hosts outside the local network.
            trust_env=not is_near,
        )

    @contextlib.asynccontextmanager
    async def used(self) -> AsyncIterator[Self]:
        """Keep the connections open in this block, also if `retire` is called meanwhile."""
        self._users += 1
        try:
            yield self
        finally:
            self._users -= 1
            if self._is_retired:
                await self.retire()

    async def retire(self) -> None:
        """Close all connections as soon as nobody uses them."""
        self._is_retired = True
        if not self._users:
            await self._http.aclose()

    async def close(self) -> None:
        """Close all connections; calls under way end."""
        await self._http.aclose()

    async def send(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        most_bytes: int = 2**22,
    ) -> Response:
        """Send a request to a path of the server, and read the response. It takes as long as the server does:
        use a timeout. Raises TryAnother."""
        request = self._http.build_request(method, f"{self._origin}{path}", content=body, headers=headers)
        try:
            answer = await self._http.send(request, stream=True)
            try:
                data = await self._read(answer, most_bytes)
            finally:
                await answer.aclose()
        except network_errors.ERRORS as error:
            raise TryAnother(
                EngineUnavailable(
                    f"The upstream server {self._name} did not answer: {network_errors.explain(error)}."
                ),
                "answer" if isinstance(error, _BROKEN) else "server",
                was_cut=isinstance(error, _BROKEN),
            ) from None
        return Response(answer.status_code, answer.headers, data)

    async def _read(self, answer: httpx.Response, most_bytes: int) -> bytes:
        data = bytearray()
        async for chunk in answer.aiter_raw():
            data += chunk
            if len(data) > most_bytes:
                raise TryAnother(
                    EngineError(
                        f"The upstream server {self._name} sent more than {most_bytes / 2**20:.0f} MiB, "
                        "which is no answer to this request."
                    )
                )
        return bytes(data)
