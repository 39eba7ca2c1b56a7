"""Images in a request body, in the forms that services and programs use. Pure.

- `{"image": …}`, also beside a `text` (Jina); `{"image_url": …}`; `{"images": […]}`
- `{"content": [{"type": "image_url", "image_url": {"url": …}}, {"type": "text", "text": …}]}` (vLLM, Dify)

An image is a data URI, base64, or a URL. Whether a model reads images and whether URLs are fetched is decided
later, so a string that is none of these is kept as a link, too: text models ignore it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from rerankd.api.dialects import lenient
from rerankd.content import Content, Document, Image, ImageLink
from rerankd.errors import InvalidRequest

# The types of parts, and the names of fields, that hold an image.
_NAMES = ("image", "image_url", "image_base64", "images")
# Names of what is neither an image nor a text.
_OTHER_MEDIA = ("video", "video_url", "videos", "audio", "audio_url", "input_audio")
_LINKS = ("http://", "https://")


def content(value: str | Mapping[str, Any], place: str, rank_fields: Sequence[str] = ()) -> Content:
    """A query or a document; `place` names it in the error message. With `rank_fields`, only these fields
    are read. Raises InvalidRequest for an object without text and images."""
    if isinstance(value, str) or rank_fields:
        return lenient.text(value, place, rank_fields)
    _refuse_other_media(value, place)
    images = tuple(_images(value))
    if not images:
        return lenient.text(value, place)
    text = _text(value, place)
    return Document((*images, text) if text else images)


def contents(
    values: Sequence[str | Mapping[str, Any]], rank_fields: Sequence[str] = ()
) -> tuple[Content, ...]:
    """The documents of a request."""
    return tuple(content(value, f"Document {at}", rank_fields) for at, value in enumerate(values))


def _refuse_other_media(value: Mapping[str, Any], place: str) -> None:
    """Raise InvalidRequest for a document that is a video or a recording: its address is no text to rank.
    Among other fields it belongs to a record."""
    parts = value.get("content")
    listed = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    sent = [value, *listed] if value.keys() <= {*_OTHER_MEDIA, "type", "content"} else listed
    if found := next((name for name in _OTHER_MEDIA for one in sent if name in one), None):
        raise InvalidRequest(
            f"{place} has {found!r}, which no model here reads. Send its text, such as a transcript, or "
            'images of it as {"images": […]}.'
        )


def _images(value: Mapping[str, Any]) -> Iterator[Image | ImageLink]:
    for name in _NAMES:
        if value.get(name):
            yield from _listed(value[name])
    parts = value.get("content")
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, dict):
            found = next((part[name] for name in _NAMES if part.get(name)), None)
            if found is not None:
                yield from _listed(found)
            elif part.get("type") in _NAMES:
                yield ImageLink("")


def _listed(value: Any) -> Iterator[Image | ImageLink]:
    for one in value if isinstance(value, list) else (value,):
        sent = one.get("url") if isinstance(one, dict) else one
        # A value that is a list or an object is not shown: it may be nested deeper than json can write.
        shown = "" if isinstance(one, list | dict) else json.dumps(one)
        yield image(sent) if isinstance(sent, str) else ImageLink(shown)


def image(sent: str) -> Image | ImageLink:
    """The image that a string holds or names."""
    sent = sent.strip()
    if scheme := next((one for one in (*_LINKS, "data:") if sent[: len(one)].lower() == one), ""):
        sent = scheme + sent[len(scheme) :]  # a scheme may be in capitals
    if sent.startswith(_LINKS):
        return ImageLink(sent)
    head, _, data = sent.partition(",") if sent.startswith("data:") else ("", "", sent)
    if head and not head.lower().endswith(";base64"):
        return Image(unquote_to_bytes(data)) if data else ImageLink(sent)
    if head and "%" in data:  # a URI may escape base64's + / =
        data = unquote(data)
    try:
        found = base64.b64decode("".join(data.split()).translate(_URL_SAFE), validate=True)
    except (binascii.Error, ValueError):
        return ImageLink(sent)
    return Image(found) if found else ImageLink(sent)


_URL_SAFE = str.maketrans("-_", "+/")


def _text(value: Mapping[str, Any], place: str) -> str:
    """The text beside images, "" if there is none."""
    if (found := lenient.named_text(value)) is not None:
        return found
    parts = value.get("content")
    if isinstance(parts, list):
        return "\n".join(lenient.text_parts(parts))
    rest = {name: one for name, one in value.items() if name not in (*_NAMES, "type")}
    return lenient.text(rest, place) if rest else ""
