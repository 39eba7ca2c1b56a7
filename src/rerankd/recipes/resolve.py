"""A header's facts + the catalog + the user's settings -> how the file is scored, or why it can't be.

Pure: values in, a value out that can be printed. A model that is not known is never given another one's
recipe by its name. The rules, in order:

- **A part of a model, a damaged one, or a model the catalog refuses,** is refused; so is a checkpoint of a
  class that is not known. What the catalog refuses because of llama.cpp is scored from its own safetensors.
- **A causal model judges,** whether it has a rank head or not: most files lack it (llama-server's own
  /v1/rerank then answers about 1e-20), and where it is there it is a slower way to the same number. What it
  is asked must be known (`prompts.py`): from the user's settings, by the catalog, or from the file.
- **An encoder with a rank head** is scored by it, where llama.cpp computes that head right (`heads.py`).
- **A model without a head is an embedding model** when its header or the catalog names a pooling, and nothing
  says that it is a reranker (`evidence.py`).
- **Anything else is refused,** with the facts that are missing and the lines of rerankd.toml that supply
  them. A user's template and labels make a judge of any causal model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from rerankd.domain import Method, Normalization, NormalizationName, Pooling, Recipe, Refusal
from rerankd.errors import ConfigError, Unscorable
from rerankd.formats.metadata import ModelMetadata
from rerankd.recipes import heads, prompts
from rerankd.recipes.catalog import Catalog, Entry, template_flaw
from rerankd.recipes.evidence import plain
from rerankd.recipes.prompts import Prompt
from rerankd.recipes.scoring_method import (
    OTHERS,
    QWEN3,
    SAY_PROMPT,
    another_file,
    natural,
)
from rerankd.scoring.prompt import INSTRUCTION

# A causal model's window by default. Its KV cache is allocated for the whole window (Qwen3-0.6B at its full
# 40,960 tokens: 4.4 GiB per slot in F16), and Qwen3-Reranker's reference reads 8,192.
CAUSAL_WINDOW = 8192
SMALLEST_WINDOW = 32
_UNSAID_WINDOW = 512

# Byte-level BPE vocabularies whose reference tokenizer normalises to NFC first; llama.cpp does not do it for
# them.
_NFC_TOKENIZERS = ("qwen2", "qwen35", "modern-bert")
_MARKER = re.compile(r"<\|\w+\|>")


@dataclass(frozen=True, slots=True)
class ScoringOverrides:
    """What a user's settings say of one model; None means nothing.

    `template`, `labels` and `instruction` are a judge's; naming a template makes a causal model one.
    `pooling` and the prefixes are an embedding model's; `pooling` is also what a ModernBERT's head reads,
    where the file does not say. `low` and `high` bound the affine transform.
    `max_length` is in tokens and may not be more than the model has.
    """

    method: Method | None = None
    template: str | None = None
    labels: tuple[str, str] | None = None
    instruction: str | None = None
    max_length: int | None = None
    pooling: Pooling | None = None
    query_prefix: str | None = None
    document_prefix: str | None = None
    normalization: NormalizationName | None = None
    low: float | None = None
    high: float | None = None


NO_OVERRIDES = ScoringOverrides()
_ONLY_FOR: dict[Method, tuple[str, ...]] = {
    "cross_encoder": (),
    "causal_lm": ("template", "labels", "instruction"),
    "embedding": ("query_prefix", "document_prefix"),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a file is scored (`scoring`), or `reason` and `next_step` when not. `lines` are the settings that
    supply what is missing, "" where no setting does. `notes` are for the user; `warnings` go
    with every answer: the file does not say what is assumed."""

    path: Path
    scoring: Recipe | None
    entry: Entry | None = None
    reason: str = ""
    next_step: str = ""
    notes: tuple[str, ...] = ()
    lines: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def explain(self) -> str:
        """The verdict in one sentence for the user."""
        if self.scoring is None:
            return f"can't be scored right: {self.reason}; {self.next_step}"
        return self.scoring.reason

    def settings(self, ref: str = "") -> str:
        """The section of rerankd.toml that supplies what is missing, "" where there is none. `ref` is what
        the user calls the model, the path where it is not given."""
        if not self.lines:
            return ""
        called = ref or str(self.path)
        if called == str(self.path):  # the settings are read in other folders too
            called = str(self.path.absolute())
        return prompts.section(_section_name(called), called, self.lines)

    def require(self, ref: str = "") -> Recipe:
        """The scoring; raises Unscorable, with the reason, the way out and the settings that supply what is
        missing, when there is none. `ref` is what the user calls the model."""
        if self.scoring is None:
            lines = f"\n\n{said}" if (said := self.settings(ref)) else ""
            raise Unscorable(f"{ref or self.path}: {self.explain}{lines}")
        return self.scoring


