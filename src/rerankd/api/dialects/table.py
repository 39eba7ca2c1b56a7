"""All dialects, in the order in which a body is held against them, and all paths that take a rerank request.

Every path speaks every dialect that its body tells apart, since apps that call one service by another's path
are many: Cherry Studio sends TEI's body to /v1/rerank, Voyage's and Cohere's old SDKs use /rerank. Only where
bodies are the same does the path tell: /api/rerank is Ollama's, and a first part like /voyage names the
dialect.
"""

from __future__ import annotations

import difflib
from typing import Any

from rerankd.api.dialects import dashscope, jina, mixedbread, nvidia, ollama, tei, vllm, voyage, weaviate
from rerankd.api.dialects.dialect import Dialect

DIALECTS: tuple[Dialect, ...] = (
    vllm.DIALECT,
    tei.DIALECT,
    mixedbread.DIALECT,
    nvidia.DIALECT,
    dashscope.DIALECT,
    weaviate.DIALECT,
    ollama.DIALECT,
    voyage.DIALECT,
    jina.DIALECT,
)
"""The last one takes every body that is no other's."""
DEFAULT = DIALECTS[-1]
"""What is spoken where no request has been read."""

SHARED = {
    "/v1/rerank": "Jina, Cohere v1, vLLM, Xinference and most programs",
    "/rerank": "Text Embeddings Inference, Infinity, old Cohere SDKs, Weaviate, Milvus",
    "/v2/rerank": "Cohere v2",
    "/v1/reranking": "Mixedbread, llama.cpp",
    "/reranking": "llama.cpp, RAGFlow's NVIDIA provider",
    "/reranker": "programs of their own",
    "/api/v1/rerank": "programs of their own",
    "/v1/reranks": "DashScope's OpenAI-compatible interface",
    "/compatible-api/v1/reranks": "DashScope's OpenAI-compatible interface",
    "/openai/v1/rerank": "KServe",
    "/v3/rerank": "OpenVINO Model Server",
    "/v1/models/rerank": "programs of their own",
}
"""Path -> whose it is, of the paths that are no dialect's own."""


def shown() -> tuple[Dialect, ...]:
    """The dialects as people read of them: the usual one first."""
    return DIALECTS[::-1]


def served() -> tuple[str, ...]:
    """All paths but those that name a dialect."""
    return (*SHARED, *(path for dialect in shown() for path in dialect.paths))


def choose(path: str, body: dict[str, Any]) -> Dialect:
    """The dialect of a request: what the path names, else the first that recognises the body. Null is the
    same as not sent."""
    sent = {name: value for name, value in body.items() if value is not None}
    for dialect in DIALECTS:
        if path.endswith(dialect.named_paths):
            return dialect
    return next(one for one in DIALECTS if one.recognises(sent, path.endswith(one.own_paths)))


def hint(path: str) -> str:
    """Where a request should have gone that was sent to `path`, as a sentence."""
    usual = "Rerank is POST /v1/rerank (base URL …/v1); /docs lists the rest."
    if path in served():  # another method than POST
        return usual
    for one in sorted(served(), key=len, reverse=True):
        before = path.removesuffix(one)
        if before not in (path, ""):
            return f"{usual} If a proxy adds {before!r}, start rerankd with --api-prefix {before}."
    close = difflib.get_close_matches(path, served(), n=1, cutoff=0.8)
    return f"Did you mean POST {close[0]}? {usual}" if close else usual
