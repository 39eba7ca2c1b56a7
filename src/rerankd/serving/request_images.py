"""Prepare the images of a request for a model: check that it reads images, and that each is one.

Only headers are read here (see image_header.py); the engine decodes the images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rerankd.backends.base import Offer
from rerankd.config import Settings
from rerankd.content import Content, Document, Image, ImageLink, images_of, text_of
from rerankd.domain import RerankRequest
from rerankd.errors import InvalidRequest
from rerankd.recipes import catalog
from rerankd.scoring import deduplicate, image_header
from rerankd.scoring.image_header import BadImage
from rerankd.serving import image_fetch

# Base64 of a file begins with letters of this alphabet; a longer string is not shown in an error.
_SHOWN = 60


async def readable(request: RerankRequest, running: Offer, settings: Settings) -> RerankRequest:
    """The request as this model can read it, if it has images. Raises InvalidRequest."""
    if not request.has_images:
        return request
    if "image" not in running.capabilities.content:
        return without_images(request, running.spec.name)
    if urls := links(request):
        if not settings.image_urls:
            raise InvalidRequest(
                f"An image is sent as the URL {urls[0][:_SHOWN]}, and this server fetches none. Send it "
                "as base64 or as a data URI, or set image_urls = true."
            )
        images = await image_fetch.fetch(urls, settings.max_body_bytes)
        request = linked(request, images.get)
    check(request, settings.max_image_pixels)
    return request


def models_with_images() -> tuple[str, ...]:
    """The models of the catalog that read images."""
    return tuple(entry.name for entry in catalog.known().entries if entry.image_tokens)


def without_images(request: RerankRequest, model: str) -> RerankRequest:
    """The request for a model that reads text alone: images beside a text are ignored, with a warning.

    Raises InvalidRequest for a query or a document of images alone."""
    for place, content in _places(request):
        if isinstance(content, Document) and deduplicate.is_blank(content.text):
            raise InvalidRequest(
                f"{place} has an image and no text, but the model {model} reads only text. Send a text, or "
                f"use a model that reads images: {', '.join(models_with_images())}."
            )
    warnings = request.warnings
    reason = f"Images are ignored, because the model {model} reads only text"
    if isinstance(request.query, Document):
        warnings += (f"{reason}: the query has one.",)
    if found := [at for at, one in enumerate(request.documents) if isinstance(one, Document)]:
        warnings += (f"{reason}: {deduplicate.document_list(found)}.",)
    texts = tuple(map(text_of, request.documents))
    return replace(request, query=text_of(request.query), documents=texts, warnings=warnings)


def check(request: RerankRequest, most_pixels: int) -> None:
    """Raise InvalidRequest for a link, and for an image of the query that can't be used. The images of
    documents are checked one by one later, because the other documents can be scored."""
    for place, content in _places(request):
        if isinstance(content, Document):
            for part in content.parts:
                if isinstance(part, ImageLink):
                    raise InvalidRequest(
                        f"{place} has an image that is neither a data URI nor base64: {part.url[:_SHOWN]!r}. "
                        'Send {"image": "data:image/png;base64,…"}.'
                    )
    try:
        for image in images_of(request.query):
            image_header.checked(image.data, most_pixels)
    except BadImage as error:
        raise InvalidRequest(f"The query can't be scored: {error}.") from None


def links(request: RerankRequest) -> list[str]:
    """The URLs of images that the request names."""
    return [
        part.url
        for _, content in _places(request)
        if isinstance(content, Document)
        for part in content.parts
        if isinstance(part, ImageLink) and part.url.startswith(("http://", "https://"))
    ]


def linked(request: RerankRequest, found: Callable[[str], Image | None]) -> RerankRequest:
    """The request with the images that its URLs lead to."""

    def one(content: Content) -> Content:
        if isinstance(content, str):
            return content
        return Document(
            tuple(found(part.url) or part if isinstance(part, ImageLink) else part for part in content.parts)
        )

    return replace(request, query=one(request.query), documents=tuple(map(one, request.documents)))


def _places(request: RerankRequest) -> list[tuple[str, Content]]:
    names = ["The query", *(f"Document {at}" for at in range(len(request.documents)))]
    return list(zip(names, (request.query, *request.documents), strict=True))
