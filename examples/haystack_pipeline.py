"""Haystack: a pipeline of BM25 and rerankd. Start `rerankd serve` first, or set RERANK_URL.

pip install haystack-ai cohere-haystack
"""

import os

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret
from haystack_integrations.components.rankers.cohere import CohereRanker

URL = os.environ.get("RERANK_URL", "http://localhost:11440")
KEY = os.environ.get("RERANKD_API_KEY", "") or "none"  # the SDK wants one

store = InMemoryDocumentStore()
store.write_documents(
    [
        Document(content="How long is the coast of Norway? It depends on the ruler."),
        Document(content="An egg with a soft yolk needs six minutes in boiling water, a hard one ten."),
        Document(content="An egg has about 70 calories, most of them in the yolk."),
        Document(content="How do I boil water on a mountain? It takes longer, as it is less hot."),
    ]
)

pipeline = Pipeline()
pipeline.add_component("retriever", InMemoryBM25Retriever(store, top_k=50))
pipeline.add_component(
    "ranker", CohereRanker(api_base_url=URL, api_key=Secret.from_token(KEY), model="any", top_k=3)
)
pipeline.connect("retriever.documents", "ranker.documents")

query = "how long do I boil an egg?"
answer = pipeline.run({"retriever": {"query": query}, "ranker": {"query": query}})
for document in answer["ranker"]["documents"]:
    print(f"{document.score:.3f}  {document.content}")
