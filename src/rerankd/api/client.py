"""Identify the client of a request: its API key or its address. Fair queueing and limits are per client."""

from __future__ import annotations

import ipaddress
from urllib.parse import unquote

from fastapi import Request

from rerankd.client import Client
from rerankd.config import Settings
from rerankd.keys import Key
from rerankd.onward import CLIENT_HEADER, WEIGHT_HEADER
from rerankd.serving.scheduler import WEIGHTS

_LONGEST_NAME = 200


def identify(request: Request, key: Key | None, settings: Settings) -> Client:
    """Return the client: that which a trusted server in front names, else the key of the request or, without
    one, its address."""
    if CLIENT_HEADER in request.headers and settings.trusts(key.name if key else None, _host(request)):
        return _named(request)
    if key is None:
        return Client(_address(request))
    return Client(f"key {key.name}", WEIGHTS[key.priority])


def _named(request: Request) -> Client:
    """The client that the headers name, with a weight that a key could have."""
    try:
        weight = float(request.headers.get(WEIGHT_HEADER, 1))
    except ValueError:
        weight = 1.0
    return Client(
        unquote(request.headers[CLIENT_HEADER])[:_LONGEST_NAME],
        weight if weight in WEIGHTS.values() else 1.0,
    )


def client_of(request: Request) -> Client:
    """Return the client of a request that runs in a guard (see limits.py)."""
    client: Client = request.state.client
    return client


def _address(request: Request) -> str:
    """Return the address of the sender; for IPv6 its /64 network, because one machine can use all addresses
    in it."""
    host = _host(request)
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host


def _host(request: Request) -> str:
    return request.client.host if request.client is not None else ""