def _section_name(called: str) -> str:
    """A name for the section of what the user calls so: a path, or hf:org/repo:quant."""
    hub, _, rest = called.partition(":")
    repo = rest.partition(":")[0] if hub in ("hf", "ms") else called
    return plain(Path(repo).name.removesuffix(".gguf")) or "model"


@dataclass(frozen=True, slots=True)
class _Case:
    """All that the rules look at."""

    facts: ModelMetadata
    entry: Entry | None
    catalog: Catalog
    overrides: ScoringOverrides

    @property
    def prompt(self) -> Prompt | None:
        """What it is asked, where it judges and that is known."""
        return prompts.known(self.facts, self.entry, self.catalog)


def decide(facts: ModelMetadata, catalog: Catalog, overrides: ScoringOverrides = NO_OVERRIDES) -> Verdict:
    """The verdict on a file.

    Raises ConfigError, naming the setting, for overrides that contradict each other or the file.
    """
    entry = catalog.recognise(facts)
    if entry is not None and entry.method == "embedding" and facts.has_cls_output:
        entry = None  # a cross-encoder made from an embedding model, under its name
    if entry is not None and entry.method == "causal_lm" and not facts.is_causal:
        entry = None
    case = _Case(facts, entry, catalog, overrides)
    found = _no_model(case) or _score(case)
    if isinstance(found, Refusal):
        return Verdict(facts.path, None, entry, found.reason, found.next_step, lines=found.lines)
    # SentencePiece's maps compose as well, but only marks in the order of Unicode, and not all sequences.
    is_unigram = facts.tokenizer_model == "t5" and facts.has_charsmap
    found = replace(found, nfc=is_unigram or facts.tokenizer_pre in _NFC_TOKENIZERS)
    notes, warnings = _notes(case, found), _warnings(case, found)
    return Verdict(facts.path, found, entry, notes=notes, warnings=warnings)


def _no_model(case: _Case) -> Refusal | None:
    facts = case.facts
    if facts.refusal is not None:
        return Refusal(facts.refusal.reason, another_file(facts, case.entry))
    if facts.kind != "model" or facts.architecture == "clip":
        part = "mmproj" if facts.architecture == "clip" else facts.kind
        return Refusal(f"it is not a whole model but a part of one ({part})", "give the model's own file")
    if not facts.parameters:
        return Refusal("it holds no weights, only a vocabulary", "give the model's own file")
    if not facts.vocabulary_size:
        return Refusal("it holds no vocabulary", "download a complete conversion of the model")
    if facts.hidden_activation not in ("", "gelu", "silu"):
        return Refusal(f"its activation {facts.hidden_activation!r} is not known", OTHERS)
    return None


