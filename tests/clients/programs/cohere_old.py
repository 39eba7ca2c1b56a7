"""Cohere's SDK in the line that Dify's plugin pins: it posts to /rerank and wants each document back."""

import json
import sys

import cohere

task = json.loads(sys.argv[1])
client = cohere.Client(task["key"] or "none", base_url=task["urls"]["rows"])
answer = client.rerank(
    model="m", query=task["query"], documents=task["documents"], top_n=3, return_documents=True
)
print(json.dumps([[row.index, row.relevance_score, row.document.text] for row in answer.results]))
