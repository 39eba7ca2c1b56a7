"""(pure) What a causal reranker is asked, as far as that is known; and the lines of rerankd.toml that say it.

A prompt is known from the catalog (name, architecture and sizes agree), or from the file: a rerank template
that names {query} and {document}, with the labels of its rank head. Qwen3-Reranker's is taken for a text
model that says it is one: by that template, by the labels yes and no of a rank head, or by the name
Qwen3-Reranker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rerankd.formats.metadata import ModelMetadata
from rerankd.recipes.catalog import Catalog, Entry, template_error
from rerankd.recipes.model_identity import header_names, plain
from rerankd.recipes.partial_recipe import NOTHING, PartialRecipe
from rerankd.scoring.prompt import INSTRUCTION

QWEN3_RERANKER = "Qwen3-Reranker-0.6B"
_QWEN3_NAME = "qwen3-reranker"
_QWEN3_LABELS = ("yes", "no")
_NEGATIVE = frozenset(("no", "false", "0", "irrelevant", "negative", "\u5426"))
# Words of a name that tell nothing of how a model is asked: sizes, versions of a file, its quantisation.
_NEUTRAL = re.compile(
    r"[\dv.]+|\d+[bm]|i?q\d\w*|[kmslx]{1,2}|xx?s|(b?f|fp|int)\d+|i1|imatrix|gguf|ggml|hf|llama|cpp|seq|cls|quanti[sz]ed|models?"
)
# Between parts that the reference tokenises apart; not in a file's own template.
_SEAM = "\x1e"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the `catalog` and the `file` say of how a causal reranker is asked. `note` is what the user should
    know of where that comes from; `assumed` says that nothing states the template, so that every answer
    carries the note."""

    catalog: PartialRecipe
    file: PartialRecipe = NOTHING
    note: str = ""
    assumed: bool = False


def known(metadata: ModelMetadata, entry: Entry | None, catalog: Catalog) -> Prompt | None:
    """The prompt of a causal reranker; None where nothing says it."""
    labels = labels_of(metadata)
    if entry is not None:
        return _of_entry(metadata, entry) if entry.method == "causal_lm" else None
    qwen = catalog.find(QWEN3_RERANKER)
    assert qwen is not None, "the catalog has the prompt of Qwen3-Reranker"
    own = metadata.rerank_template
    instruction = _instruction_in(own, qwen.template)
    if own and instruction is None:
        usable = labels is not None and not own_template_error(own)
        return Prompt(NOTHING, PartialRecipe(template=own, labels=labels)) if usable else None
    if instruction is not None and metadata.architecture != "qwen3vl":
        # llama.cpp's converter gives the vision model the text model's template, which is not its own.
        said = PartialRecipe(template=qwen.template, labels=labels, instruction=instruction)
        return Prompt(NOTHING if labels else PartialRecipe(labels=_QWEN3_LABELS), said)
    if metadata.architecture != "qwen3":
        return None
    if metadata.pooling == "rank" and labels == _QWEN3_LABELS:
        return Prompt(
            PartialRecipe(template=qwen.template, instruction=qwen.instruction),
            PartialRecipe(labels=labels),
            "this model is asked as Qwen3-Reranker is, because its rank head has the labels yes and no; its "
            "file does not say the prompt. Set a template if its model card names another",
            assumed=True,
        )
    if any(f"-{_QWEN3_NAME}-" in f"-{name}-" for name in header_names(metadata)):
        return Prompt(
            PartialRecipe(template=qwen.template, labels=_QWEN3_LABELS, instruction=qwen.instruction),
            note="this model is asked as Qwen3-Reranker is, because of its name; its sizes are none of the "
            "known ones. Set a template if its model card names another prompt",
            assumed=True,
        )
    return None


def own_template_error(template: str) -> str:
    """Why a file's rerank template can't be filled in, "" where it can."""
    if error := template_error(template):
        return error
    return "the file does not say which {instruction} it wants" if INSTRUCTION in template else ""


