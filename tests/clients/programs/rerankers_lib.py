"""The library `rerankers`, which speaks four dialects; it takes a URL as it is."""

import json
import sys

from rerankers import Reranker

task = json.loads(sys.argv[1])
answer = {}
for provider, url in task["urls"].items():
    ranker = Reranker(
        "m",
        model_type=provider,
        url=url,
        api_key=task["key"] or "none",
        verbose=0,
    )
    ranked = ranker.rank(query=task["query"], docs=task["documents"])
    answer[provider] = [[row.document.doc_id, row.score] for row in ranked.results]
print(json.dumps(answer))
