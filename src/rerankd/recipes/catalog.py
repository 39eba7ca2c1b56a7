"""The known models: what to call them, how to recognise their files, and what a header can't say of them.

`known()` is the catalog that comes with rerankd (`catalog.toml`, whose head documents each field).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, get_args

from rerankd.domain import Method, Normalization, Pooling
from rerankd.errors import ConfigError
from rerankd.formats.metadata import ModelMetadata
from rerankd.recipes.evidence import header_names, plain
from rerankd.recipes.partial import PartialRecipe
from rerankd.scoring.prompt import INSTRUCTION, placeholders

# `{{ query }}` holds `{query}`, and the model would read its other braces.
_JINJA = re.compile(r"\{%|\{\{-?\s*(?:instruction|query|document)\b")
_SIGMOID = Normalization("sigmoid")


@dataclass(frozen=True, slots=True)
class Match:
    """What a header must say to be this model's: one of the architectures, one of the names, and the sizes.

    `block_count` and `embedding_length` of 0 match any; only what is refused may leave them out.
    """

    architectures: tuple[str, ...]
    names: tuple[str, ...]
    block_count: int = 0
    embedding_length: int = 0

    def fits(self, facts: ModelMetadata) -> bool:
        """Whether architecture and sizes are this model's, whatever it is called."""
        return (
            facts.architecture in self.architectures
            and self.block_count in (0, facts.block_count)
            and self.embedding_length in (0, facts.embedding_length)
        )

    def named(self, facts: ModelMetadata) -> int:
        """The length of the longest of `names` that the header's names hold, 0 for none."""
        held = [f"-{name}-" for name in header_names(facts)]
        return max((len(name) for name in self.names if any(f"-{name}-" in one for one in held)), default=0)


@dataclass(frozen=True, slots=True)
class Entry:
    """One known model. `method` is None and `refused` says why where its score can't be trusted.

    `max_length` 0 means what the header says. `classifier_pooling` is the pooling before a ModernBERT's head,
    None where it does not matter. `refs` are places to fetch it from, as `models.ref` reads them, the first
    choice first; `quant` is the quantisation to fetch, `size_mb` what that weighs in 10^6 bytes, and
    `context_length` what its header says; "" and 0 where that is not known. `needs_build` is the oldest build
    of llama.cpp that computes it right, 0 for any.
    """

    name: str
    match: Match
    aliases: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    licence: str = ""
    method: Method | None = None
    refused: str = ""
    max_length: int = 0
    template: str = ""
    labels: tuple[str, str] = ("", "")
    instruction: str = ""
    query_prefix: str = ""
    document_prefix: str = ""
    pooling: Pooling = "none"
    classifier_pooling: Pooling | None = None
    normalization: Normalization = _SIGMOID
    refs: tuple[str, ...] = ()
    quant: str = ""
    size_mb: int = 0
    context_length: int = 0
    needs_build: int = 0

    def partial(self, method: Method) -> PartialRecipe:
        """What it says of a model that is scored so, but for a prompt (see prompts.py)."""
        length = self.max_length or None
        if method != self.method:
            return PartialRecipe(max_length=length)
        if method != "embedding":
            return PartialRecipe(method=method, max_length=length)
        return PartialRecipe(
            method=method,
            max_length=length,
            pooling=self.pooling,
            normalization=self.normalization.name,
            low=self.normalization.low,
            high=self.normalization.high,
            query_prefix=self.query_prefix,
            document_prefix=self.document_prefix,
        )


@dataclass(frozen=True, slots=True)
class Catalog:
    """All known models, in the order of the file."""

    entries: tuple[Entry, ...]

    def find(self, name: str) -> Entry | None:
        """The entry of that name or alias; case is ignored."""
        wanted = name.strip().lower()
        for entry in self.entries:
            if wanted in (known.lower() for known in (entry.name, *entry.aliases)):
                return entry
        return None

    def recognise(self, facts: ModelMetadata) -> Entry | None:
        """The entry that a header's facts are those of, or None. The most exact name wins."""
        fitting = [entry for entry in self.entries if entry.match.fits(facts)]
        best = max(fitting, key=lambda entry: entry.match.named(facts), default=None)
        return best if best is not None and best.match.named(facts) else None


def template_error(template: str) -> str:
    """What is wrong with the template of a causal reranker, "" when nothing is."""
    if match := _JINJA.search(template):
        return (
            f"the template is written in Jinja ({match[0]!r}), which rerankd does not run: write {{query}} "
            "and {document} with single braces"
        )
    found = placeholders(template)
    for name in ("query", "document"):
        if found.count(name) != 1:
            return f"the template must hold {{{name}}} exactly once, and holds it {found.count(name)} times"
    return "the template holds {instruction} more than once" if found.count("instruction") > 1 else ""


@cache
def known() -> Catalog:
    """The catalog that comes with rerankd."""
    return load(resources.files(__package__).joinpath("catalog.toml").read_text(encoding="utf-8"))


