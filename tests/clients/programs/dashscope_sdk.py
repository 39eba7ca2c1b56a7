"""Alibaba's SDK for DashScope."""

import json
import sys

import dashscope

task = json.loads(sys.argv[1])
dashscope.base_http_api_url = task["urls"]["all"]
question = {"model": "qwen3-rerank", "query": task["query"], "documents": task["documents"]}
key = task["key"] or "none"


def rows(answer):
    assert answer.status_code == 200, answer
    return [[row.index, row.relevance_score] for row in answer.output.results]


whole = dashscope.TextReRank.call(**question, api_key=key)
shown = dashscope.TextReRank.call(
    **question, api_key=key, top_n=2, return_documents=True, instruct="Find the capital"
)
refused = dashscope.TextReRank.call(**{**question, "query": " "}, api_key=key)
answer = {
    "all": rows(whole),
    "tokens": whole.usage.total_tokens,
    "request_id": whole.request_id,
    "top 2": rows(shown),
    "documents": [row["document"]["text"] for row in shown.output.results],
    "refused": [refused.status_code, refused.code, refused.message],
}
print(json.dumps(answer))
