"""(pure) The recipe of a late-interaction model (ColBERT): what its files declare, and what is missing.

Lengths, markers and the skiplist come from the files or the user's settings (formats/late_interaction.py).
Tokens are looked up by their text, because their ids differ between vocabularies.
"""

from __future__ import annotations

from rerankd.domain import Refusal
from rerankd.formats.late_interaction import Declared
from rerankd.formats.metadata import ModelMetadata
from rerankd.interaction import Interaction
from rerankd.recipes.partial_recipe import PartialRecipe

PARTS = (
    "query_marker",
    "document_marker",
    "query_length",
    "expansion_length",
    "expansion_token",
    "attends_to_expansion",
    "skiplist",
)
"""The settings of this method, besides the prefixes and max_length, which is the length of documents."""
# The line of each missing part in rerankd.toml, with a value that is refused until the user replaces it.
_REQUIRED = {
    "query_marker": 'query_marker = "FILL IN"  # the token before a query, such as "[unused0]"; "" for none',
    "document_marker": 'document_marker = "FILL IN"  # the token before a document; "" for none',
    "query_length": "query_length = -1  # the most tokens of a query, such as 32",
    "max_length": "max_length = -1  # the most tokens of a document, such as 220",
    "expansion_length": "expansion_length = -1  # queries are filled up to it; 0: they are not",
    "expansion_token": 'expansion_token = "FILL IN"  # the token that fills a query, such as "[MASK]"',
}


def of_file(metadata: ModelMetadata) -> PartialRecipe:
    """What the files declare. A length that they leave to the model is the most that it can read."""
    declared = metadata.layout.interaction if metadata.layout is not None else None
    if declared is None:
        return PartialRecipe()
    query, document = (
        _split(metadata, declared, text) for text in (declared.query_prefix, declared.document_prefix)
    )
    most = metadata.context_length
    return PartialRecipe(
        max_length=most if declared.document_length == 0 else declared.document_length,
        query_marker=query[0],
        query_prefix=query[1],
        document_marker=document[0],
        document_prefix=document[1],
        query_length=most if declared.query_length == 0 else declared.query_length,
        expansion_length=declared.expansion_length,
        expansion_token=declared.expansion_token,
        attends_to_expansion=declared.attends_to_expansion,
        skiplist=declared.skiplist,
    )


def _split(metadata: ModelMetadata, declared: Declared, text: str | None) -> tuple[str | None, str | None]:
    """The marker at the beginning of a prefix, and the rest. The marker may end with a space ("[Q] ")."""
    if text is None:
        return None, None
    added = metadata.control_tokens.keys() | metadata.user_defined_tokens.keys()
    word = (text.split(None, 1) or [""])[0]
    for candidate in (text, f"{word} ", word):
        is_token = candidate in added or (declared.has_markers and metadata.token_id(candidate) is not None)
        if candidate and is_token and text.startswith(candidate):
            rest = text.removeprefix(candidate)
            return candidate, rest if rest.strip() else ""
    return (word, "") if declared.has_markers else ("", text)


def missing(metadata: ModelMetadata, merged: PartialRecipe) -> Refusal | None:
    """The refusal that names what neither the files nor the settings define, or a token that the vocabulary
    does not have."""
    if metadata.format == "gguf":
        return Refusal(
            "its GGUF file lacks what late interaction needs: the projection, or how to apply it",
            "serve the original safetensors files (`rerankd pull hf:ORG/REPO`)",
        )
    found = [part for part in _REQUIRED if getattr(merged, part) is None]
    if merged.expansion_length == 0 and "expansion_token" in found:
        found.remove("expansion_token")
    if found:
        lines = map(_REQUIRED.__getitem__, found)
        return Refusal(
            f"it is a late interaction model (ColBERT), and its files do not define {', '.join(found)}",
            "set this in rerankd.toml as the model card or the training configuration states it",
            "\n".join(('method = "late_interaction"', *lines)),
        )
    wanted = {"query_marker": merged.query_marker, "document_marker": merged.document_marker}
    if merged.expansion_length:
        wanted["expansion_token"] = merged.expansion_token
    for part, token in wanted.items():
        if token and metadata.token_id(token) is None:
            return Refusal(
                f"its {part} {token!r} is not a token of its vocabulary",
                f"set {part} in rerankd.toml to a token of tokenizer.json",
            )
    query, filled = merged.query_length or 0, merged.expansion_length or 0
    if not filled <= query <= metadata.context_length:
        return Refusal(
            f"its query_length is {query}, its expansion_length {filled}, and it can read "
            f"{metadata.context_length} tokens: each must not be above the next",
            "set query_length and expansion_length in rerankd.toml as the model card states them",
        )
    return None


def interaction_of(metadata: ModelMetadata, merged: PartialRecipe) -> Interaction:
    """The interaction of a merged recipe in which nothing is missing. Words of the skiplist that are not
    single tokens are left out, as in the reference implementations."""
    assert merged.query_length is not None
    filled = merged.expansion_length or 0
    return Interaction(
        merged.query_length,
        merged.query_marker or "",
        merged.document_marker or "",
        filled,
        (merged.expansion_token or "") if filled else "",
        bool(merged.attends_to_expansion and filled),
        tuple(one for one in merged.skiplist or () if metadata.token_id(one) is not None),
    )
