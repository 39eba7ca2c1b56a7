"""Cohere's SDK: both of its APIs, sync and async."""

import asyncio
import json
import sys

import cohere

task = json.loads(sys.argv[1])
question = {"model": "rerank-v3.5", "query": task["query"], "documents": task["documents"]}
urls, key = task["urls"], task["key"] or "none"


def rows(answer):
    return [[row.index, row.relevance_score] for row in answer.results]


async def ask_async():
    v1 = cohere.AsyncClient(key, base_url=urls["async v1"])
    v2 = cohere.AsyncClientV2(key, base_url=urls["async v2"])
    return {
        "async v1": rows(await v1.rerank(**question)),
        "async v2": rows(await v2.rerank(**question)),
    }


def error(call):
    try:
        call()
    except cohere.core.ApiError as caught:
        return {
            "type": type(caught).__name__,
            "status": caught.status_code,
            "message": caught.body["message"],
        }


v1, v2 = cohere.Client(key, base_url=urls["v1"]), cohere.ClientV2(key, base_url=urls["v2"])
objects = [{"title": f"no {at}", "text": text} for at, text in enumerate(task["documents"])]
with_documents = v1.rerank(**question, return_documents=True)
answer = {
    "v1": rows(v1.rerank(**question)),
    "v2": rows(v2.rerank(**question)),
    **asyncio.run(ask_async()),
    "top 2": rows(v2.rerank(**question, top_n=2, max_tokens_per_doc=4096)),
    "objects": rows(v1.rerank(**{**question, "documents": objects}, rank_fields=["text"])),
    "documents": [row.document.text for row in with_documents.results],
    "billed": with_documents.meta.billed_units.search_units,
    "empty": error(lambda: v2.rerank(model="m", query="", documents=["a"])),
    "wrong key": error(lambda: cohere.ClientV2("wrong", base_url=urls["v2"]).rerank(**question)),
}
print(json.dumps(answer))
