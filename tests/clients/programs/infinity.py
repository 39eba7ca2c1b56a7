"""Infinity's client, as LangChain's InfinityRerank uses it."""

import json
import sys

from infinity_client import AuthenticatedClient, Client
from infinity_client.api.default import rerank
from infinity_client.models import RerankInput

task = json.loads(sys.argv[1])
if task["key"]:
    client = AuthenticatedClient(base_url=task["urls"]["rows"], token=task["key"])
else:
    client = Client(base_url=task["urls"]["rows"])
body = RerankInput(query=task["query"], documents=task["documents"], model="m")
answer = rerank.sync(client=client, body=body)
print(
    json.dumps(
        {
            "rows": [[row.index, row.relevance_score] for row in answer.results],
            "model": answer.model,
            "tokens": [answer.usage.prompt_tokens, answer.usage.total_tokens],
        }
    )
)
