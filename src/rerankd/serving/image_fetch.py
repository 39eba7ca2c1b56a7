"""Fetch the images that a request names by URL, if the setting `image_urls` allows it.

A client decides where this service connects to, so it must not reach what only the service can: each host is
resolved here, an address that is not public is refused, and the connection goes to the address that was
checked. A redirect is checked like a first URL. Size, time and redirects are limited. No proxy is used,
because a proxy would resolve the name itself.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterable

import httpx

from rerankd.content import Image
from rerankd.errors import InvalidRequest

TIMEOUT_S = 10.0
MOST_REDIRECTS = 3
_AT_ONCE = 8
_SHOWN = 100
# Addresses of IPv6 that contain one of IPv4, which NAT64 translates.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_HEADERS = {"accept": "image/*", "accept-encoding": "identity", "user-agent": "rerankd"}


class _Refused(Exception):
    """Why an image can't be fetched, as a clause."""


def is_public(address: str) -> bool:
    """(pure) Whether an address, and one of IPv4 in it, belongs to the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner: list[ipaddress.IPv4Address | None] = []
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64:
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    known = [one for one in inner if one is not None]
    is_translated = isinstance(ip, ipaddress.IPv6Address) and (ip.ipv4_mapped is not None or ip in _NAT64)
    own = [] if is_translated else [ip]
    if isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local:  # deprecated, but some sites use it
        return False
    return all(one.is_global and not one.is_multicast and not one.is_reserved for one in (*own, *known))


async def fetch(
    urls: Iterable[str], most_bytes: int, is_allowed: Callable[[str], bool] = is_public
) -> dict[str, Image]:
    """Fetch the images of these URLs, which may have `most_bytes` together. `is_allowed` decides about an
    address. Raises InvalidRequest."""
    left = [most_bytes]
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(url: str) -> tuple[str, Image]:
        async with slots:
            return url, Image(await _fetched(url, left, is_allowed))

    try:
        async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(url)) for url in dict.fromkeys(urls)]
    except TimeoutError:
        raise InvalidRequest(
            f"The images of the request could not be fetched within {TIMEOUT_S:g} s. Send them as base64."
        ) from None
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return dict(task.result() for task in tasks)


async def _fetched(url: str, left: list[int], is_allowed: Callable[[str], bool]) -> bytes:
    """The bytes at a URL. `left` has the bytes that all images of the request may still have."""
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_S) as client:
            place = httpx.URL(url)
            for _ in range(MOST_REDIRECTS + 1):
                found = await _got(client, place, left, is_allowed)
                if isinstance(found, bytes):
                    return found
                place = found
            raise _Refused(f"it is redirected more than {MOST_REDIRECTS} times")
    except (_Refused, httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        why = str(error) or type(error).__name__
        raise InvalidRequest(
            f"The image {url[:_SHOWN]} can't be fetched: {why[:200]}. Send it as base64, or check the URL."
        ) from None


async def _got(
    client: httpx.AsyncClient, url: httpx.URL, left: list[int], is_allowed: Callable[[str], bool]
) -> bytes | httpx.URL:
    """The bytes at this URL, or where it redirects to."""
    if url.scheme not in ("http", "https"):
        raise _Refused(f"{url.scheme or 'no scheme'} is not http or https")
    if not url.host:
        raise _Refused("its URL has no host")
    if url.port is not None and not 0 < url.port < 2**16:
        raise _Refused(f"its URL has the port {url.port}, and ports are from 1 to 65535")
    if url.userinfo:
        raise _Refused("its URL contains a user name")
    address = await _address(url, is_allowed)
    # The name is still that of the certificate and of the header Host.
    request = client.build_request(
        "GET",
        url.copy_with(host=address),
        headers={**_HEADERS, "host": url.netloc.decode("ascii")},
        extensions={"sni_hostname": url.raw_host.decode("ascii")},
    )
    response = await client.send(request, stream=True)
    try:
        if response.is_redirect:
            return url.join(response.headers.get("location", ""))
        if response.status_code != 200:
            raise _Refused(f"its server answers with the status {response.status_code}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise _Refused("its server compresses it, although that was not requested")
        data = bytearray()
        async for piece in response.aiter_raw():
            data += piece
            left[0] -= len(piece)
            if left[0] < 0:
                raise _Refused("the images of the request have more bytes than max_body_bytes")
        return bytes(data)
    finally:
        await response.aclose()


async def _address(url: httpx.URL, is_allowed: Callable[[str], bool]) -> str:
    """The address to connect to: all addresses of the host must be allowed."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(
        url.raw_host.decode("ascii").strip("[]"),
        url.port or {"http": 80, "https": 443}[url.scheme],
        type=socket.SOCK_STREAM,
    )
    addresses = [str(place[0]) for *_, place in found]
    if not addresses or not all(map(is_allowed, addresses)):
        raise _Refused("its host has an address that is not on the public internet")
    return addresses[0]
