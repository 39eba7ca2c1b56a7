"""(pure) Recipes as TOML: the `[models.NAME]` section of rerankd.toml that contains a model's whole recipe,
the section to fill in for a refused model, and the `[[model]]` table for the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rerankd.domain import Method, Pooling, Recipe, Source
from rerankd.formats.metadata import ModelMetadata
from rerankd.recipes import calibrations, late_interaction
from rerankd.recipes.explanation import explain
from rerankd.recipes.model_identity import header_names, plain
from rerankd.recipes.recipe_sources import CAUSAL_MAX_LENGTH
from rerankd.recipes.resolution import Resolution
from rerankd.scoring.prompt import INSTRUCTION
from rerankd.toml_values import toml

# The settings that define a recipe, by method, in the order in which they are printed.
_OF_NORMALIZATION = ("low", "high", "logit_mean", "logit_sigma")
_OF_ALL = ("max_length", "normalization", *_OF_NORMALIZATION)
_PARTS: Mapping[Method, tuple[str, ...]] = {
    "cross_encoder": _OF_ALL,
    "causal_lm": ("template", "labels", "instruction", *_OF_ALL),
    "embedding": ("pooling", "query_prefix", "document_prefix", *_OF_ALL),
    "listwise": _OF_ALL,
    "late_interaction": ("query_prefix", "document_prefix", *late_interaction.PARTS, *_OF_ALL),
}
_SOURCES: Mapping[Source, str] = {
    "settings": "from your settings",
    "catalog": "from rerankd's catalog",
    "file": "from the model's file",
    "method default": "the default of the method",
}
_TO_FILL_IN = """\
# The recipe of a model that rerankd can't score yet:
{reason}.
#
# Fill in each empty value from the model card. Then compare the scores with known ones, and serve the model:
{pull}#   rerankd recipe test {file} --pairs PAIRS.jsonl
#   rerankd serve --config {file}
"""
_HELP = {
    "causal_lm": """\
# template: the complete prompt, byte for byte, with its special tokens (such as <|im_start|>), and \\n for
# each line break. {query} and {document} must occur once each, {instruction} at most once. The prompt ends
# where the model's answer begins, so that the next token is one of the labels. Example:
#   template = "<|im_start|>user\\nQuery: {query}\\nDocument: {document}<|im_end|>\\n<|im_start|>assistant\\n"
# labels: two answers that are one token each, first the one that means relevant. "Yes", "yes" and " yes" are
# different tokens. The raw score is logit(first) - logit(second). Name one answer if the model card computes
# the score from the logit of a single token. Examples:
#   labels = ["yes", "no"]
#   labels = ["Yes"]
# logit_mean, logit_sigma: the score is sigmoid((raw - logit_mean) / logit_sigma); by default sigmoid(raw).
# instruction: the text for {instruction} if a request sends none. Only for a template with {instruction}.
# Example:
#   instruction = "Given a web search query, retrieve relevant passages that answer the query"
""",
    "embedding": """\
# Fill in this section only if the model is an embedding model: its raw score is the cosine of two vectors.
# pooling: how the states of the tokens become one vector: "mean", "cls" (the first token) or "last".
# query_prefix, document_prefix: the texts that the model card puts before queries and documents. Example:
#   query_prefix = "query: "
#   document_prefix = "passage: "
# low, high: the cosines of an unrelated and of a perfect pair, which become the scores 0 and 1. Example:
#   low = 0.7
#   high = 0.95
""",
    "late_interaction": """\
# All lengths are in tokens, with the special tokens: query_length, expansion_length (queries are filled up to
# it with expansion_token; 0: they are not), and max_length for documents. The markers are single tokens of
# tokenizer.json, "" for none. The configuration with which the model was trained has all of these.
""",
    "cross_encoder": """\
