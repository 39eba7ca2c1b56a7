"""LlamaIndex's rerankers."""

import json
import sys

from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.cohere_rerank import CohereRerank
from llama_index.postprocessor.jinaai_rerank import JinaRerank
from llama_index.postprocessor.siliconflow_rerank import SiliconFlowRerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference
from llama_index.postprocessor.xinference_rerank import XinferenceRerank

task = json.loads(sys.argv[1])
urls, key, count = task["urls"], task["key"] or "none", len(task["documents"])
rankers = {
    "tei": TextEmbeddingInference(base_url=urls["tei"], top_n=count, auth_token=f"Bearer {key}"),
    "tei, url with a slash": TextEmbeddingInference(
        base_url=urls["tei"] + "/", top_n=count, auth_token=f"Bearer {key}"
    ),
    "jina": JinaRerank(base_url=urls["jina"], api_key=key, top_n=count),
    "cohere": CohereRerank(base_url=urls["cohere"], api_key=key, top_n=count),
    "siliconflow": SiliconFlowRerank(base_url=urls["siliconflow"], api_key=key, top_n=count),
}
if not task["key"]:  # it sends none
    rankers["xinference"] = XinferenceRerank(base_url=urls["xinference"], model="m", top_n=count)
answer = {}
for name, ranker in rankers.items():
    nodes = [
        NodeWithScore(node=TextNode(id_=str(at), text=text), score=0.0)
        for at, text in enumerate(task["documents"])
    ]
    found = ranker.postprocess_nodes(nodes, query_str=task["query"])
    answer[name] = [[int(node.node.node_id), node.score] for node in found]
print(json.dumps(answer))
