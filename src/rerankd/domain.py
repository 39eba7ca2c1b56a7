"""The values that every layer speaks: a request, a result, and how a model is scored. No framework here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from rerankd.errors import InvalidRequest, Unscorable

Method = Literal["cross_encoder", "causal_lm", "embedding"]
Pooling = Literal["rank", "mean", "cls", "last", "none"]
Format = Literal["gguf", "safetensors"]
NormalizationName = Literal["sigmoid", "affine", "identity"]
Priority = Literal["low", "normal", "high"]
TruncateAt = Literal["token", "sentence"]
# Where a part of a recipe is from; the first one that says it wins.
Source = Literal["settings", "catalog", "file", "method default"]


@dataclass(frozen=True, slots=True)
class Normalization:
    """raw -> score in [0, 1].

    `sigmoid`: 1 / (1 + exp(-raw)), for logits and log-odds (softmax over two labels is the sigmoid of their
    logits' difference). `affine`: (raw - low) / (high - low), clipped; for cosines. `identity`: the raw
    value, clipped.
    """

    name: NormalizationName
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one model is scored, and all that an engine must know of it.

    `max_length` is the number of tokens that one forward pass may hold, special tokens included: the pair for
    `cross_encoder` and `causal_lm`, a single text for `embedding`. `nfc` says that the model's tokenizer
    composes letters and their marks first (Unicode NFC), which llama.cpp leaves out or does in part.
    `template` holds `{query}`, `{document}` and perhaps `{instruction}` (causal_lm); where the reference
    tokenises its parts apart, U+001E stands between them. `labels` are the texts of the tokens that mean
    relevant and not relevant (causal_lm only): raw = logit(first) - logit(second). `sources` says where each
    part that is set is from; `low` and `high` are the normalization's.
    """

    method: Method
    max_length: int
    normalization: Normalization
    pooling: Pooling = "none"
    query_prefix: str = ""
    document_prefix: str = ""
    template: str = ""
    instruction: str = ""
    labels: tuple[str, str] = ("", "")
    nfc: bool = False
    # No part of what scores depend on, nor of the keys that are made of it.
    sources: Mapping[str, Source] = field(default_factory=dict, repr=False, compare=False)

    @property
    def explanation(self) -> str:
        """How a score comes about, in a sentence for the user."""
        if self.method == "cross_encoder":
            return (
                "a cross-encoder with a rank head: each pair's pass gives a logit, the score is its sigmoid"
            )
        if self.method == "embedding":
            return "an embedding model: the score is the cosine of query and document, stretched to 0…1"
        return (
            "a causal reranker asked for one token after the prompt: the score is the probability of "
            f"{self.labels[0]!r} against {self.labels[1]!r}"
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something is not done, and what to do next: a file is damaged, a model's recipe is not known, a
    backend can't run it. `lines` are the settings that supply what is missing, "" where none do."""

    reason: str
    next_step: str
    lines: str = ""

    def error(self, subject: str) -> Unscorable:
        """The exception for it; `subject` says what can't be done with which model."""
        return Unscorable(
            f"{subject}: {self.reason}; {self.next_step}" + (self.lines and f"\n\n{self.lines}")
        )


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """One question and the documents to order by how well they answer it.

    `top_n` None or 0 means all. `instruction` None means the model's own. `max_tokens_per_doc` bounds what is
    read of each document; `max_chunks_per_doc` > 1 lets a long document be read in that many chunks that
    overlap by `overlap_tokens`, its score being that of its best chunk. `truncate` False turns a document
    that does not fit into an error. `raw_scores` asks for the model's raw value instead of a score in [0, 1].
    `score_threshold` leaves out documents whose score in [0, 1] is lower, whatever value is shown.
    `max_tokens_per_query` truncates a longer query. `max_tokens_per_pair` is a limit smaller than the
    model's, special tokens included.

    Three options are the model's setting where they are None. `truncate_query` truncates a query that is too
    long for the model; otherwise that is an error. `truncate_at` "token" ends a truncated text at the last
    token that fits, "sentence" at the end of a sentence where one is near. `budget_ms` is the time in
    milliseconds for scoring, 0 for no limit: documents are scored in the request's order, and one that would
    not be done in time is not begun. `max_scored_documents` limits their number instead; None or 0 means all.

    `priority` weighs this request against others of the same caller. `warnings` say what of the caller's
    request is not in here; the answer repeats them.

    Raises InvalidRequest for a value of another type or out of its bounds.
    """

    query: str
    documents: tuple[str, ...]
    model: str | None = None
    top_n: int | None = None
    return_documents: bool = False
    instruction: str | None = None
    max_tokens_per_doc: int | None = None
    max_chunks_per_doc: int = 1
    overlap_tokens: int = 0
    truncate: bool = True
    raw_scores: bool = False
    score_threshold: float | None = None
    max_tokens_per_query: int | None = None
    max_tokens_per_pair: int | None = None
    truncate_query: bool | None = None
    truncate_at: TruncateAt | None = None
    budget_ms: int | None = None
    max_scored_documents: int | None = None
    priority: Priority = "normal"
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.query, str):
            raise InvalidRequest(f"The query is {self.query!r:.80}, but must be a string.")
        for at, text in enumerate(self.documents):
            if not isinstance(text, str):
                raise InvalidRequest(f"Document {at} is {text!r:.80}, but must be a string.")
        for name in _COUNTS:
            count = getattr(self, name)
            if count is not None and (type(count) is bool or not isinstance(count, int) or count < 0):
                raise InvalidRequest(f"{name} is {count!r:.80}, but must be a whole number, 0 or more.")
        for name in _TEXTS:
            text = getattr(self, name)
            if text is not None and not isinstance(text, str):
                raise InvalidRequest(f"{name} is {text!r:.80}, but must be a string.")
        for name, words in _WORDS.items():
            word = getattr(self, name)
            if word not in words:
                *some, last = (repr(one) for one in words)
                known = f"{', '.join(some)} or {last}"
                raise InvalidRequest(f"{name} is {word!r:.80}, but must be {known}.")
        if not isinstance(self.truncate_query, bool | None):
            raise InvalidRequest(
                f"truncate_query is {self.truncate_query!r:.80}, but must be True, False or None."
            )
        bound = self.score_threshold
        if bound is None:
            return
        if type(bound) is bool or not isinstance(bound, int | float) or not math.isfinite(bound):
            raise InvalidRequest(f"score_threshold is {bound!r:.80}, but must be a number.")


_COUNTS = (
    "top_n",
    "max_tokens_per_doc",
    "max_chunks_per_doc",
    "overlap_tokens",
    "max_tokens_per_query",
    "max_tokens_per_pair",
    "budget_ms",
    "max_scored_documents",
)
_TEXTS = ("model", "instruction")
_WORDS = {"priority": get_args(Priority), "truncate_at": (None, *get_args(TruncateAt))}


@dataclass(frozen=True, slots=True)
class ScoredDocument:
    """A document's place in the request, its score, and its text when it was asked for."""

    index: int
    score: float
    text: str | None = None


@dataclass(frozen=True, slots=True)
class DocumentError:
    """A document that could not be scored: its place in the request, and the reason as a clause."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class RerankResult:
    """Documents in order of their raw values, best first; ties keep the request's order.

    Documents that the request's budget left out (`unscored`, by index), blank ones (`blank`) and those that
    could not be scored (`errors`) have no value of their own: they come last, in the request's order, with
    the lowest score there is (see normalize.shown).

    `tokens` is what the engine read, over all pairs. `transform` names how raw values became scores (`raw`
    when they did not). `warnings` says in words what the caller should know, such as which documents were
    cut, by index in `cut` too. `cached` counts the different texts whose score was known, and which the
    engine did not read; `cached_tokens` are the tokens of these, and of texts that the request repeats.
    """

    model: str
    results: tuple[ScoredDocument, ...]
    tokens: int
    normalization: str
    warnings: tuple[str, ...] = ()
    cut: tuple[int, ...] = ()
    blank: tuple[int, ...] = ()
    errors: tuple[DocumentError, ...] = ()
    unscored: tuple[int, ...] = ()
    cached: int = 0
    cached_tokens: int = 0
    queue_s: float = 0.0
    engine_s: float = 0.0
    total_s: float = 0.0

    @property
    def asked_tokens(self) -> int:
        """Tokens of all that was asked, whether or not it had to be read for this request."""
        return self.tokens + self.cached_tokens
