"""Voyage's SDK, sync and async."""

import asyncio
import json
import sys

import voyageai

task = json.loads(sys.argv[1])
client = {"api_key": task["key"] or "none", "base_url": task["urls"]["all"], "max_retries": 0}
question = {"query": task["query"], "documents": task["documents"], "model": "rerank-2.5"}


def rows(answer):
    return [[row.index, row.relevance_score, row.document] for row in answer.results]


try:
    voyageai.Client(**{**client, "api_key": "wrong"}).rerank(**{**question, "query": ""})
    refused = None
except voyageai.error.VoyageError as error:
    refused = f"{type(error).__name__}: {error}"
all_rows = voyageai.Client(**client).rerank(**question)
answer = {
    "all": rows(all_rows),
    "tokens": all_rows.total_tokens,
    "top 2": rows(voyageai.Client(**client).rerank(**question, top_k=2)),
    "async": rows(asyncio.run(voyageai.AsyncClient(**client).rerank(**question))),
    "refused": refused,
}
print(json.dumps(answer))
