"""LangChain's document compressors for Jina and Cohere."""

import json
import sys
import warnings

warnings.simplefilter("ignore")
import langchain_community.document_compressors.jina_rerank as jina  # noqa: E402
from langchain_cohere import CohereRerank  # noqa: E402
from langchain_core.documents import Document  # noqa: E402

task = json.loads(sys.argv[1])
key = task["key"] or "none"
documents = [Document(text, metadata={"at": at}) for at, text in enumerate(task["documents"])]
# The URL can't be given to it.
jina.JINA_API_URL = task["urls"]["jina"]


def rows(compressor):
    found = compressor.compress_documents(documents, task["query"])
    return [[document.metadata["at"], document.metadata["relevance_score"]] for document in found]


def refusal(call):
    try:
        call()
    except RuntimeError as error:
        return str(error)


ranker = jina.JinaRerank(jina_api_key=key, top_n=None)
answer = {
    "jina": rows(ranker),
    "cohere": rows(CohereRerank(base_url=task["urls"]["cohere"], cohere_api_key=key, model="m", top_n=None)),
    "cohere, 2": rows(CohereRerank(base_url=task["urls"]["cohere"], cohere_api_key=key, model="m", top_n=2)),
    "refused": refusal(lambda: ranker.rerank(["a"], "")),
}
print(json.dumps(answer))
