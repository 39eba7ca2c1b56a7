"""Who may ask: a bearer token or an x-api-key header, where the service has a key."""

from __future__ import annotations

import hmac

from fastapi import Request

from rerankd.errors import Unauthorized


def check_key(request: Request, key: str | None) -> None:
    """Raise Unauthorized unless the request carries `key`. Without a key anyone may ask."""
    if not key:
        return
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    sent = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
    # Constant time, so that the answer's delay tells nothing of the key.
    if not hmac.compare_digest(sent.encode(), key.encode()):
        raise Unauthorized(
            "The API key is missing or wrong. Send the server's key as 'Authorization: Bearer KEY' or "
            "'x-api-key: KEY'."
        )
