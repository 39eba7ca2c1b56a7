"""All paths that take a rerank request, written once: routes, docs and the answer to a wrong path read them.

Every one of them speaks every dialect that its body tells apart. Only where bodies are the same does the path
tell: /api/rerank is Ollama's, and a first part like /voyage names the dialect.
"""

from __future__ import annotations

import difflib

RERANK = {
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
"""Path -> whose it is. They take the bodies of Jina, Cohere, TEI, Voyage, Mixedbread and Weaviate."""
OLLAMA = {"/api/rerank": "Ollama"}
NVIDIA = {
    "/v1/ranking": "NVIDIA NIM",
    "/ranking": "NVIDIA NIM",
    "/v1/retrieval/nvidia/reranking": "NVIDIA's API catalog, Weaviate's reranker-nvidia",
}
DASHSCOPE = {"/api/v1/services/rerank/text-rerank/text-rerank": "DashScope"}
SCORE = {"/v1/score": "vLLM", "/score": "vLLM"}
ALL = tuple(RERANK | OLLAMA | NVIDIA | DASHSCOPE | SCORE)


def prefixed(prefix: str) -> tuple[str, ...]:
    """The paths below a first part that names the dialect."""
    return tuple(f"/{prefix}{path}" for path in ("/rerank", "/v1/rerank", "/v2/rerank"))


def hint(path: str) -> str:
    """Where a request should have gone that was sent to `path`, as a sentence."""
    usual = "Rerank is POST /v1/rerank (base URL …/v1); /docs lists the rest."
    if path in ALL:  # another method than POST
        return usual
    for served in sorted(ALL, key=len, reverse=True):
        before = path.removesuffix(served)
        if before not in (path, ""):
            return f"{usual} If a proxy adds {before!r}, start rerankd with --api-prefix {before}."
    close = difflib.get_close_matches(path, ALL, n=1, cutoff=0.8)
    return f"Did you mean POST {close[0]}? {usual}" if close else usual
