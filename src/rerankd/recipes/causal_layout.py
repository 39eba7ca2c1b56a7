"""(pure, except for rendering a chat template) The recipe of a causal reranker from sentence-transformers'
files.

If no backend computes the model's class, `rerankd inspect` shows the recipe as settings for a GGUF file of
the same model.
"""

from __future__ import annotations

from dataclasses import dataclass

from rerankd.domain import Method
from rerankd.formats import chat_template
from rerankd.formats.metadata import ModelMetadata
from rerankd.recipes.model_identity import has_causal_head
from rerankd.recipes.partial_recipe import NOTHING, PartialRecipe
from rerankd.recipes.prompts import Prompt
from rerankd.scoring.prompt import INSTRUCTION
from rerankd.toml_values import toml


@dataclass(frozen=True, slots=True)
class CausalRecipe:
    """How the files say that a causal model is scored: raw = logit(first label), minus logit(second label) if
    there are two, after `template` (see domain.Recipe). `labels` are the texts of the tokens `label_ids`; ()
    if the vocabulary is not at hand."""

    template: str
    instruction: str
    labels: tuple[str, ...]
    label_ids: tuple[int, ...]
    method: Method = "causal_lm"

    @property
    def explanation(self) -> str:
        names = [f"{text!r} ({one})" for text, one in zip(self.labels, self.label_ids, strict=False)]
        if not self.label_ids:
            return "the logit of its rank head"
        first, *second = names or map(str, self.label_ids)
        return f"the logit of the token {first}" + (f" minus that of {second[0]}" if second else "")

    @property
    def settings(self) -> str:
        """The lines of rerankd.toml that score a GGUF file of the model in the same way; "" if no settings
        can."""
        if not self.labels:
            return ""
        lines = [
            f'method = "{self.method}"',
            f"template = {toml(self.template)}",
            f"labels = {toml(self.labels)}",
        ]
        if INSTRUCTION in self.template:
            lines.append(f"instruction = {toml(self.instruction)}")
        return "\n".join(lines)


def layout_prompt(metadata: ModelMetadata) -> Prompt | None:
    """The prompt that the files declare; None if they declare none, or one that rerankd can't use."""
    found = causal_recipe(metadata)
    if not isinstance(found, CausalRecipe):
        return None
    instruction = found.instruction if INSTRUCTION in found.template else None
    return Prompt(
        NOTHING, PartialRecipe(template=found.template, labels=found.labels, instruction=instruction)
    )


def causal_recipe(metadata: ModelMetadata) -> CausalRecipe | str | None:
    """The recipe that the files declare, or why rerankd can't use it; None if the model is not a causal
    reranker of this layout."""
    layout = metadata.layout
    if layout is None or not (layout.is_causal or (layout.chat is not None and has_causal_head(metadata))):
        return None
    if layout.chat is None:
        return "its files have no chat template for query and document"
    question = chat_template.question(layout.chat, layout.prompt)
    if isinstance(question, str):
        return question
    return CausalRecipe(question.template, question.instruction, metadata.output_labels, layout.label_ids)