def _score(case: _Case) -> Recipe | Refusal:
    overrides, entry = case.overrides, case.entry
    method: Method | Refusal | None = overrides.method
    if method is None and (overrides.template is not None or overrides.labels is not None):
        method = "causal_lm"
    # What the catalog refuses is what llama.cpp computes wrong.
    if entry is not None and entry.refused and method != "causal_lm" and case.facts.format == "gguf":
        return Refusal(f"this is {entry.name}: {entry.refused}", OTHERS)
    if case.facts.format != "gguf" and method not in (None, "cross_encoder"):
        raise ConfigError(f"{case.facts.path}: a model in safetensors is scored by its head: remove {method}")
    method = method or natural(case.facts, case.entry, case.catalog)
    if isinstance(method, Refusal):
        return method
    if case.facts.format != "gguf" and method != "cross_encoder":
        return Refusal(
            "it has no rank head, and a model in safetensors is scored by its head",
            another_file(case.facts, case.entry),
        )
    if overrides.pooling is not None and method != "embedding":
        _check_head_pooling(case, method)
    for other, names in _ONLY_FOR.items():
        for name in names:
            if other != method and getattr(overrides, name) is not None:
                raise ConfigError(
                    f"{name} is for method = {other}, and this model is scored as {method}: remove it"
                )
    return {"cross_encoder": _head, "causal_lm": _judge, "embedding": _cosine}[method](case)


def _check_head_pooling(case: _Case, method: Method) -> None:
    """Raises ConfigError where `pooling` is set and no part of how the model is scored."""
    facts, pooling = case.facts, case.overrides.pooling
    if method != "cross_encoder" or facts.architecture != "modern-bert":
        raise ConfigError(
            f"pooling is for method = embedding, and this model is scored as {method}: remove it"
        )
    if facts.classifier_pooling not in (None, pooling):
        raise ConfigError(
            f"{facts.path}: its file says that its head reads the pooling {facts.classifier_pooling!r}: "
            "remove pooling"
        )


def _head(case: _Case) -> Recipe | Refusal:
    facts = case.facts
    if facts.is_causal:
        raise ConfigError(
            f"{facts.path}: a causal model ({facts.architecture}) is scored by its labels: "
            "remove method = cross_encoder"
        )
    known = case.entry.classifier_pooling if case.entry is not None else None
    if (
        facts.architecture == "modern-bert"
        and facts.classifier_pooling is None
        and known is None
        and case.overrides.pooling is None
        and facts.has_cls_output
    ):
        return Refusal(
            "its file does not say which state its head reads, the first token's or the mean "
            "(modern-bert.classifier.pooling_type is missing): it was converted by an older llama.cpp",
            "if its config.json says classifier_pooling = mean, say so in rerankd.toml; else take a newer "
            "conversion, or serve the model from its own safetensors (rerankd pull hf:ORG/REPO)",
            'method = "cross_encoder"\n'
            'pooling = "mean"  # only if its config.json says so; rerankd 0.1 assumed it',
        )
    if reason := heads.why_not(facts, case.overrides.pooling or known):
        return Refusal(reason, another_file(facts, case.entry))
    return Recipe(
        method="cross_encoder",
        max_length=_window(case),
        normalization=_transform(case.overrides, Normalization("sigmoid")),
        pooling="rank",
        template=facts.rerank_template,
        reason="a cross-encoder with a rank head: each pair's pass gives a logit, the score is its sigmoid",
    )


def _judge(case: _Case) -> Recipe | Refusal:
    facts, overrides = case.facts, case.overrides
    if not facts.is_causal:
        raise ConfigError(
            f"{facts.path}: a judge answers with a next token, and {facts.architecture} is an encoder, which "
            "gives none: remove template, labels and method = causal_lm"
        )
    template, labels, instruction = _prompt(case)
    if _lost_output(facts):
        return Refusal(
            "its language model head (output.weight) was lost in conversion: llama.cpp's converter leaves it "
            "out of large Qwen3 rerankers when it writes a rank head",
            f"use a conversion without a rank head, which keeps output.weight, or {OTHERS}",
        )
    unfit = _unfit_vocabulary(facts, template if overrides.template is None else "", labels)
    if unfit and overrides.labels is not None:
        raise ConfigError(f"{facts.path}: {unfit}; set labels that are")
    if unfit and case.entry is None:
        lines = prompts.wanted_lines(facts, case.catalog, like_before=False)
        return Refusal(f"what its file says that it is asked does not fit it: {unfit}", SAY_PROMPT, lines)
    if unfit:
        reason = f"{unfit}: the file is not what it says it is, or damaged"
        return Refusal(reason, f"download it anew, or {OTHERS}")
    return Recipe(
        method="causal_lm",
        max_length=_window(case),
        normalization=_transform(overrides, Normalization("sigmoid")),
        template=template,
        instruction=instruction,
        labels=labels,
        reason="a causal reranker asked for one token after the prompt: the score is the probability of "
        f"{labels[0]!r} against {labels[1]!r}",
    )


