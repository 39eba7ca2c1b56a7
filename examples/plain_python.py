"""Rerank over HTTP, with httpx and nothing else. Start `rerankd serve` first, or set RERANK_URL."""

import os

import httpx

URL = os.environ.get("RERANK_URL", "http://localhost:11440")
KEY = os.environ.get("RERANKD_API_KEY", "")

QUERY = "how long do I boil an egg?"
DOCUMENTS = [
    "How long is the coast of Norway? It depends on the ruler.",
    "An egg with a soft yolk needs six minutes in boiling water, a hard one ten.",
    "An egg has about 70 calories, most of them in the yolk.",
    "水开后煮六分钟，蛋黄还是软的；煮十分钟就全熟了。",
]

answer = httpx.post(
    f"{URL}/v1/rerank",
    json={"query": QUERY, "documents": DOCUMENTS, "top_n": 3},
    headers={"Authorization": f"Bearer {KEY}"} if KEY else {},
    timeout=60,
)
if answer.status_code != 200:
    raise SystemExit(f"{answer.status_code}: {answer.json()['message']}")
for row in answer.json()["results"]:
    print(f"{row['relevance_score']:.3f}  {DOCUMENTS[row['index']]}")
for warning in answer.json()["meta"].get("warnings", ()):
    print("note:", warning)
