"""A header's facts + the catalog + the user's settings -> how the file is scored, or why it can't be.

Pure: values in, a value out that can be printed. The rules, in order:

- **A part of a model, or a model the catalog refuses,** is refused; so is a checkpoint of a class that is not
  known. What the catalog refuses because of llama.cpp is scored from its own safetensors.
- **A causal model judges,** whether it has a rank head or not: most files lack it (llama-server's own
  /v1/rerank then answers about 1e-20), and where it is there it is a slower way to the same number. What it
  is asked must be known: by the catalog, from the user's settings, or because it is a Qwen3 reranker.
- **An encoder with a rank head** is scored by it, where llama.cpp computes that head right (`heads.py`).
- **A model without a head is an embedding model** when its header or the catalog names a pooling.
- **Anything else is refused.** A user's template and labels make a judge of any causal model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from rerankd.domain import Pooling, Scoring, Transform, TransformName, Way
from rerankd.errors import ConfigError, Unscorable
from rerankd.models.catalog import Catalog, Entry, template_flaw
from rerankd.models.facts import Facts
from rerankd.models.heads import head_flaw, is_causal

# A causal model's window by default. Its KV cache is allocated for the whole window (Qwen3-0.6B at its full
# 40,960 tokens: 4.4 GiB per slot in F16), and Qwen3-Reranker's reference reads 8,192.
CAUSAL_WINDOW = 8192
SMALLEST_WINDOW = 32
_UNSAID_WINDOW = 512

_QWEN3 = ("qwen3", "qwen3vl")
# Byte-level BPE vocabularies whose reference tokenizer normalises to NFC first; llama.cpp does not do it for
# them.
_NFC_TOKENIZERS = ("qwen2", "qwen35", "modern-bert")
_MARKER = re.compile(r"<\|\w+\|>")
_OTHERS = "use a model known to work, such as bge-reranker-v2-m3 or Qwen3-Reranker-0.6B"
_OR_TEMPLATE = f"name a template and labels for it in the settings, or {_OTHERS}"


@dataclass(frozen=True, slots=True)
class ScoringOverrides:
    """What a user's settings say of one model; None means nothing.

    `template`, `labels` and `instruction` are a judge's; naming a template makes a causal model one.
    `pooling` and the prefixes are an embedding model's. `low` and `high` bound the affine transform.
    `window` is in tokens and may not be more than the model has.
    """

    way: Way | None = None
    template: str | None = None
    labels: tuple[str, str] | None = None
    instruction: str | None = None
    window: int | None = None
    pooling: Pooling | None = None
    query_prefix: str | None = None
    document_prefix: str | None = None
    transform: TransformName | None = None
    low: float | None = None
    high: float | None = None


NO_OVERRIDES = ScoringOverrides()
_ONLY_FOR: dict[Way, tuple[str, ...]] = {
    "head": (),
    "judge": ("template", "labels", "instruction"),
    "cosine": ("pooling", "query_prefix", "document_prefix"),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a file is scored (`scoring`), or `reason` and `way_out` when not. `notes` are for the user."""

    path: Path
    scoring: Scoring | None
    entry: Entry | None = None
    reason: str = ""
    way_out: str = ""
    notes: tuple[str, ...] = ()

    @property
    def needs_build(self) -> int:
        """The oldest build of llama.cpp that computes this model right; 0 where any does."""
        return self.entry.needs_build if self.entry is not None else 0

    @property
    def explain(self) -> str:
        """The verdict in one sentence for the user."""
        if self.scoring is None:
            return f"can't be scored right: {self.reason}; {self.way_out}"
        return self.scoring.reason

    def require(self) -> Scoring:
        """The scoring; raises Unscorable, with the reason and the way out, when there is none."""
        if self.scoring is None:
            raise Unscorable(f"{self.path}: {self.explain}")
        return self.scoring


@dataclass(frozen=True, slots=True)
class _Refusal:
    reason: str
    way_out: str = _OTHERS


