"""(pure) Find a causal reranker's prompt: template, labels and instruction, from the catalog or the model
file.

The texts of known prompts, such as Qwen3-Reranker's, are in catalog.toml. A model gets a prompt from there if
name, architecture and sizes match an entry. Otherwise the prompt comes from the file: a rerank template with
{query} and {document}, and the labels of its rank head. A text model of architecture qwen3 that matches no
entry gets Qwen3-Reranker's prompt if it identifies itself as one: by the same template in its file, by a rank
head with the labels yes and no, or by the name Qwen3-Reranker.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from rerankd.formats.metadata import ModelMetadata
from rerankd.recipes.catalog import Catalog, Entry, template_error
from rerankd.recipes.model_identity import header_names, plain
from rerankd.recipes.partial_recipe import NOTHING, PartialRecipe
from rerankd.scoring.prompt import INSTRUCTION, PART_MARK, choose
from rerankd.toml_values import toml

QWEN3_RERANKER = "Qwen3-Reranker-0.6B"
_QWEN3_NAME = "qwen3-reranker"
_QWEN3_LABELS = ("yes", "no")
_NEGATIVE = frozenset(("no", "false", "0", "irrelevant", "negative", "\u5426"))
# Words of a name that don't indicate another prompt: sizes, versions, quantisations.
_NEUTRAL = re.compile(
    r"[\dv.]+|\d+[bm]|i?q\d\w*|[kmslx]{1,2}|xx?s|(b?f|fp|int)\d+|i1|imatrix|gguf|ggml|hf|llama|cpp|seq|cls|quanti[sz]ed|models?"
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The parts of a causal reranker's prompt that the `catalog` and the `file` define.

    `note` tells the user why this prompt is used. `assumed`: no source states that it is the model's prompt,
    so every response carries the note as a warning.
    """

    catalog: PartialRecipe
    file: PartialRecipe = NOTHING
    note: str = ""
    assumed: bool = False


def find_prompt(metadata: ModelMetadata, entry: Entry | None, catalog: Catalog) -> Prompt | None:
    """The prompt of a causal reranker, None if it is unknown. `entry` is the model's catalog entry."""
    labels = labels_of(metadata)
    if entry is not None:
        return _of_entry(metadata, entry) if entry.method == "causal_lm" else None
    qwen = catalog.find(QWEN3_RERANKER)
    assert qwen is not None, "the catalog has the prompt of Qwen3-Reranker"
    own, own_instruction = own_prompt(metadata)
    instruction = _instruction_in(metadata.rerank_template or own, qwen.template)
    if own and instruction is None:
        usable = labels is not None and not own_template_error(metadata)
        in_file = PartialRecipe(template=own, labels=labels, instruction=own_instruction or None)
        return Prompt(NOTHING, in_file) if usable else None
    if instruction is not None and metadata.architecture != "qwen3vl":
        # Not for the vision model: llama.cpp's converter writes the text model's template into its files.
        own_parts = PartialRecipe(template=qwen.template, labels=labels, instruction=instruction)
        return Prompt(NOTHING if labels else PartialRecipe(labels=_QWEN3_LABELS), own_parts)
    if metadata.architecture != "qwen3":
        return None
    if metadata.pooling == "rank" and labels == _QWEN3_LABELS:
        return Prompt(
            PartialRecipe(template=qwen.template, instruction=qwen.instruction),
            PartialRecipe(labels=labels),
            "this model is prompted like Qwen3-Reranker because its rank head has the labels yes and no; its "
            "file contains no prompt. Set template if its model card shows another prompt",
            assumed=True,
        )
    if any(f"-{_QWEN3_NAME}-" in f"-{name}-" for name in header_names(metadata)):
        return Prompt(
            PartialRecipe(template=qwen.template, labels=_QWEN3_LABELS, instruction=qwen.instruction),
            note="this model is prompted like Qwen3-Reranker because of its name, although its sizes match "
            "no known model. Set template if its model card shows another prompt",
            assumed=True,
        )
    return None


def own_prompt(metadata: ModelMetadata) -> tuple[str, str]:
    """The rerank template in a file, "" if it has none, and the default for its {instruction}.

    A file may have two: `tokenizer.chat_template.rerank` contains the default instruction, and
    `tokenizer.chat_template.rerank_instruct` has the placeholder instead (llama.cpp's pull request 20009).
    Together they define both. If the two are not the same prompt, the first one counts.
    """
    plain_one, with_slot = metadata.rerank_template, metadata.rerank_instruct_template
    if not plain_one:
        return with_slot, ""
    instruction = _instruction_in(plain_one, with_slot) if INSTRUCTION in with_slot else None
    return (plain_one, "") if instruction is None else (with_slot, instruction)