def labels_of(metadata: ModelMetadata) -> tuple[str, str] | None:
    """The two labels of the rank head, the relevant one first; None where the file names none, others than
    tokens, or one that means not relevant first: its order may be wrong, or its question be turned around."""
    said = metadata.output_labels
    fit = len(said) == 2 and all(metadata.token_id(label) is not None for label in said)
    return (said[0], said[1]) if fit and said[0].strip().lower() not in _NEGATIVE else None


def _of_entry(metadata: ModelMetadata, entry: Entry) -> Prompt:
    own = metadata.rerank_template
    instruction = _instruction_in(own, entry.template)
    known = PartialRecipe(template=entry.template, labels=entry.labels, instruction=entry.instruction)
    if not own and (more := _more_words(metadata, entry)):
        note = (
            f"this model is asked as {entry.name} is, because of its name and its sizes; but its name also "
            f"says {more!r}, and its file does not say the prompt. Set a template if its model card names "
            "another one"
        )
        return Prompt(known, note=note, assumed=True)
    if not own or instruction is not None:
        said = PartialRecipe(instruction=instruction or None)
        return Prompt(replace(known, instruction=None) if instruction else known, said)
    note = (
        f"this model is asked as {entry.name} is, because of its name and its sizes; its file has another "
        "rerank template, which is not used. Set a template if its model card names another prompt"
    )
    # llama.cpp's converter gives the vision model the text model's template, which is not its own.
    return Prompt(known, note=note, assumed=metadata.architecture != "qwen3vl")


def _more_words(metadata: ModelMetadata, entry: Entry) -> str:
    """What the file's names say beside the model's name, its publisher, sizes and quantisations: a fine-tune
    may be asked something else. "" where one of the names says no more."""
    publishers = {word for alias in entry.aliases if "/" in alias for word in plain(alias).split("-")}
    left: list[str] = []
    for name in header_names(metadata):
        for own in entry.match.names:
            before, found, after = f"-{name}-".partition(f"-{own}-")
            words = [word for word in f"{before}-{after}".split("-") if word]
            more = [word for word in words if word not in publishers and not _NEUTRAL.fullmatch(word)]
            if found and not more:
                return ""
            left += [" ".join(more)] if found else []
    return max(left, key=len, default="")


def _instruction_in(template: str, known: str) -> str | None:
    """The instruction that makes the known template equal to this one; None where none does."""
    before, slot, after = known.replace(_SEAM, "").partition(INSTRUCTION)
    if not slot:
        return "" if template == before else None
    whole = template.startswith(before) and template.endswith(after)
    middle = template[len(before) : len(template) - len(after)]
    return middle if whole and len(template) >= len(before) + len(after) and "{" not in middle else None


def wanted_lines(metadata: ModelMetadata, catalog: Catalog, *, like_before: bool) -> str:
    """The lines that make a causal reranker of a model whose prompt is not known: what its file says is
    filled in, the rest is for the user. `like_before` adds what rerankd 0.1 asked."""
    own = metadata.rerank_template if not template_error(metadata.rerank_template) else ""
    lines = [
        'method = "causal_lm"',
        f"template = {toml(own)}  # the prompt of its model card, with {{query}} and {{document}} in it",
        f"labels = {toml(labels_of(metadata) or ('', ''))}  # the tokens that mean relevant and not relevant",
    ]
    if INSTRUCTION in own:
        lines.insert(2, 'instruction = ""  # what its model card puts there')
    qwen = catalog.find(QWEN3_RERANKER)
    if like_before and qwen is not None:
        lines += [
            "# Or these instead, only if it is asked as Qwen3-Reranker is; rerankd 0.1 assumed it:",
            *(f"# {name} = {toml(getattr(qwen, name))}" for name in ("template", "labels", "instruction")),
        ]
    return "\n".join(lines)


def toml(value: str | Sequence[str]) -> str:
    """A text or a list of texts in TOML."""
    # JSON's strings are TOML's basic ones, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