@dataclass(frozen=True, slots=True)
class _Case:
    """All that the rules look at."""

    facts: Facts
    entry: Entry | None
    catalog: Catalog
    overrides: ScoringOverrides

    @property
    def looks_like_reranker(self) -> bool:
        facts = self.facts
        said = f"{facts.name} {facts.basename} {facts.finetune}".lower()
        return bool(
            facts.has_cls
            or facts.has_cls_output
            or facts.pooling == "rank"
            or facts.rerank_template
            or "rerank" in said
        )


def decide(facts: Facts, catalog: Catalog, overrides: ScoringOverrides = NO_OVERRIDES) -> Verdict:
    """The verdict on a file.

    Raises ConfigError, naming the setting, for overrides that contradict each other or the file.
    """
    entry = catalog.recognise(facts)
    if entry is not None and entry.way == "cosine" and facts.has_cls_output:
        entry = None  # a cross-encoder made from an embedding model, under its name
    case = _Case(facts, entry, catalog, overrides)
    found = _no_model(facts) or _score(case)
    if isinstance(found, _Refusal):
        return Verdict(facts.path, None, entry, found.reason, found.way_out)
    found = replace(found, nfc=facts.tokenizer_pre in _NFC_TOKENIZERS)
    return Verdict(facts.path, found, entry, notes=_notes(case, found))


def _no_model(facts: Facts) -> _Refusal | None:
    if facts.flaw:
        return _Refusal(facts.flaw)
    if facts.kind != "model":
        return _Refusal(
            f"it is not a whole model but a part of one ({facts.kind})", "give the model's own file"
        )
    if not facts.parameters:
        return _Refusal("it holds no weights, only a vocabulary", "give the model's own file")
    if not facts.vocabulary_size:
        return _Refusal("it holds no vocabulary", "download a complete conversion of the model")
    return None


def _score(case: _Case) -> Scoring | _Refusal:
    overrides, entry = case.overrides, case.entry
    way: Way | _Refusal | None = overrides.way
    if way is None and (overrides.template is not None or overrides.labels is not None):
        way = "judge"
    # What the catalog refuses is what llama.cpp computes wrong.
    if entry is not None and entry.refused and way != "judge" and case.facts.format == "gguf":
        return _Refusal(f"this is {entry.name}: {entry.refused}")
    way = way or _natural_way(case)
    if isinstance(way, _Refusal):
        return way
    if case.facts.format != "gguf" and way != "head":
        raise ConfigError(f"{case.facts.path}: a model in safetensors is scored by its head: remove {way}")
    for other, names in _ONLY_FOR.items():
        for name in names:
            if other != way and getattr(overrides, name) is not None:
                raise ConfigError(
                    f"{name} is for way = {other}, and this model is scored as {way}: remove it"
                )
    return {"head": _head, "judge": _judge, "cosine": _cosine}[way](case)


def _natural_way(case: _Case) -> Way | _Refusal:
    facts = case.facts
    if case.entry is not None and case.entry.way:
        return case.entry.way
    if is_causal(facts):
        if case.looks_like_reranker:
            if facts.architecture in _QWEN3:
                return "judge"
            return _Refusal(
                f"it is a {facts.architecture} reranker that the catalog does not know, so the prompt it was "
                "trained on is not known either",
                _OR_TEMPLATE,
            )
        if facts.pooling in ("mean", "cls", "last"):
            return "cosine"
        return _Refusal(
            "it is a plain language model (chat or base), not trained to score documents", _OR_TEMPLATE
        )
    if facts.has_cls or facts.has_cls_output or facts.pooling == "rank":
        return "head"
    if facts.pooling in ("mean", "cls", "last"):
        return "cosine"
    return _Refusal(
        f"it is a {facts.architecture} encoder with no rank head, and its header names no pooling",
        "if it is an embedding model, set way = cosine and its pooling; if it was a reranker, its head was "
        f"lost in conversion: {_OTHERS}",
    )


