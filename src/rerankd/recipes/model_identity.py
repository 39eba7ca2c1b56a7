"""(pure) Identify the kind of model a file contains by its names, tags and marker tokens: reranker, ColBERT,
SPLADE.

A name alone never selects a recipe; it can only rule one out. A file that is named a reranker anywhere, even
only in its file name, is not scored as an embedding model: it is a reranker that has lost its head.
"""

from __future__ import annotations

import re
from typing import Literal

from rerankd.formats.metadata import ModelMetadata

Kind = Literal["reranker", "late interaction", "listwise", "sparse"]

# Patterns for names as `plain` writes them: lower case, words separated by one hyphen.
_RERANKER = re.compile(
    r"re-?rank|cross-?encoder|ranker(?:-|$)|zerank|(?:^|-)ms-marco-(?:minilm|tinybert|electra)"
    r"|mmarco-mminilm|mono(?:bert|t5)|(?:^|-)lamar(?:-|$)|(?:^|-)rank-?(?:llama|zephyr|vicuna|gpt|t5)(?:-|$)"
)
_LATE = re.compile(r"colbert|late-interaction|(?:^|-)m?lateon(?:-|$)|embed-v1-late|colmodernvbert|colqwen")
_SPARSE = re.compile(r"splade|(?:^|-)sparse(?:-|$)")
_RERANKER_TAGS = frozenset(("reranker", "reranking", "text-ranking", "cross-encoder"))
_EMBEDDER_TAGS = frozenset(("sentence-similarity", "feature-extraction"))
# The tag on older model cards of cross-encoders.
_CLASSIFIER_TAG = "text-classification"
_SPARSE_TAGS = frozenset(("splade", "sparse-encoder"))
_LATE_TAGS = frozenset(("colbert", "late-interaction", "multi-vector", "pylate"))
# Tokens that late-interaction models put before the texts.
_LATE_MARKERS = (("[Q] ", "[D] "), ("[QueryMarker]", "[DocumentMarker]"))
# In the names of folders that rerankd or a hub's client creates: hf--org--repo, models--org--repo.
_HUB_FOLDER = "--"


def has_causal_head(metadata: ModelMetadata) -> bool:
    """Whether it is a checkpoint of a causal model with a rank head instead of an output matrix."""
    is_row = metadata.has_cls_output and not metadata.has_cls
    return metadata.is_causal and metadata.format == "safetensors" and is_row


def plain(name: str) -> str:
    """A name in the form used for comparison: lower case, one hyphen for each run of other characters."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def header_names(metadata: ModelMetadata) -> tuple[str, str]:
    """The names in the header, in the form of `plain`."""
    return plain(metadata.name), plain(f"{metadata.basename}-{metadata.finetune}")


def kind_of(metadata: ModelMetadata) -> Kind | None:
    """The kind of model that the file identifies itself as, None if nothing indicates one."""
    if metadata.has_listwise_markers:
        return "listwise"
    names = _all_names(metadata)
    tags = {tag.lower() for tag in metadata.tags}
    has_markers = any(all(metadata.token_id(one) is not None for one in pair) for pair in _LATE_MARKERS)
    if has_markers or metadata.has_late_projection or tags & _LATE_TAGS or any(map(_LATE.search, names)):
        return "late interaction"
    is_tagged = tags & _RERANKER_TAGS or (_CLASSIFIER_TAG in tags and not tags & _EMBEDDER_TAGS)
    is_marked = metadata.pooling == "rank" or _has_rerank_template(metadata) or bool(is_tagged)
    if is_marked or any(map(_RERANKER.search, names)):
        return "reranker"
    return "sparse" if tags & _SPARSE_TAGS or any(map(_SPARSE.search, names)) else None


def is_called_reranker(metadata: ModelMetadata) -> bool:
    """Whether a name says that it is a reranker."""
    return any(map(_RERANKER.search, _all_names(metadata)))


def _has_rerank_template(metadata: ModelMetadata) -> bool:
    return bool(metadata.rerank_template or metadata.rerank_instruct_template)


def is_called_embedder(metadata: ModelMetadata) -> bool:
    """Whether a name or a tag marks the file as an embedding model."""
    tags = {tag.lower() for tag in metadata.tags}
    return bool(tags & _EMBEDDER_TAGS) or any("embed" in name for name in _all_names(metadata))


def _all_names(metadata: ModelMetadata) -> tuple[str, ...]:
    """All names of a file, as `plain` writes them: in its header, of its base models, of the file itself and
    of the hub folders that contain it."""
    folders = (part for part in metadata.path.parts[:-1] if _HUB_FOLDER in part)
    other = (*metadata.base_models, metadata.path.name, *folders)
    return (*header_names(metadata), *map(plain, other))
