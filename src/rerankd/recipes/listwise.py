"""(pure) The recipe of a listwise model: it is in the catalog, and the file must have what it needs.

The file of a listwise model has two marker tokens in its vocabulary and a projector, two matrices that turn
the states of these tokens into vectors. No file declares the prompt or the limits of a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rerankd.domain import Refusal, Source
from rerankd.formats import head_file
from rerankd.formats.metadata import ModelMetadata
from rerankd.recipes.catalog import Entry

FACTS = ("markers", "query_tokens", "document_tokens", "block_documents")
"""The parts of a recipe that only the catalog has."""
SOURCES: Mapping[str, Source] = dict.fromkeys(FACTS, "catalog")


def missing(metadata: ModelMetadata, entry: Entry | None) -> Refusal | None:
    """The refusal of a file that is not a complete and known listwise model."""
    if not metadata.has_listwise_markers and (entry is None or entry.method != "listwise"):
        return Refusal(
            "its vocabulary has no marker tokens, so it is not a listwise model", "remove method = listwise"
        )
    if entry is None or entry.method != "listwise":
        named = "folder that name" if metadata.format == "safetensors" else "header (general.name) that name"
        return Refusal(
            "it is a listwise model (its vocabulary has the marker tokens of jina-reranker-v3), but not one "
            "of the catalog, and no file declares its prompt and the size of its blocks",
            f"if it is jina-reranker-v3 or jina-reranker-v3.5, give its {named}",
        )
    original = next((ref for ref in entry.refs if not ref.lower().endswith("gguf")), "")
    if absent := [one for one in entry.markers if metadata.token_id(one) is None]:
        return Refusal(
            f"its vocabulary has no token {absent[0]}, whose state the score is computed from: it is not "
            f"{entry.name}, or a damaged conversion of it",
            f"run `rerankd pull {original}`",
        )
    if not (metadata.has_cls and metadata.has_cls_output):
        return Refusal(
            "its projector is missing, the two matrices that turn the states of its marker tokens into "
            "vectors: GGUF can't represent them",
            f"put {head_file.NAMES[-1]} of the model's repository into the folder of the file, or run "
            f"`rerankd pull {original}`",
        )
    if metadata.sliding_window != entry.sliding_window:
        return Refusal(
            f"some layers of {entry.name} see a window of {entry.sliding_window} tokens, but its file does "
            "not declare that"
            if entry.sliding_window
            else f"its layers see a window of {metadata.sliding_window} tokens, unlike those of {entry.name}",
            f"serve the original safetensors files: run `rerankd pull {original}`",
        )
    return None


def facts(entry: Entry | None) -> dict[str, Any]:
    """The parts of the recipe that only the catalog has."""
    assert entry is not None, "`missing` refuses others"
    return {name: getattr(entry, name) for name in FACTS}
