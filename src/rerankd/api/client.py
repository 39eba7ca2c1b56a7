"""Identify the client of a request: its API key or its address. Fair queueing and limits are per client."""

from __future__ import annotations

import ipaddress

from fastapi import Request

from rerankd.client import Client
from rerankd.keys import Key
from rerankd.serving.scheduler import WEIGHTS


def identify(request: Request, key: Key | None) -> Client:
    """Return the client: the key of the request or, without one, its address."""
    if key is None:
        return Client(_address(request))
    return Client(f"key {key.name}", WEIGHTS[key.priority])


def client_of(request: Request) -> Client:
    """Return the client of a request that runs in a guard (see limits.py)."""
    client: Client = request.state.client
    return client


def _address(request: Request) -> str:
    """Return the address of the sender; for IPv6 its /64 network, because one machine can use all addresses
    in it."""
    host = request.client.host if request.client is not None else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host
