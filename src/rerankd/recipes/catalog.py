"""The catalog of known models: their names, how to recognise their files, and recipe parts no header
contains.

`known()` returns the catalog that comes with rerankd, `catalog.toml`. The comment at the top of that file
documents each field. To add a model family, add `[[model]]` tables there.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rerankd.domain import Method, Pooling
from rerankd.errors import ConfigError
from rerankd.formats.metadata import ModelMetadata
from rerankd.recipes.model_identity import header_names, plain
from rerankd.recipes.partial_recipe import POOLINGS, PartialRecipe
from rerankd.scoring import block_prompt
from rerankd.scoring.prompt import INSTRUCTION, choose, placeholders, stray_mark

# `{{query}}` contains `{query}`, so without this check the model would read the outer braces.
_JINJA = re.compile(r"\{%|\{\{-?\s*(?:instruction|query|document)\b")
_SIGMOID = {"logit_mean", "logit_sigma"}
_PROMPT = {"template", "labels", "markers", "instruction", "image_tokens"}
_Text = Annotated[str, Field(min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Match(_Table):
    """What a file's header must contain to be this model: one of the architectures, one of the names, the
    sizes.

    `causal`: whether the file declares causal attention; None matches both. `block_count` and
    `embedding_length` of 0 match any size; only entries of refused models may omit them, and those that
    declare `any_size` because their names belong to one family with one prompt. Entries of
    refused models may also omit the architectures, and name `classes` of transformers that are theirs alone,
    whatever the file is called.
    """

    architectures: tuple[_Text, ...] = ()
    names: Annotated[tuple[_Text, ...], Field(min_length=1)]
    block_count: int = 0
    embedding_length: int = 0
    any_size: bool = False
    causal: bool | None = None
    classes: tuple[_Text, ...] = ()

    @field_validator("names")
    @classmethod
    def _are_plain(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if any(name != plain(name) for name in names):
            raise ValueError("names should be lower case words joined by hyphens")
        return names

    def fits(self, metadata: ModelMetadata) -> bool:
        """Whether architecture and sizes match, regardless of the name."""
        return (
            (not self.architectures or metadata.architecture in self.architectures)
            and self.causal in (None, metadata.is_causal)
            and self.block_count in (0, metadata.block_count)
            and self.embedding_length in (0, metadata.embedding_length)
        )

    def named(self, metadata: ModelMetadata) -> int:
        """The length of the longest of `names` that one of the header's names contains, 0 for none."""
        in_header = [f"-{name}-" for name in header_names(metadata)]
        return max(
            (len(name) for name in self.names if any(f"-{name}-" in one for one in in_header)), default=0
        )


class Entry(_Table):
    """One known model: either `method` is set, or `refused` is the reason why it can't be scored correctly.

    `in_any_format`: refused from safetensors, too. `max_length`: 0 for the header's context_length.
    `classifier_pooling`: the pooling that a ModernBERT's head reads, None for other models. `refs`: where to
    download it, as in the setting `models.ref`, best first.
    `quant`: the quantisation to download; `size_mb`: its size in 10^6 bytes; `context_length`: the one in its
    header; "" or 0 if unknown. `ndcg10`: its published quality (see recommend.py), 0 if unknown.
    `needs_build`: the oldest build of llama.cpp that computes it correctly, 0 for any. `image_tokens`: the
    fewest and the most blocks of an image, None for a model that reads text alone.
    `sliding_window`: the tokens of the window that the file of a listwise model must declare.
    """

    name: str
    match: Match
    aliases: tuple[_Text, ...] = ()
    languages: tuple[_Text, ...] = ()
    licence: str = ""
    method: Method | None = None
    refused: str = ""
    in_any_format: bool = False
    max_length: int = 0
    template: str = ""
    labels: tuple[str, ...] = ("", "")
    instruction: str = ""
    query_prefix: str = ""
    document_prefix: str = ""
    markers: tuple[_Text, ...] = ()
    query_tokens: int = 0
    document_tokens: int = 0
    block_documents: int = 0
    sliding_window: int = 0
    pooling: Pooling = "none"
    classifier_pooling: Pooling | None = None
    low: float | None = None
    high: float | None = None
    logit_mean: float | None = None
    logit_sigma: float | None = None
    image_tokens: tuple[int, int] | None = None
    refs: tuple[_Text, ...] = ()
    quant: str = ""
    size_mb: int = 0
    context_length: int = 0
    ndcg10: float = 0.0
    needs_build: int = 0

    def partial(self, method: Method) -> PartialRecipe:
        """The parts that the entry defines for this method, without the prompt (see prompts.py)."""
        partial = PartialRecipe(method if method == self.method else None, self.max_length or None)
        if partial.method in ("cross_encoder", "listwise"):
            partial = replace(partial, template=self.template or None)
        if partial.method != "embedding":
            return replace(
                partial,
                logit_mean=self.logit_mean,
                logit_sigma=self.logit_sigma,
                image_tokens=self.image_tokens,
            )
        return replace(
            partial,
            pooling=self.pooling,
            normalization="affine",
            low=self.low,
            high=self.high,
            query_prefix=self.query_prefix,
            document_prefix=self.document_prefix,
        )

    def refuses(self, metadata: ModelMetadata) -> bool:
        """Whether the model can't be scored from a file of this format."""
        return bool(self.refused) and (self.in_any_format or metadata.format == "gguf")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if fault := _fault(self):
            raise ValueError(fault)
        return self