def own_template_error(metadata: ModelMetadata) -> str:
    """Why a file's rerank template can't be used, "" if it can."""
    template, instruction = own_prompt(metadata)
    if error := template_error(template):
        return error
    return "" if instruction or INSTRUCTION not in template else "the file does not define its {instruction}"


def labels_of(metadata: ModelMetadata) -> tuple[str, str] | None:
    """The two labels of the rank head, relevant first.

    None if the file has no two labels, if one is not a single token, or if the first one means not relevant:
    then the order may be wrong, or the prompt may ask for the opposite.
    """
    labels = metadata.output_labels
    are_tokens = len(labels) == 2 and all(metadata.token_id(label) is not None for label in labels)
    return (labels[0], labels[1]) if are_tokens and labels[0].strip().lower() not in _NEGATIVE else None


def _of_entry(metadata: ModelMetadata, entry: Entry) -> Prompt:
    """The prompt of a catalog entry, with a note if the file may need another one."""
    own = metadata.rerank_template or metadata.rerank_instruct_template
    instruction = _instruction_in(own, entry.template)
    if own and own == choose(entry.template.replace(PART_MARK, ""), instructed=True):
        instruction = ""  # the entry's template, with its placeholder
    known = PartialRecipe(template=entry.template, labels=entry.labels, instruction=entry.instruction)
    if not own and (more := _extra_words(metadata, entry)):
        note = (
            f"this model is prompted like {entry.name} because of its name and sizes, but its name also "
            f"contains {more!r}, and its file contains no prompt. Set template if its model card shows "
            "another prompt"
        )
        return Prompt(known, note=note, assumed=True)
    if not own or instruction is not None:
        in_file = PartialRecipe(instruction=instruction or None)
        return Prompt(replace(known, instruction=None) if instruction else known, in_file)
    note = (
        f"this model is prompted like {entry.name} because of its name and sizes; its file contains another "
        "rerank template, which is not used. Set template if its model card shows another prompt"
    )
    # For the vision model that is expected: llama.cpp's converter writes the text model's template.
    return Prompt(known, note=note, assumed=metadata.architecture != "qwen3vl")


def _extra_words(metadata: ModelMetadata, entry: Entry) -> str:
    """The words in the header's names besides the model's name, its publishers, sizes and quantisations.

    They indicate a fine-tune, whose prompt may differ. "" if one of the names has no extra words.
    """
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
    """The instruction that makes the known template equal to this one, "" if it has none; None if no
    instruction does."""
    known = known.replace(PART_MARK, "")
    if template == choose(known, instructed=False):
        return ""
    before, slot, after = choose(known, instructed=True).partition(INSTRUCTION)
    if not slot:
        return "" if template == before else None
    is_framed = template.startswith(before) and template.endswith(after)
    middle = template[len(before) : len(template) - len(after)]
    return middle if is_framed and len(template) >= len(before) + len(after) and "{" not in middle else None


def settings_lines(metadata: ModelMetadata, catalog: Catalog, *, with_old_default: bool) -> str:
    """The settings for rerankd.toml that define the prompt of an unknown causal reranker.

    Parts that the file defines are filled in; the user fills in the rest from the model card.
    `with_old_default` adds, as comments, the prompt that rerankd 0.1 used.
    """
    own, instruction = own_prompt(metadata)
    if template_error(own):
        own = ""
    lines = [
        'method = "causal_lm"',
        f"template = {toml(own)}  # the prompt from its model card, with {{query}} and {{document}}",
        f"labels = {toml(labels_of(metadata) or ('', ''))}  # the answer tokens for relevant and not "
        "relevant; or only the first, if its logit is the score",
    ]
    if INSTRUCTION in own:
        lines.insert(2, f"instruction = {toml(instruction)}  # the default instruction from its model card")
    qwen = catalog.find(QWEN3_RERANKER)
    if with_old_default and qwen is not None:
        lines += [
            "# Or these instead, only if its prompt is Qwen3-Reranker's (rerankd 0.1 assumed it):",
            *(f"# {name} = {toml(getattr(qwen, name))}" for name in ("template", "labels", "instruction")),
        ]
    return "\n".join(lines)
