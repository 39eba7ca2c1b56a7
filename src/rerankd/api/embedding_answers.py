"""The responses to embedding requests, as OpenAI, Text Embeddings Inference and Ollama send them. Pure."""

from __future__ import annotations

import base64
from typing import Any, Literal, NotRequired

import numpy as np
from typing_extensions import TypedDict

from rerankd.embedding import EmbedResult


class Vector(TypedDict):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Cached(TypedDict):
    cached_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: NotRequired[Cached]


class OpenAIAnswer(TypedDict):
    """`truncated` are indexes of texts."""

    object: Literal["list"]
    data: list[Vector]
    model: str
    usage: Usage
    truncated: NotRequired[list[int]]
    warnings: NotRequired[list[str]]


class OllamaAnswer(TypedDict):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OldOllamaAnswer(TypedDict):
    embedding: list[float]


def openai(body: Any, result: EmbedResult) -> OpenAIAnswer:
    vectors: list[Any] = result.vectors.tolist()
    if body.encoding_format == "base64":
        little = result.vectors.astype(np.dtype("<f4"), copy=False)
        vectors = [base64.b64encode(row.tobytes()).decode() for row in little]
    usage: Usage = {"prompt_tokens": result.tokens, "total_tokens": result.tokens}
    if result.cached_tokens:
        usage["prompt_tokens_details"] = {"cached_tokens": result.cached_tokens}
    answer: OpenAIAnswer = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors)
        ],
        "model": result.model,
        "usage": usage,
    }
    if result.truncated:
        answer["truncated"] = list(result.truncated)
    if result.warnings:
        answer["warnings"] = list(result.warnings)
    return answer


def tei(body: Any, result: EmbedResult) -> list[list[float]]:
    found: list[list[float]] = result.vectors.tolist()
    return found


def ollama(body: Any, result: EmbedResult) -> OllamaAnswer:
    return {
        "model": result.model,
        "embeddings": result.vectors.tolist(),
        "total_duration": int(result.total_s * 1e9),
        "load_duration": int(result.load_s * 1e9),
        "prompt_eval_count": result.tokens,
    }


def old_ollama(body: Any, result: EmbedResult) -> OldOllamaAnswer:
    return {"embedding": result.vectors[0].tolist() if len(result.vectors) else []}
