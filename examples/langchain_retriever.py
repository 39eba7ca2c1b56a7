"""LangChain: rerankd orders what a retriever finds. Start `rerankd serve` first, or set RERANK_URL.

pip install langchain-classic langchain-cohere
"""

import os

from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_cohere import CohereRerank
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

URL = os.environ.get("RERANK_URL", "http://localhost:11440")
KEY = os.environ.get("RERANKD_API_KEY", "") or "none"  # the SDK wants one

DOCUMENTS = [
    Document(
        "How long is the coast of Norway? It depends on the ruler.",
        metadata={"source": "maps"},
    ),
    Document(
        "An egg with a soft yolk needs six minutes in boiling water, a hard one ten.",
        metadata={"source": "recipes"},
    ),
    Document("An egg has about 70 calories, most of them in the yolk.", metadata={"source": "food"}),
    Document(
        "How do I boil water on a mountain? It takes longer, as it is less hot.",
        metadata={"source": "travel"},
    ),
]


class SharedWords(BaseRetriever):
    """Documents that share a word with the query; a vector store's as_retriever() takes its place."""

    documents: list[Document]

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        words = set(query.lower().rstrip("?").split())
        return [one for one in self.documents if words & set(one.page_content.lower().split())]


retriever = ContextualCompressionRetriever(
    base_retriever=SharedWords(documents=DOCUMENTS),
    base_compressor=CohereRerank(base_url=URL, cohere_api_key=KEY, model="any", top_n=3),
)
for document in retriever.invoke("how long do I boil an egg?"):
    print(
        f"{document.metadata['relevance_score']:.3f}  {document.metadata['source']}: {document.page_content}"
    )
