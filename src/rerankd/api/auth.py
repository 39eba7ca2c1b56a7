"""Authentication: the API key of a request, from a bearer token or the header x-api-key."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import Request

from rerankd.errors import Unauthorized
from rerankd.keys import Key, Keys


def key_of(request: Request, keys: Keys) -> Key | None:
    """Return the API key of a request, or None if the request sends no valid key."""
    return next((key for sent in _sent(request) if (key := keys.find(sent)) is not None), None)


def _sent(request: Request) -> Iterator[bytes]:
    """Yield the candidates for a key, as bytes, because the encoding of a header is unknown."""
    for name, value in request.scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            if scheme.lower() == b"bearer":
                yield token.strip()
        elif name == b"x-api-key":
            yield value.strip()


def refusal(request: Request, keys: Keys) -> Unauthorized | None:
    """Return the error for a request without a valid key; None if it has one or the service needs none."""
    if not keys or key_of(request, keys) is not None:
        return None
    return Unauthorized(
        "The API key is missing or wrong. Send the server's key in the header 'Authorization: Bearer KEY' or "
        "'x-api-key: KEY'."
    )


def check_key(request: Request, keys: Keys) -> None:
    """Raise Unauthorized unless the request has a valid key or the service needs none."""
    refused = refusal(request, keys)
    if refused is not None:
        raise refused