def load(text: str) -> Catalog:
    """A catalog from TOML text. Raises ConfigError that names the model and the field at fault."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the catalog is not TOML: {error}") from error
    models = tables.pop("model", [])
    if tables or not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        raise ConfigError("the catalog may hold [[model]] tables only")
    entries: dict[str, Entry] = {}
    taken: dict[str, str] = {}
    for model in models:
        entry = _Fields(model, str(model.get("name", "without a name"))).entry(entries)
        for name in (entry.name, *entry.aliases):
            if name.lower() in taken:
                raise ConfigError(f"catalog, {entry.name}: {name!r} is already {taken[name.lower()]}")
            taken[name.lower()] = entry.name
        entries[entry.name] = entry
    return Catalog(tuple(entries.values()))


class _Fields:
    """One table being read: takes each field once, and knows what nobody took."""

    def __init__(self, table: Mapping[str, Any], where: str) -> None:
        self._left, self._where = dict(table), where

    def fail(self, what: str) -> ConfigError:
        return ConfigError(f"catalog, {self._where}: {what}")

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        value = self._left.pop(key, default)
        if value is None:
            raise self.fail(f"{key} is missing")
        fits = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
        if not fits or isinstance(value, bool):
            raise self.fail(f"{key} should be of type {kind.__name__}, and is {value!r}")
        return value

    def texts(self, key: str, default: Iterable[str] | None = ()) -> tuple[str, ...]:
        values = self.take(key, list, None if default is None else list(default))
        if not all(isinstance(value, str) and value for value in values):
            raise self.fail(f"{key} should be a list of texts")
        return tuple(values)

    def choice(self, key: str, allowed: Iterable[str]) -> Any:
        value = self._left.pop(key, None)
        if value is not None and value not in allowed:
            raise self.fail(f"{key} should be one of {', '.join(allowed)}, and is {value!r}")
        return value

    def done(self) -> None:
        if self._left:
            raise self.fail(f"unknown field {sorted(self._left)[0]!r}")

    def match(self) -> Match:
        names = self.texts("names", None)
        if not names or any(name != plain(name) for name in names):
            raise self.fail("match.names should be lower case words joined by hyphens")
        found = Match(
            architectures=self.texts("architectures", None),
            names=names,
            block_count=self.take("block_count", int, 0),
            embedding_length=self.take("embedding_length", int, 0),
        )
        self.done()
        return found

    def entry(self, earlier: Mapping[str, Entry]) -> Entry:
        name = self.take("name", str)
        prompt_of = self.take("prompt_of", str, "")
        if prompt_of:
            if prompt_of not in earlier:
                raise self.fail(f"prompt_of names {prompt_of!r}, which does not stand before it")
            shared = earlier[prompt_of]
            self._left |= {
                "template": shared.template,
                "labels": [*shared.labels],
                "instruction": shared.instruction,
            }
        method: Method | None = self.choice("method", get_args(Method))
        labels = self.texts("labels")
        entry = Entry(
            name=name,
            match=_Fields(self.take("match", dict), self._where).match(),
            aliases=self.texts("aliases"),
            languages=self.texts("languages"),
            licence=self.take("licence", str, ""),
            method=method,
            refused=self.take("refused", str, ""),
            max_length=self.take("max_length", int, 0),
            template=self.take("template", str, ""),
            labels=(labels[0], labels[1]) if len(labels) == 2 else ("", ""),
            instruction=self.take("instruction", str, ""),
            query_prefix=self.take("query_prefix", str, ""),
            document_prefix=self.take("document_prefix", str, ""),
            pooling=self.choice("pooling", get_args(Pooling)) or "none",
            classifier_pooling=self.choice("classifier_pooling", get_args(Pooling)),
            normalization=self._normalization(method),
            refs=self.texts("refs"),
            quant=self.take("quant", str, ""),
            size_mb=self.take("size_mb", int, 0),
            context_length=self.take("context_length", int, 0),
            needs_build=self.take("needs_build", int, 0),
        )
        self.done()
        self._check(entry)
        return entry

    def _normalization(self, method: Method | None) -> Normalization:
        if method != "embedding":
            return _SIGMOID
        low, high = float(self.take("low", float)), float(self.take("high", float))
        if not -1 <= low < high <= 1:
            raise self.fail("low and high should be cosines, and low the smaller")
        return Normalization("affine", low, high)

    def _check(self, entry: Entry) -> None:
        fault = ""
        if bool(entry.method) == bool(entry.refused):
            fault = "give either method or refused"
        elif entry.method and not (entry.match.block_count and entry.match.embedding_length):
            fault = "give block_count and embedding_length: a recipe is for a model that is known exactly"
        elif entry.method == "causal_lm" and not all(entry.labels):
            fault = "causal_lm needs two labels"
        elif entry.method == "causal_lm":
            fault = template_error(entry.template)
            if not fault and (INSTRUCTION in entry.template) != bool(entry.instruction):
                fault = "instruction and {instruction} in the template go together"
        elif entry.template or any(entry.labels) or entry.instruction:
            fault = "template, labels and instruction are for causal_lm"
        elif entry.method == "embedding" and entry.pooling not in ("mean", "cls", "last"):
            fault = "embedding needs pooling mean, cls or last"
        elif entry.method != "embedding" and (
            entry.query_prefix or entry.document_prefix or entry.pooling != "none"
        ):
            fault = "prefixes and pooling are an embedding model's"
        if fault:
            raise self.fail(fault)
