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
url, key, count = task["url"], task["key"] or "none", len(task["documents"])
rankers = {
    "tei": TextEmbeddingInference(base_url=url, top_n=count, auth_token=f"Bearer {key}"),
    "tei, url with a slash": TextEmbeddingInference(
        base_url=url + "/", top_n=count, auth_token=f"Bearer {key}"
    ),
    "jina": JinaRerank(base_url=f"{url}/v1", api_key=key, top_n=count),
    "cohere": CohereRerank(base_url=url, api_key=key, top_n=count),
    "siliconflow": SiliconFlowRerank(base_url=f"{url}/v1/rerank", api_key=key, top_n=count),
}
if not task["key"]:  # it sends none
    rankers["xinference"] = XinferenceRerank(base_url=url, model="m", top_n=count)
answer = {}
for name, ranker in rankers.items():
    nodes = [
        NodeWithScore(node=TextNode(id_=str(at), text=text), score=0.0)
        for at, text in enumerate(task["documents"])
    ]
    found = ranker.postprocess_nodes(nodes, query_str=task["query"])
    answer[name] = [[int(node.node.node_id), node.score] for node in found]
print(json.dumps(answer))
