"""Read the JSON body of a request: size limit, charset, number of values."""

from __future__ import annotations

import json
import re
from typing import Any

from fastapi import Request

from rerankd.api.dialects.type_errors import kind
from rerankd.api.limits import parsed
from rerankd.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType

_CHARSET = re.compile(r"charset\s*=\s*[\"']?([^\"';,\s]+)", re.IGNORECASE)
# Only text encodings that are in use: Python also has codecs that are not encodings of text.
_CHARSETS = re.compile(
    r"(us-)?ascii|latin-?1|iso-?8859-\d{1,2}|(windows-|cp)125\d|gbk|gb2312|gb18030|big5(-hkscs)?|shift[_-]jis|"
    r"euc-(jp|kr)|koi8-[ru]"
)

# A parsed JSON value takes up to 64 bytes of memory and as little as 2 bytes of text: 32 MiB of "[[],[],…"
# would take 700 MB. This many values take 64 MB, and are enough for 10,000 documents with 100 fields.
_MOST_VALUES = 1_000_000
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)

EXAMPLE = '{"query": "what is a panda?", "documents": ["a bear of China", "a kind of bread"]}'


async def read_json(request: Request, most_bytes: int) -> dict[str, Any]:
    """Return the JSON object in the body. The content type does not matter: plain `curl -d` declares a form.

    Raises PayloadTooLarge for more than `most_bytes`, UnsupportedMediaType for an unknown charset, and
    InvalidRequest for anything but a JSON object.
    """
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > most_bytes:
            raise PayloadTooLarge(
                f"The request body is larger than {most_bytes / 2**20:g} MiB. Send fewer documents per "
                "request, or raise max_body_bytes."
            )
    if not data.strip():
        raise InvalidRequest(f"The request body is empty. Send JSON like {EXAMPLE}")
    _check_structure(data)
    try:
        value = json.loads(_text(data, request.headers.get("content-type", "")))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"The request body is not valid JSON: {error}. Send JSON like {EXAMPLE}"
        ) from None
    parsed(request)
    if not isinstance(value, dict):
        raise InvalidRequest(
            f"The request body must be an object, but is {kind(value)}. Send JSON like {EXAMPLE}"
        )
    return value


def _check_structure(data: bytes | bytearray) -> None:
    """Raise InvalidRequest for JSON with too many values: parsed, they would need far more memory than the
    text. Each takes at least one byte."""
    if len(data) <= _MOST_VALUES:
        return
    if _values(data) > _MOST_VALUES and _values(_STRING.sub(b"", data)) > _MOST_VALUES:
        raise InvalidRequest(
            f"The request body has more than {_MOST_VALUES} JSON values. Send fewer documents per request."
        )


def _values(data: bytes | bytearray) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _text(data: bytearray, content_type: str) -> str | bytearray:
    """Decode a body by the charset of its content type; without one it is UTF-8, UTF-16 or UTF-32."""
    found = _CHARSET.search(content_type)
    name = found[1].lower() if found else "utf-8"
    if name.startswith("utf"):
        return data  # the JSON parser detects which one
    try:
        if _CHARSETS.fullmatch(name):
            return data.decode(name)
    except LookupError:
        pass
    raise UnsupportedMediaType(f"The charset {name[:40]!r} of the request body is not supported. Send UTF-8.")
