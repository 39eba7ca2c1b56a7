"""(pure) What kind of model a file says it is, apart from its architecture: by names, tags and marker tokens.

A recipe is never taken from a name: names only speak *against* one. A file that is called a reranker
anywhere, even in its file name only, is not scored as an embedding model, for then it is a reranker whose
head was lost.
"""

from __future__ import annotations

import re
from typing import Literal

from rerankd.formats.metadata import ModelMetadata

Kind = Literal["reranker", "late interaction", "listwise", "sparse"]

# Patterns for names in lower case, all that is not a letter or a digit written as one hyphen.
_RERANKER = re.compile(
    r"re-?rank|cross-?encoder|ranker(?:-|$)|zerank|(?:^|-)ms-marco-(?:minilm|tinybert|electra)"
    r"|mmarco-mminilm|mono(?:bert|t5)|(?:^|-)lamar(?:-|$)|(?:^|-)rank-?(?:llama|zephyr|vicuna|gpt|t5)(?:-|$)"
)
_LATE = re.compile(r"colbert|late-interaction|(?:^|-)m?lateon(?:-|$)|embed-v1-late|colmodernvbert|colqwen")
_SPARSE = re.compile(r"splade|(?:^|-)sparse(?:-|$)")
_RERANKER_TAGS = frozenset(("reranker", "reranking", "text-ranking", "cross-encoder"))
_EMBEDDER_TAGS = frozenset(("sentence-similarity", "feature-extraction"))
# What older cards of cross-encoders say.
_CLASSIFIER_TAG = "text-classification"
_SPARSE_TAGS = frozenset(("splade", "sparse-encoder"))
_LATE_TAGS = frozenset(("colbert", "late-interaction", "multi-vector", "pylate"))
# Tokens that stand before the texts of late interaction, and those whose states jina-reranker-v3 compares.
_LATE_MARKERS = (("[Q] ", "[D] "), ("[QueryMarker]", "[DocumentMarker]"))
_LISTWISE_MARKERS = ("<|embed_token|>", "<|rerank_token|>")
# A folder that a hub's client or rerankd made: hf--org--repo, models--org--repo.
_HUB_FOLDER = "--"


def plain(name: str) -> str:
    """A name as names are compared: lower case, one hyphen for all that is not a letter or a digit."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def header_names(metadata: ModelMetadata) -> tuple[str, str]:
    """The names in the header, as `plain` writes them."""
    return plain(metadata.name), plain(f"{metadata.basename}-{metadata.finetune}")


def kind_of(metadata: ModelMetadata) -> Kind | None:
    """What the file says that it is; None where nothing says so."""
    if all(metadata.token_id(marker) is not None for marker in _LISTWISE_MARKERS):
        return "listwise"
    names = _all_names(metadata)
    tags = {tag.lower() for tag in metadata.tags}
    marked = any(all(metadata.token_id(one) is not None for one in pair) for pair in _LATE_MARKERS)
    if marked or metadata.has_late_projection or tags & _LATE_TAGS or any(map(_LATE.search, names)):
        return "late interaction"
    tagged = tags & _RERANKER_TAGS or (_CLASSIFIER_TAG in tags and not tags & _EMBEDDER_TAGS)
    named = metadata.pooling == "rank" or bool(metadata.rerank_template) or bool(tagged)
    if named or any(map(_RERANKER.search, names)):
        return "reranker"
    return "sparse" if tags & _SPARSE_TAGS or any(map(_SPARSE.search, names)) else None


def is_called_embedder(metadata: ModelMetadata) -> bool:
    """Whether a name or a tag says that it is an embedding model."""
    tags = {tag.lower() for tag in metadata.tags}
    return bool(tags & _EMBEDDER_TAGS) or any("embed" in name for name in _all_names(metadata))


def _all_names(metadata: ModelMetadata) -> tuple[str, ...]:
    """The names in the header, of the models it was made from, of the file, and of the hub's folder it is
    in."""
    folders = (part for part in metadata.path.parts[:-1] if _HUB_FOLDER in part)
    said = (*metadata.base_models, metadata.path.name, *folders)
    return (*header_names(metadata), *map(plain, said))
