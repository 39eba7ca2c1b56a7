"""Who may ask: a bearer token or an x-api-key header, where the service asks for a key."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import Request

from rerankd.errors import Unauthorized
from rerankd.keys import Key, Keys


def key_of(request: Request, keys: Keys) -> Key | None:
    """The key that a request carries, None where it carries none of `keys`."""
    return next((key for sent in _sent(request) if (key := keys.find(sent)) is not None), None)


def _sent(request: Request) -> Iterator[bytes]:
    """What may be a key. As bytes: a header is text in an encoding that only its sender knows."""
    for name, value in request.scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            if scheme.lower() == b"bearer":
                yield token.strip()
        elif name == b"x-api-key":
            yield value.strip()


def refusal(request: Request, keys: Keys) -> Unauthorized | None:
    """Why a request is not let in: None where it carries one of `keys`, or none is asked for."""
    if not keys or key_of(request, keys) is not None:
        return None
    return Unauthorized(
        "The API key is missing or wrong. Send the server's key as 'Authorization: Bearer KEY' or "
        "'x-api-key: KEY'."
    )


def check_key(request: Request, keys: Keys) -> None:
    """Raise Unauthorized unless the request is let in."""
    refused = refusal(request, keys)
    if refused is not None:
        raise refused
