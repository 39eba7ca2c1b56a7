"""The table of request dialects, how the dialect of a request is detected, and all rerank paths.

Every path accepts every dialect that the body identifies, because many apps send one service's body to
another service's path: Cherry Studio sends TEI's body to /v1/rerank, and the old SDKs of Voyage and Cohere
use /rerank. The path decides only if the bodies are the same: /api/rerank is Ollama's, and a prefix such as
/voyage selects the dialect.
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
"""The order matters: the first dialect that recognises a body is used, and the last one recognises any."""
DEFAULT = DIALECTS[-1]
"""The dialect of errors if no request could be read."""

SHARED = {
    "/v1/rerank": "Jina, Cohere v1, vLLM, Xinference and most programs",
    "/rerank": "Text Embeddings Inference, Infinity, old Cohere SDKs, Weaviate, Milvus",
    "/v2/rerank": "Cohere v2",
    "/v1/reranking": "Mixedbread, llama.cpp",
    "/reranking": "llama.cpp, RAGFlow's NVIDIA provider",
    "/reranker": "custom programs",
    "/api/v1/rerank": "custom programs",
    "/v1/reranks": "DashScope's OpenAI-compatible interface",
    "/compatible-api/v1/reranks": "DashScope's OpenAI-compatible interface",
    "/openai/v1/rerank": "KServe",
    "/v3/rerank": "OpenVINO Model Server",
    "/v1/models/rerank": "custom programs",
    "/": "Text Embeddings Inference behind Hugging Face's Inference Endpoints and SageMaker",
}
"""Path -> who uses it, for the paths that do not belong to one dialect."""


def shown() -> tuple[Dialect, ...]:
    """The dialects in the order of the documentation: the most common one first."""
    return DIALECTS[::-1]


def served() -> tuple[str, ...]:
    """All rerank paths without the prefixed ones."""
    return (*SHARED, *(path for dialect in shown() for path in dialect.paths))


def choose(path: str, body: dict[str, Any]) -> Dialect:
    """Return the dialect of a request: the one that the path selects, else the first to recognise the body.

    Null means that a field was not sent.
    """
    sent = {name: value for name, value in body.items() if value is not None}
    for dialect in DIALECTS:
        if path.endswith(dialect.named_paths):
            return dialect
    return next(one for one in DIALECTS if one.recognises(sent, path.endswith(one.own_paths)))


def hint(path: str) -> str:
    """Suggest the right path for a request that was sent to `path`, as a sentence."""
    usual = "The rerank endpoint is POST /v1/rerank (base URL …/v1); /docs lists all endpoints."
    if path in served():  # another method than POST
        return usual
    for one in sorted(served(), key=len, reverse=True):
        before = path.removesuffix(one)
        if before not in (path, ""):
            return f"{usual} If a proxy adds {before!r}, start rerankd with --api-prefix {before}."
    close = difflib.get_close_matches(path, served(), n=1, cutoff=0.8)
    return f"Did you mean POST {close[0]}? {usual}" if close else usual