def _prompt(case: _Case) -> tuple[str, tuple[str, str], str]:
    """Template, labels and instruction of a judge: the user's, else the known ones."""
    path, overrides, known = case.facts.path, case.overrides, case.prompt
    template = overrides.template
    if template is None and known is not None:
        template = known.template
    labels = overrides.labels or (known.labels if known is not None else prompts.labels_of(case.facts))
    if template is None or labels is None:
        lacks = " and ".join(n for n, v in (("template", template), ("labels", labels)) if v is None)
        raise ConfigError(
            f"{path}: {lacks} of this judge must be set: neither its file nor the catalog has it"
        )
    flaw = template_flaw(template)
    if flaw:
        raise ConfigError(f"{path}: {flaw}")
    if INSTRUCTION in template:
        own = known.instruction if known is not None else ""
        return template, labels, own if overrides.instruction is None else overrides.instruction
    if overrides.instruction is not None:
        raise ConfigError(f"{path}: the template has no {{instruction}}: add it there, or set no instruction")
    return template, labels, ""


def _lost_output(facts: ModelMetadata) -> bool:
    """Whether the head that gives next tokens is gone.

    Qwen3 shares it with the embedding matrix up to 4B; from 8B on (4,096 wide) it is a tensor of its own, and
    without it llama.cpp silently takes the embedding matrix, which makes noise of the judge's answer.
    """
    return facts.architecture in QWEN3 and facts.embedding_length >= 4096 and not facts.has_output


def _unfit_vocabulary(facts: ModelMetadata, template: str, labels: tuple[str, str]) -> str:
    """What the vocabulary lacks for the labels and a catalog template's markers; "" for nothing."""
    if labels[0] == labels[1] or not all(labels):
        return f"the labels {labels[0]!r} and {labels[1]!r} are not two different texts"
    for label in labels:
        if facts.token_id(label) is None:
            return f"the label {label!r} is not a single token of its vocabulary"
    for marker in _MARKER.findall(template):
        if marker not in facts.control_tokens and marker not in facts.user_defined_tokens:
            return f"{marker} is not a special token of its vocabulary"
    return ""


def _cosine(case: _Case) -> Recipe | Refusal:
    facts, overrides = case.facts, case.overrides
    entry = case.entry if case.entry is not None and case.entry.method == "embedding" else None
    pooling = overrides.pooling or (entry.pooling if entry is not None else facts.pooling)
    if pooling not in ("mean", "cls", "last"):
        return Refusal(
            "an embedding model needs a pooling, and neither its header nor the catalog names it",
            f"set pooling to mean, cls or last, as its model card says, or {OTHERS}",
        )

    said = facts.pooling
    if (
        entry is not None
        and overrides.pooling is None
        and said in ("mean", "cls", "last")
        and said != pooling
    ):
        return Refusal(
            f"it is called {entry.name}, whose pooling is {pooling}, and its file says that it has {said}",
            "say in rerankd.toml which one is right, as its model card has it",
            f'method = "embedding"\npooling = {prompts.toml(said)}  # or {prompts.toml(pooling)}',
        )

    def prefix(own: str | None, known: str) -> str:
        return known if own is None else own

    return Recipe(
        method="embedding",
        max_length=_window(case),
        normalization=_transform(
            overrides, entry.normalization if entry is not None else Normalization("affine", 0.0, 1.0)
        ),
        pooling=pooling,
        query_prefix=prefix(overrides.query_prefix, entry.query_prefix if entry is not None else ""),
        document_prefix=prefix(overrides.document_prefix, entry.document_prefix if entry is not None else ""),
        reason="an embedding model: the score is the cosine of query and document, stretched to 0…1",
    )


