"""Settings of upstreams: other rerank servers that answer requests, and who may name the clients of one."""

from __future__ import annotations

import ipaddress
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from rerankd.backends.options import Needs, Options
from rerankd.config.model_settings import Names, Seconds, split_commas
from rerankd.config.service_settings import ApiKey


def _address(url: str) -> str:
    """A URL without a slash at its end. Raises ValueError for one that is no address of a server."""
    url = url.strip()
    if "://" not in url:
        url = f"http://{url}"
    url = url.rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"\s", url):
        raise ValueError("it must be the URL of a server, such as http://gpu1:11440")
    _ = parts.port  # raises ValueError for a port that is no number
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL with a password would appear in logs; use api_key")
    if parts.query or parts.fragment:
        raise ValueError("it must end with the path, without ? and #")
    return url


def _front(entry: str) -> str:
    """Raises ValueError for what is neither an address, a network nor the name of a key."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", entry):
        ipaddress.ip_network(entry, strict=False)
    return entry


class UpstreamSettings(Options):
    """One `[upstreams.NAME]` section: another server."""

    needs: ClassVar[Needs] = "live"

    url: Annotated[str, AfterValidator(_address)] = Field(
        description="the server's address, such as http://gpu1:11440; for another service than rerankd also "
        "the full URL of its rerank endpoint"
    )
    api_key: ApiKey = Field(None, repr=False, description="API key that the server requires")
    api_key_file: Path | None = Field(
        None, description="file that holds this key, read at the start and on each reload"
    )
    weight: float = Field(
        1.0, ge=0.01, le=1000, description="share of the load, relative to the other servers of a model"
    )
    models: Names = Field(
        (),
        description="models to request of this server; if not set, all that it lists. Required for a server "
        "that lists none",
    )


class UpstreamsSettings(Options):
    """The settings of all upstreams, and of a server that is an upstream itself."""

    needs: ClassVar[Needs] = "live"

    upstreams: dict[str, UpstreamSettings] = Field(
        {}, description="other servers that answer requests, by name"
    )
    upstream_hedge_ms: int = Field(
        0,
        ge=0,
        le=86_400_000,
        description="milliseconds after which a request that an upstream has not answered is also sent to a "
        "second one; the first answer is used; 0: never",
    )
    upstream_poll_s: float = Field(
        2.0, ge=0.05, le=3600, description="seconds between two checks of an upstream's health and models"
    )
    upstream_connect_timeout_s: Seconds = Field(
        2.0, description="timeout in seconds for a connection to an upstream"
    )
    trusted_fronts: Annotated[
        tuple[Annotated[str, AfterValidator(_front)], ...], BeforeValidator(split_commas)
    ] = Field(
        (),
        description="who may name the client of a request, so that clients behind another rerankd get fair "
        "shares: names of API keys, IP addresses or networks (10.0.0.0/8)",
    )

    @cached_property
    def _front_networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        found = []
        for entry in self.trusted_fronts:
            try:
                found.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:  # the name of a key
                continue
        return tuple(found)

    def trusts(self, key: str | None, address: str) -> bool:
        """Whether a request with the API key of this name, from this address, may name its client."""
        if not self.trusted_fronts:
            return False
        if key is not None and key in self.trusted_fronts:
            return True
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:  # a UNIX socket
            return False
        return any(ip in network for network in self._front_networks)
