"""Who may ask: a bearer token or an x-api-key header, where the service has a key."""

from __future__ import annotations

import hmac

from fastapi import Request

from rerankd.errors import Unauthorized


def refusal(request: Request, key: str | None) -> Unauthorized | None:
    """Why a request is not let in: None where it carries `key`, or there is none to carry."""
    if not key:
        return None
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    sent = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
    # Constant time, so that the answer's delay tells nothing of the key.
    if hmac.compare_digest(sent.encode(), key.encode()):
        return None
    return Unauthorized(
        "The API key is missing or wrong. Send the server's key as 'Authorization: Bearer KEY' or "
        "'x-api-key: KEY'."
    )


def check_key(request: Request, key: str | None) -> None:
    """Raise Unauthorized unless the request is let in."""
    refused = refusal(request, key)
    if refused is not None:
        raise refused
