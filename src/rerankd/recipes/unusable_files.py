"""(pure) Files that no method can score: parts of models, damaged files, classes that nobody knows."""

from __future__ import annotations

from rerankd.domain import Refusal
from rerankd.formats.metadata import ModelMetadata
from rerankd.recipes.catalog import Entry
from rerankd.recipes.partial_recipe import PartialRecipe
from rerankd.recipes.scoring_method import KNOWN_GOOD, own_method, suggest_another_file

_MAIN_FILE = "give the path of the model's main file"


def unusable(metadata: ModelMetadata, entry: Entry | None, settings: PartialRecipe) -> Refusal | None:
    """The refusal of a file that is not a complete model that an engine can run."""
    if entry is not None and entry.refuses(metadata) and settings.method != "causal_lm":
        return Refusal(f"this is {entry.name}: {entry.refused}", KNOWN_GOOD)
    is_named = "cross_encoder" in (settings.method, entry.method if entry else None)
    is_pair = own_method(metadata) == "cross_encoder"
    if metadata.library == "own code" and is_pair and not is_named:
        return Refusal(
            f"{metadata.architecture} is code in the model's own files, so nothing tells how it reads a pair",
            'if its tokenizer joins query and document, set method = "cross_encoder" and trust_remote_code = '
            "true (it then runs that code, so read it first), and use the PyTorch backend",
        )
    if metadata.refusal is not None and not metadata.library:
        return Refusal(metadata.refusal.reason, suggest_another_file(metadata, entry))
    if metadata.kind != "model" or metadata.architecture == "clip":
        part = "mmproj" if metadata.architecture == "clip" else metadata.kind
        return Refusal(f"the file is not a complete model but a part of one ({part})", _MAIN_FILE)
    if not metadata.parameters:
        return Refusal("the file contains a vocabulary but no weights", _MAIN_FILE)
    if not metadata.vocabulary_size:
        return Refusal("the file contains no vocabulary", "download a complete conversion of the model")
    if metadata.hidden_activation not in ("", "gelu", "silu"):
        return Refusal(f"its activation function {metadata.hidden_activation!r} is not supported", KNOWN_GOOD)
    return None
