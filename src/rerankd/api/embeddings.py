"""Embeddings: /v1/embeddings (OpenAI), /embed (Text Embeddings Inference), /api/embed and /api/embeddings
(Ollama), for models whose method is `embedding`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request, Response
from pydantic import AliasChoices, BaseModel, Field, ValidationError, WithJsonSchema

from rerankd.api import embedding_answers as answers
from rerankd.api import limits, openapi
from rerankd.api.auth import check_key
from rerankd.api.body import read_json
from rerankd.api.client import client_of
from rerankd.api.dialects import jina, ollama, tei
from rerankd.api.dialects.dialect import Dialect
from rerankd.api.dialects.keep_alive import keep_alive_s
from rerankd.api.dialects.lenient import Count, Flag
from rerankd.api.dialects.type_errors import kind, sentence
from rerankd.api.ollama_models import load_or_unload
from rerankd.api.responses import Route, json_response, reranker_of, use_dialect, warnings_header
from rerankd.embedding import EmbedRequest, EmbedResult, InputType, nothing
from rerankd.errors import InvalidRequest

router = APIRouter(route_class=Route)

# What clients send for the two kinds of text: Cohere, Voyage, NVIDIA, Jina (task), TEI (prompt_name).
_TYPES: dict[str, InputType] = {
    **dict.fromkeys(("query", "search_query", "retrieval.query"), "query"),
    **dict.fromkeys(("document", "passage", "search_document", "retrieval.passage"), "document"),
}
_IDS = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
_TEXTS = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"anyOf": [{"type": "string"}, _IDS]}},
        _IDS,
    ]
}
Texts = Annotated[Any, WithJsonSchema(_TEXTS)]


class _Body(BaseModel):
    """The fields that all these requests share. Unknown fields are ignored; null means not sent."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"input": ["a bear of China", "a kind of bread"]}

    model: str | None = Field(
        None, description="Name of an embedding model; without one, the first that is served answers."
    )
    dimensions: Count = Field(
        None, description="Return only the first N numbers of each vector, scaled to length 1 again."
    )
    truncate: Flag = Field(None, description="With false, a text that is too long is an error.")
    input_type: str | None = Field(
        None,
        description='"query" or "document": put the model\'s prefix for it before each text. By default, no '
        "prefix is added.",
        validation_alias=AliasChoices("input_type", "prompt_name", "task"),
    )


_NORMALIZE: Any = Field(None, description="With false, the vectors are not scaled to length 1.")
_KEEP_ALIVE: Any = Field(None, description="As in a rerank request.")


class OpenAIBody(_Body):
    """OpenAI's request body."""

    texts: Texts = Field(description="A text, or a list of texts.", validation_alias="input")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64: each vector as float32, little-endian."
    )
    normalize: Flag = _NORMALIZE
    keep_alive: Any = _KEEP_ALIVE


class TeiBody(_Body):
    """The request body of Text Embeddings Inference."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"inputs": ["a bear of China", "a kind of bread"]}

    texts: Texts = Field(description="A text, or a list of texts.", validation_alias="inputs")
    normalize: Flag = _NORMALIZE


class OllamaBody(_Body):
    """Ollama's request body; /api/embeddings has one text as `prompt`."""

    texts: Texts = Field(
        (),
        description="A text, or a list of texts.",
        validation_alias=AliasChoices("input", "prompt"),
    )
    keep_alive: Any = _KEEP_ALIVE


@dataclass(frozen=True, slots=True)
class _Form:
    """One service's form of a request for embeddings. `errors` is the dialect of its errors."""

    name: str
    paths: tuple[str, ...]
    summary: str
    body: type[_Body]
    render: Callable[[Any, EmbedResult], Any]
    answer: Any
    errors: Dialect
    normalizes: bool = True
    loads: bool = False
    """Whether a request without text loads the model, or unloads it if `keep_alive` is 0, as in Ollama."""


