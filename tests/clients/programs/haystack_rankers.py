"""Haystack's rankers for Jina, Cohere and TEI."""

import json
import sys

from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.rankers.cohere import CohereRanker
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker
from haystack_integrations.components.rankers.jina import JinaRanker

task = json.loads(sys.argv[1])
urls, key = task["urls"], Secret.from_token(task["key"] or "none")
rankers = {
    "jina": JinaRanker(base_url=urls["jina"], api_key=key),
    "cohere": CohereRanker(api_base_url=urls["cohere"], api_key=key, model="m"),
    "tei": HuggingFaceTEIRanker(url=urls["tei"], token=key),
}
answer = {}
for name, ranker in rankers.items():
    documents = [Document(id=str(at), content=text) for at, text in enumerate(task["documents"])]
    found = ranker.run(query=task["query"], documents=documents)["documents"]
    answer[name] = [[int(document.id), document.score] for document in found]
try:
    rankers["jina"].run(query="", documents=[Document(content="a")])
except RuntimeError as error:
    answer["refused"] = str(error)
print(json.dumps(answer))