def _most_window(case: _Case) -> int:
    return (
        case.facts.context_length
        or (case.entry.max_length if case.entry is not None else 0)
        or _UNSAID_WINDOW
    )


def _window(case: _Case) -> int:
    """Tokens one pass may hold: what the model has; for a causal one CAUSAL_WINDOW at most, unless set.

    An XLM-R's context_length is already 2 less than its position table: the converter takes the offset off.
    """
    most, wanted = _most_window(case), case.overrides.max_length
    if wanted is not None:
        if not SMALLEST_WINDOW <= wanted <= most:
            raise ConfigError(
                f"{case.facts.path}: max_length = {wanted} must be from {SMALLEST_WINDOW} to {most}, the "
                "tokens that the model can read"
            )
        return wanted
    known = case.entry.max_length if case.entry is not None else 0
    return min(most, known or most, CAUSAL_WINDOW if case.facts.is_causal else most)


def _transform(overrides: ScoringOverrides, default: Normalization) -> Normalization:
    name = overrides.normalization or default.name
    low, high = overrides.low, overrides.high
    if default.name == "affine" and name == "sigmoid":
        raise ConfigError(
            "transform = sigmoid squeezes a cosine into 0.27…0.73: use affine with low and high"
        )
    if name != "affine":
        if low is not None or high is not None:
            raise ConfigError(f"low and high are for transform = affine, and this model's is {name}")
        return Normalization(name)
    low = default.low if low is None else low
    high = default.high if high is None else high
    if not low < high:
        raise ConfigError(f"low = {low} must be less than high = {high}")
    return Normalization("affine", low, high)


def _warnings(case: _Case, scoring: Recipe) -> tuple[str, ...]:
    """What is assumed and nothing states, for every answer."""
    overrides, known = case.overrides, case.prompt
    if scoring.method == "causal_lm" and overrides.template is None and known is not None and known.assumed:
        return (f"{known.note[0].upper()}{known.note[1:]}.",)
    if scoring.method == "embedding" and case.entry is None and overrides.query_prefix is None:
        return (
            "This embedding model is not in the catalog, and its file does not say whether queries and "
            'documents want a prefix; none is put before them. Set query_prefix and document_prefix ("" for '
            "none).",
        )
    return ()


def _notes(case: _Case, scoring: Recipe) -> tuple[str, ...]:
    facts, entry, overrides = case.facts, case.entry, case.overrides
    notes = []
    if scoring.method == "causal_lm":
        known = case.prompt
        if known is not None and known.note and overrides.template is None:
            notes.append(known.note)
        if facts.has_cls or facts.has_cls_output:
            notes.append("its rank head is not used: the judge gives the same score, faster")
    if scoring.method == "embedding" and entry is None:
        notes.append(
            "not in the catalog: set query_prefix and document_prefix if its model card names any, and low "
            "and high to the cosines of an unrelated and of a perfect pair"
        )
    if scoring.pooling == "last" and facts.add_eos is not True:
        notes.append(
            "its header does not tell the tokenizer to end texts with the end token that last pooling reads: "
            "scores are worse than the model's own; use a newer conversion"
        )
    if overrides.max_length is None and scoring.max_length < _most_window(case):
        notes.append(
            f"max_length {scoring.max_length} of the {_most_window(case)} tokens it can read; "
            "set max_length for more"
        )
    return tuple(notes)