_FORMS = (
    _Form(
        "openai-embeddings",
        ("/v1/embeddings", "/embeddings"),
        "Embed texts, as OpenAI does",
        OpenAIBody,
        answers.openai,
        answers.OpenAIAnswer,
        jina.DIALECT,
    ),
    _Form(
        "tei-embed",
        ("/embed",),
        "Embed texts, as Text Embeddings Inference does",
        TeiBody,
        answers.tei,
        list[list[float]],
        tei.DIALECT,
    ),
    _Form(
        "ollama-embed",
        ("/api/embed",),
        "Embed texts, as Ollama does",
        OllamaBody,
        answers.ollama,
        answers.OllamaAnswer,
        ollama.DIALECT,
        loads=True,
    ),
    _Form(
        "ollama-embeddings",
        ("/api/embeddings",),
        "Embed one text, as older versions of Ollama do",
        OllamaBody,
        answers.old_ollama,
        answers.OldOllamaAnswer,
        ollama.DIALECT,
        normalizes=False,
        loads=True,
    ),
)


def _handler(form: _Form) -> Callable[..., Any]:
    async def embed(request: Request) -> Response:
        reranker = reranker_of(request)
        use_dialect(request, form.errors)
        request.state.dialect = form.name
        check_key(request, reranker.keys)
        timeout_s = limits.wanted_timeout_s(request)
        value = await read_json(request, reranker.settings.max_body_bytes)
        body = _parsed(form, value)
        asked = _request(form, body)
        name = reranker.registry.embedder_name(asked.model)
        request.state.model = reranker.registry.entry(name).name
        if form.loads and body.texts in ("", [], ()):
            if reranker.registry.remote_model(name) is None:
                served = reranker.registry.find(name)
                await load_or_unload(reranker, served, asked.keep_alive_s)
            return json_response(form.render(body, nothing(asked.model or request.state.model)))
        result = await reranker.answer_embedding(asked, timeout_s=timeout_s, client=client_of(request))
        warnings = (*result.warnings, *_truncated(result))
        headers = {"x-rerankd-warnings": warnings_header(warnings)} if warnings else {}
        return json_response(form.render(body, result), headers=headers)

    return embed


def _parsed(form: _Form, value: Mapping[str, Any]) -> Any:
    try:
        return form.body.model_validate({name: sent for name, sent in value.items() if sent is not None})
    except ValidationError as error:
        raise InvalidRequest(sentence(error, example=form.body.EXAMPLE)) from None


def _request(form: _Form, body: Any) -> EmbedRequest:
    """Raises InvalidRequest."""
    keep_s = None
    if (sent := getattr(body, "keep_alive", None)) not in (None, ""):
        try:
            keep_s = keep_alive_s(sent)
        except ValueError as error:
            raise InvalidRequest(f"'keep_alive' {error}.") from None
    return EmbedRequest(
        texts=_texts(body.texts),
        model=body.model or None,
        input_type=_input_type(body.input_type),
        truncate=body.truncate is not False,
        dimensions=body.dimensions or None,
        normalize=form.normalizes and getattr(body, "normalize", None) is not False,
        keep_alive_s=keep_s,
    )


def _texts(sent: Any) -> tuple[Any, ...]:
    """The texts of a request; a text may be a list of token ids."""
    texts = tuple(sent) if isinstance(sent, list | tuple) else (sent,)
    if texts and all(type(one) is int for one in texts):
        return (texts,)
    for at, text in enumerate(texts):
        if not isinstance(text, str) and not (
            isinstance(text, list) and all(type(one) is int for one in text)
        ):
            raise InvalidRequest(f"Text {at} is {kind(text)}, but must be a string.")
    return texts


def _input_type(sent: str | None) -> InputType | None:
    if not sent:
        return None
    if sent.lower() not in _TYPES:
        raise InvalidRequest(
            f'The input type is {sent[:40]!r}, but must be "query" or "document". Without one, no prefix is '
            "put before the texts."
        )
    return _TYPES[sent.lower()]


def _truncated(result: EmbedResult) -> list[str]:
    if not result.truncated:
        return []
    which = ", ".join(map(str, result.truncated[:20]))
    return [f"Truncated to the model's max_length: texts {which}{' …' * (len(result.truncated) > 20)}."]


def _add() -> None:
    for form in _FORMS:
        schema = {**form.body.model_json_schema(by_alias=True), "example": form.body.EXAMPLE}
        for path in form.paths:
            router.add_api_route(
                path,
                _handler(form),
                methods=["POST"],
                summary=form.summary,
                include_in_schema=path == form.paths[0],
                responses={
                    200: {"model": form.answer},
                    **openapi.errors(400, 401, 404, 413, 429, 502, 503, 504, spoken=(form.errors,)),
                },
                openapi_extra=openapi.body(schema),
            )


_add()