# pooling: the state that the rank head reads, "mean" or "cls": classifier_pooling in the model's config.json.
""",
}


def section(resolved: Resolution, recipe: Recipe, ref: str, head_pooling: Pooling | None = None) -> str:
    """The section with the whole recipe of a model, each part with its source. With this section alone,
    `rerankd serve` scores the model by the same recipe.

    `ref` is how the user refers to the model. `head_pooling` is the user's setting `pooling`, which for a
    cross-encoder is not a part of the recipe (see rank_heads.py).
    """
    known = f" (recognised as {resolved.entry.name})" if resolved.entry is not None else ""
    lines = [
        _comment(f"{ref}{known} is scored as {explain(recipe)}."),
        _comment("Edit a value to change the scores. Without its line, rerankd determines the value itself."),
        *(_comment(f"Check before use: {warning}") for warning in resolved.warnings),
        *(_comment(f"Note: {note}.") for note in resolved.notes),
        *resolved.header(ref),
        f"method = {toml(recipe.method)}  # {_SOURCES[recipe.sources['method']]}",
    ]
    if recipe.method == "cross_encoder" and head_pooling is not None:
        lines.append(f"pooling = {toml(head_pooling)}  # {_SOURCES['settings']}: what the rank head reads")
    for part in _used_parts(recipe):
        source = recipe.sources.get(part)
        line = f"{part} = {_value(recipe, part)}"
        # A setting would claim that somebody has checked the value, and end the warning in each response.
        is_open = source is None and part.endswith("_prefix")
        lines.append(f"# {line}  # unknown: set it as the model card states" if is_open else line)
        if source is not None:
            lines[-1] += f"  # {_SOURCES[source]}"
    if resolved.calibration is not None:
        lines += ["", calibrations.section(resolved.name(ref), resolved.calibration)]
    return "\n".join(lines)


def to_fill_in(resolved: Resolution, ref: str, file: str, declared: str = "") -> str:
    """The section for a model that is refused because facts are missing, with explanations and examples; ""
    if no settings would help.

    `file` is the name of the file for the section. `declared` are the settings that the files of a model in
    safetensors declare for its GGUF file (see causal_layout.py).
    """
    settings = resolved.settings(ref)
    if resolved.refusal is not None and declared and not settings:
        reference = 'ref = ""  # a GGUF file of this model: its path, or hf:ORG/REPO'
        settings = "\n".join((resolved.header(ref)[0], reference, declared))
    if resolved.refusal is None or not settings:
        return ""
    method = next(name for name in _HELP if f'method = "{name}"' in settings)
    pull = f"#   rerankd pull {ref} --config {file}\n" if ref.startswith(("hf:", "ms:")) else ""
    start = _TO_FILL_IN.format(reason=_comment(resolved.refusal.reason), file=file, pull=pull)
    return f"{start}\n{settings}\n\n{_HELP[method]}"


def catalog_table(recipe: Recipe, metadata: ModelMetadata) -> str:
    """The [[model]] table for catalog.toml that gives a model this recipe. The facts that the file does not
    declare are left to fill in."""
    names = [name for name in header_names(metadata) if name] or [plain(metadata.path.stem)]
    match = (
        f"architectures = {toml([metadata.architecture])}, names = {toml(names[:1])}, "
        f"block_count = {metadata.block_count}, embedding_length = {metadata.embedding_length}"
    )
    lines = [
        "[[model]]",
        f"name = {toml(metadata.name or metadata.path.stem)}",
        'aliases = ["ORG/NAME"]  # its name on Hugging Face',
        'languages = ["en"]  # "multi" for 50 or more',
        'licence = ""  # as its model card states',
        f"method = {toml(recipe.method)}",
        *(
            f"{part} = {_value(recipe, part)}"
            for part in _used_parts(recipe)
            if _in_catalog(recipe, metadata, part)
        ),
        'refs = ["hf:ORG/REPO"]  # where to download it',
        f"match = {{ {match} }}",
    ]
    return "\n".join(lines)


def _used_parts(recipe: Recipe) -> list[str]:
    """The settings that this recipe uses."""
    normalization = recipe.normalization
    unused = set() if normalization.name == "affine" else {"low", "high"}
    if normalization.logit_mean == 0:
        unused.add("logit_mean")
    if normalization.logit_sigma == 1:
        unused.add("logit_sigma")
    if INSTRUCTION not in recipe.template:
        unused.add("instruction")
    if not recipe.labels:  # the file's rank head
        unused.add("labels")
    return [part for part in _PARTS[recipe.method] if part not in unused]


def _in_catalog(recipe: Recipe, metadata: ModelMetadata, part: str) -> bool:
    """Whether an entry of the catalog states this part: it has no normalization, and omits what it would get
    anyway."""
    if part == "max_length":
        most = metadata.context_length
        return recipe.max_length != (min(most, CAUSAL_MAX_LENGTH) if metadata.is_causal else most)
    if part in late_interaction.PARTS:
        return False  # its files define them
    return part != "normalization" and getattr(recipe, part, None) != ""


def _value(recipe: Recipe, part: str) -> str:
    if part == "normalization":
        return toml(recipe.normalization.name)
    if part in _OF_NORMALIZATION:
        return repr(float(getattr(recipe.normalization, part)))
    value = part_of(recipe, part)
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) else toml(value)


def part_of(recipe: Recipe, part: str) -> Any:
    """The value of a part that the method has for itself, by the name of its setting."""
    return getattr(recipe.interaction if part in late_interaction.PARTS else recipe, part)


def _comment(text: str) -> str:
    """A TOML comment, which must not contain control characters."""
    return "# " + "".join(char if char.isprintable() else " " for char in text)
