"""LlamaIndex: rerankd as a node postprocessor. Start `rerankd serve` first, or set RERANK_URL.

pip install llama-index-core llama-index-postprocessor-cohere-rerank

With an LLM, use RetrieverQueryEngine.from_args(retriever, node_postprocessors=[reranker]).
"""

import os

from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.postprocessor.cohere_rerank import CohereRerank

URL = os.environ.get("RERANK_URL", "http://localhost:11440")
KEY = os.environ.get("RERANKD_API_KEY", "") or "none"  # the SDK wants one

NODES = [
    TextNode(text="How long is the coast of Norway? It depends on the ruler."),
    TextNode(text="An egg with a soft yolk needs six minutes in boiling water, a hard one ten."),
    TextNode(text="An egg has about 70 calories, most of them in the yolk."),
    TextNode(text="How do I boil water on a mountain? It takes longer, as it is less hot."),
]


class SharedWords(BaseRetriever):
    """Nodes that share a word with the query; an index's as_retriever() takes its place."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        words = set(query_bundle.query_str.lower().rstrip("?").split())
        shared = [(len(words & set(node.text.lower().split())), node) for node in NODES]
        return [NodeWithScore(node=node, score=count) for count, node in shared if count]


query = "how long do I boil an egg?"
candidates = SharedWords().retrieve(query)
reranker = CohereRerank(base_url=URL, api_key=KEY, model="any", top_n=3)
for found in reranker.postprocess_nodes(candidates, query_str=query):
    print(f"{found.score:.3f}  {found.node.get_content()}")