@dataclass(frozen=True, slots=True)
class Catalog:
    """All known models, in the order of the file and by their names and aliases in lower case."""

    entries: tuple[Entry, ...]
    named: Mapping[str, Entry]

    def find(self, name: str) -> Entry | None:
        """The entry with this name or alias; case is ignored."""
        return self.named.get(name.strip().lower())

    def recognise(self, metadata: ModelMetadata) -> Entry | None:
        """The entry that matches a file's metadata, or None. The longest matching name wins."""
        if named := [entry for entry in self.entries if metadata.class_name in entry.match.classes]:
            return named[0]
        fitting = [entry for entry in self.entries if entry.match.fits(metadata)]
        best = max(fitting, key=lambda entry: entry.match.named(metadata), default=None)
        return best if best is not None and best.match.named(metadata) else None


def template_error(template: str) -> str:
    """What is wrong with a causal reranker's template, "" if nothing."""
    if match := _JINJA.search(template):
        return (
            f"the template is written in Jinja ({match[0]!r}), which rerankd does not support: write "
            "{query} and {document} with single braces"
        )
    if mark := stray_mark(template):
        return f"the template contains {mark} without its counterpart"
    found = placeholders(template)
    always = placeholders(choose(template, instructed=False))
    for name in ("query", "document"):
        if (found.count(name), always.count(name)) == (1, 0):
            return f"{{{name}}} must not be in a part that is left out without an instruction"
        if found.count(name) != 1:
            count = found.count(name)
            return f"the template must contain {{{name}}} exactly once, but contains it {count} times"
    return "the template contains {instruction} more than once" if found.count("instruction") > 1 else ""


@cache
def known() -> Catalog:
    """The catalog that comes with rerankd."""
    return load(resources.files(__package__).joinpath("catalog.toml").read_text(encoding="utf-8"))


def load(text: str) -> Catalog:
    """Parse a catalog from TOML text. Raises ConfigError, which names the model and the field."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the catalog is not valid TOML: {error}") from error
    models = tables.pop("model", [])
    if tables or not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        raise ConfigError("the catalog may contain only [[model]] tables")
    entries: dict[str, Entry] = {}
    named: dict[str, Entry] = {}
    for model in models:
        entry = _entry(model, entries)
        for name in (entry.name, *entry.aliases):
            if other := named.get(name.lower()):
                raise ConfigError(f"catalog, {entry.name}: {name!r} is already a name of {other.name}")
            named[name.lower()] = entry
        entries[entry.name] = entry
    return Catalog(tuple(entries.values()), named)


def _fault(entry: Entry) -> str:
    """What is inconsistent in an entry, "" if nothing."""
    if bool(entry.method) == bool(entry.refused):
        return "set either method or refused"
    has_sizes = bool(entry.match.block_count and entry.match.embedding_length)
    if entry.method and (not entry.match.architectures or entry.match.classes or entry.in_any_format):
        return "only a refused model may have classes, in_any_format or no architectures"
    if entry.method and has_sizes == entry.match.any_size:
        return "set block_count and embedding_length: a recipe needs an exactly identified model"
    if entry.method == "causal_lm":
        if not all(entry.labels) or len(entry.labels) > 2:
            return "causal_lm needs one or two labels, or [] for a rank head"
        if error := template_error(entry.template):
            return error
        if INSTRUCTION in choose(entry.template, instructed=False) and not entry.instruction:
            return "{instruction} in the template requires an instruction, or must be optional"
        if entry.instruction and INSTRUCTION not in entry.template:
            return "instruction requires {instruction} in the template"
    elif any(entry.labels) or entry.instruction:
        return "labels and instruction are for causal_lm"
    elif entry.method == "listwise":
        if error := block_prompt.template_error(entry.template, entry.markers):
            return error
        if not (entry.query_tokens and entry.document_tokens and entry.block_documents):
            return "listwise needs query_tokens, document_tokens and block_documents"
    elif entry.template and (error := template_error(entry.template)):
        return error
    elif entry.template and entry.method != "cross_encoder":
        return "template is for causal_lm and cross_encoder"
    if entry.method == "embedding":
        if entry.pooling not in POOLINGS:
            return "embedding needs the pooling mean, cls or last"
        if entry.low is None or entry.high is None or not -1 <= entry.low < entry.high <= 1:
            return "low and high must be cosines, and low must be less than high"
    elif entry.model_fields_set & {"query_prefix", "document_prefix", "pooling", "low", "high"}:
        return "prefixes, pooling, low and high are for embedding"
    if entry.method not in ("cross_encoder", "causal_lm") and _SIGMOID & entry.model_fields_set:
        return "logit_mean and logit_sigma are for the methods whose score is a sigmoid"
    if entry.logit_sigma is not None and entry.logit_sigma <= 0:
        return "logit_sigma must be above 0"
    return ""


def _entry(table: Mapping[str, Any], earlier: Mapping[str, Entry]) -> Entry:
    """The entry of one [[model]] table. `prompt_of` copies the prompt of an earlier entry."""
    name, values = table.get("name", "unnamed model"), dict(table)
    if (prompt_of := values.pop("prompt_of", "")) in earlier:
        values |= earlier[prompt_of].model_dump(include={*_PROMPT, *_SIGMOID}, exclude_unset=True)
    elif prompt_of:
        raise ConfigError(f"catalog, {name}: prompt_of names {prompt_of!r}, which no earlier table defines")
    try:
        # Through JSON: in strict mode, pydantic accepts a JSON array as a tuple, but not a list.
        return Entry.model_validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "table"
        raise ConfigError(f"catalog, {name}, {field}: {first['msg']}") from error