def _head(case: _Case) -> Scoring | _Refusal:
    facts = case.facts
    if is_causal(facts):
        raise ConfigError(f"{facts.path}: a causal model ({facts.architecture}) judges: remove way = head")
    flaw = head_flaw(facts, case.entry.classifier_pooling if case.entry is not None else None)
    if flaw:
        return _Refusal(flaw, _another_file(case))
    return Scoring(
        way="head",
        window=_window(case),
        transform=_transform(case.overrides, Transform("sigmoid")),
        pooling="rank",
        template=facts.rerank_template,
        reason="a cross-encoder with a rank head: each pair's pass gives a logit, the score is its sigmoid",
    )


def _another_file(case: _Case) -> str:
    """What to do where a conversion can't score right, and the model itself can."""
    entry = case.entry
    if entry is not None and entry.refs:
        return f"pull the model as rerankd knows it: rerankd pull {entry.name.lower()}"
    if case.facts.architecture == "bert" and case.facts.format == "gguf":
        return f"serve the model from its own safetensors (rerankd pull hf:ORG/REPO), or {_OTHERS}"
    return _OTHERS


def _judge(case: _Case) -> Scoring | _Refusal:
    facts, overrides = case.facts, case.overrides
    if not is_causal(facts):
        raise ConfigError(
            f"{facts.path}: a judge answers with a next token, and {facts.architecture} is an encoder, which "
            "gives none: remove template, labels and way = judge"
        )
    template, labels, instruction = _prompt(case)
    if _lost_output(facts):
        return _Refusal(
            "its language model head (output.weight) was lost in conversion: llama.cpp's converter leaves it "
            "out of large Qwen3 rerankers when it writes a rank head",
            f"use a conversion without a rank head, which keeps output.weight, or {_OTHERS}",
        )
    unfit = _unfit_vocabulary(facts, template if overrides.template is None else "", labels)
    if unfit and overrides.labels is not None:
        raise ConfigError(f"{facts.path}: {unfit}; set labels that are")
    if unfit:
        reason = f"{unfit}: the file is not what it says it is, or damaged"
        return _Refusal(reason, f"download it anew, or {_OTHERS}")
    return Scoring(
        way="judge",
        window=_window(case),
        transform=_transform(overrides, Transform("sigmoid")),
        template=template,
        instruction=instruction,
        labels=labels,
        reason="a causal reranker asked for one token after the prompt: the score is the probability of "
        f"{labels[0]!r} against {labels[1]!r}",
    )


def _prompt(case: _Case) -> tuple[str, tuple[str, str], str]:
    """Template, labels and instruction of a judge: the user's, else the catalog's."""
    path, overrides, entry = case.facts.path, case.overrides, _prompt_entry(case)
    template = overrides.template
    if template is None and entry is not None:
        template = entry.template
    labels = overrides.labels or (entry.labels if entry is not None else None)
    if template is None or labels is None:
        lacks = " and ".join(n for n, v in (("template", template), ("labels", labels)) if v is None)
        raise ConfigError(f"{path}: {lacks} of this judge must be set: the catalog has no prompt for it")
    flaw = template_flaw(template)
    if flaw:
        raise ConfigError(f"{path}: {flaw}")
    if "{instruction}" in template:
        known = entry.instruction if entry is not None else ""
        return template, labels, known if overrides.instruction is None else overrides.instruction
    if overrides.instruction is not None:
        raise ConfigError(f"{path}: the template has no {{instruction}}: add it there, or set no instruction")
    return template, labels, ""


def _prompt_entry(case: _Case) -> Entry | None:
    """Whose prompt a judge is asked with: its own, or Qwen3-Reranker's for an unknown one of its kind."""
    if case.entry is not None and case.entry.way == "judge":
        return case.entry
    if case.facts.architecture in _QWEN3 and case.looks_like_reranker and case.entry is None:
        return case.catalog.find("Qwen3-Reranker-0.6B")
    return None


def _lost_output(facts: Facts) -> bool:
    """Whether the head that gives next tokens is gone.

    Qwen3 shares it with the embedding matrix up to 4B; from 8B on (4,096 wide) it is a tensor of its own, and
    without it llama.cpp silently takes the embedding matrix, which makes noise of the judge's answer.
    """
    return facts.architecture in _QWEN3 and facts.embedding_length >= 4096 and not facts.has_output


