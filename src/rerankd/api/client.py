"""Who asks: the client whose requests share limits, and its turns in the queue."""

from __future__ import annotations

import ipaddress

from fastapi import Request

from rerankd.keys import Key
from rerankd.serving.queue import WEIGHTS, Client


def identify(request: Request, key: Key | None) -> Client:
    """The client of a request: its key, or without one its address."""
    if key is None:
        return Client(_address(request))
    return Client(f"key {key.name}", WEIGHTS[key.priority])


def client_of(request: Request) -> Client:
    """The client of a request that runs in a guard (see limits.py)."""
    client: Client = request.state.client
    return client


def _address(request: Request) -> str:
    """The address that a request comes from; of IPv6 the network, since a machine may have all of its
    addresses."""
    host = request.client.host if request.client is not None else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host
