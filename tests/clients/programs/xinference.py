"""Xinference's client: looks the model up, then asks it."""

import json
import sys

from xinference_client import RESTfulClient

task = json.loads(sys.argv[1])
client = RESTfulClient(task["urls"]["all"], api_key=task["key"] or None)
model = client.get_model("bge-reranker-base")
question = {"query": task["query"], "documents": task["documents"]}


def rows(answer):
    return [[row["index"], row["relevance_score"]] for row in answer["results"]]


try:
    model.rerank(query="", documents=["a"])
    refused = None
except RuntimeError as error:
    refused = str(error)
answer = {
    "kind": type(model).__name__,
    "models": sorted(client.list_models()),
    "all": rows(model.rerank(**question)),
    "top 2": rows(model.rerank(**question, top_n=2)),
    "documents": [
        row["document"]["text"] for row in model.rerank(**question, return_documents=True)["results"]
    ],
    "refused": refused,
}
print(json.dumps(answer))