def _unfit_vocabulary(facts: Facts, template: str, labels: tuple[str, str]) -> str:
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


def _cosine(case: _Case) -> Scoring | _Refusal:
    facts, overrides = case.facts, case.overrides
    entry = case.entry if case.entry is not None and case.entry.way == "cosine" else None
    pooling = overrides.pooling or (entry.pooling if entry is not None else facts.pooling)
    if pooling not in ("mean", "cls", "last"):
        return _Refusal(
            "an embedding model needs a pooling, and neither its header nor the catalog names it",
            f"set pooling to mean, cls or last, as its model card says, or {_OTHERS}",
        )

    def prefix(own: str | None, known: str) -> str:
        return known if own is None else own

    return Scoring(
        way="cosine",
        window=_window(case),
        transform=_transform(
            overrides, entry.transform if entry is not None else Transform("affine", 0.0, 1.0)
        ),
        pooling=pooling,
        query_prefix=prefix(overrides.query_prefix, entry.query_prefix if entry is not None else ""),
        document_prefix=prefix(overrides.document_prefix, entry.document_prefix if entry is not None else ""),
        reason="an embedding model: the score is the cosine of query and document, stretched to 0…1",
    )


def _most_window(case: _Case) -> int:
    return case.facts.context_length or (case.entry.window if case.entry is not None else 0) or _UNSAID_WINDOW


def _window(case: _Case) -> int:
    """Tokens one pass may hold: what the model has; for a causal one CAUSAL_WINDOW at most, unless set.

    An XLM-R's context_length is already 2 less than its position table: the converter takes the offset off.
    """
    most, wanted = _most_window(case), case.overrides.window
    if wanted is not None:
        if not SMALLEST_WINDOW <= wanted <= most:
            raise ConfigError(
                f"{case.facts.path}: window = {wanted} must be from {SMALLEST_WINDOW} to {most}, the tokens "
                "that the model can read"
            )
        return wanted
    known = case.entry.window if case.entry is not None else 0
    return min(most, known or most, CAUSAL_WINDOW if is_causal(case.facts) else most)


def _transform(overrides: ScoringOverrides, default: Transform) -> Transform:
    name = overrides.transform or default.name
    low, high = overrides.low, overrides.high
    if default.name == "affine" and name == "sigmoid":
        raise ConfigError(
            "transform = sigmoid squeezes a cosine into 0.27…0.73: use affine with low and high"
        )
    if name != "affine":
        if low is not None or high is not None:
            raise ConfigError(f"low and high are for transform = affine, and this model's is {name}")
        return Transform(name)
    low = default.low if low is None else low
    high = default.high if high is None else high
    if not low < high:
        raise ConfigError(f"low = {low} must be less than high = {high}")
    return Transform("affine", low, high)


def _notes(case: _Case, scoring: Scoring) -> tuple[str, ...]:
    facts, entry, overrides = case.facts, case.entry, case.overrides
    notes = []
    if scoring.way == "judge":
        if entry is None and overrides.template is None:
            notes.append("not in the catalog by name; taken for a Qwen3-Reranker, and asked with its prompt")
        if facts.has_cls or facts.has_cls_output:
            notes.append("its rank head is not used: the judge gives the same score, faster")
    if scoring.way == "cosine" and entry is None:
        notes.append(
            "not in the catalog: set query_prefix and document_prefix if its model card names any, and low "
            "and high to the cosines of an unrelated and of a perfect pair"
        )
    if scoring.pooling == "last" and facts.add_eos is not True:
        notes.append(
            "its header does not tell the tokenizer to end texts with the end token that last pooling reads: "
            "scores are worse than the model's own; use a newer conversion"
        )
    if overrides.window is None and scoring.window < _most_window(case):
        notes.append(
            f"window {scoring.window} of the {_most_window(case)} tokens it can read; set window for more"
        )
    return tuple(notes)
