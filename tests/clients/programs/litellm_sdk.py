"""LiteLLM's rerank, with the providers whose base URL can be set."""

import json
import logging
import sys

import litellm

logging.disable(logging.CRITICAL)
task = json.loads(sys.argv[1])
answer = {}
for provider, api_base in task["urls"].items():
    response = litellm.rerank(
        model=f"{provider}/bge-reranker-v2-m3",
        query=task["query"],
        documents=task["documents"],
        top_n=len(task["documents"]),
        api_base=api_base,
        api_key=task["key"] or "none",
        # Infinity's sends what vLLM's sends, but needs a document to be a string: it must not ask for any.
        return_documents=provider != "infinity",
    )
    answer[provider] = [[row["index"], row["relevance_score"]] for row in response.results]
try:
    litellm.rerank(
        model="cohere/m",
        query="",
        documents=["a"],
        api_base=task["urls"]["cohere"],
        api_key=task["key"] or "none",
    )
except litellm.exceptions.BadRequestError as error:
    answer["refused"] = str(error)
print(json.dumps(answer))
