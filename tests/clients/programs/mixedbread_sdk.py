"""Mixedbread's own client."""

import json
import sys

import mixedbread

task = json.loads(sys.argv[1])
client = mixedbread.Mixedbread(api_key=task["key"] or "none", base_url=task["urls"]["all"], max_retries=0)
question = {"model": "m", "query": task["query"], "input": task["documents"]}


def rows(answer):
    return [[row.index, row.score] for row in answer.data]


shown = client.rerank(**question, top_k=2, return_input=True)
try:
    client.rerank(**{**question, "query": ""})
    refused = None
except mixedbread.APIStatusError as error:
    refused = [error.status_code, str(error)]
answer = {
    "all": rows(client.rerank(**question)),
    "top 2": [[row.index, row.score, row.input] for row in shown.data],
    "said": [shown.top_k, shown.return_input, shown.object, shown.usage.total_tokens],
    "refused": refused,
}
print(json.dumps(answer))
