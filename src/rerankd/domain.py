"""The vocabulary of the project: rerank request, recipe, normalization, refusal.

Plain values without I/O or a framework. All layers use these terms:

- **Method**: how a model scores a pair of a query and a document. `cross_encoder`: the model reads both texts
  together and its rank head returns one logit. `causal_lm`: a language model reads a prompt with both texts,
  and the logits of two possible next tokens, the labels, are compared, or the logit of one is read.
  `embedding`: each text is read alone and becomes a vector; the raw score is the cosine of the two vectors.
  `late_interaction`: likewise, with a vector for each token (see interaction.py); the raw score is MaxSim.
  `listwise`: a language model reads a query and a block of documents in one prompt; the raw score of a
  document is the cosine of two vectors, which are made of the states of a token after the document and of one
  after the query. It depends on the other documents of the block.
- **Raw score**: the number that the method yields: a logit, a difference of two logits, a cosine, a MaxSim.
  Documents are ordered by it.
- **Normalized score**: the raw score mapped to [0, 1] by the recipe's normalization, or by a calibration (see
  normalization.py). Clients get this one unless they request raw scores.
- **max_length**: the most tokens that one forward pass reads, special tokens included. For `cross_encoder`
  and `causal_lm` that is the pair (for `causal_lm` with the whole prompt), for `listwise` the prompt of a
  block, else a single text.
- **Template** and **labels** (`causal_lm`): the prompt with placeholders for the texts, and the one or two
  answer tokens.
- **Truncated**: a document of which the model reads only the beginning, because the rest exceeds a limit.
- **Blank**: a document of spaces, control and format characters only. It is not scored, and is ranked last.
- **Unscored**: a document that is left out because of the request's `budget_ms` or `max_scored_documents`.
- **Cached**: a document whose raw score for the query is known from an earlier request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from rerankd.content import Content, ImageInput, check
from rerankd.errors import InvalidRequest, Unscorable
from rerankd.interaction import Interaction
from rerankd.normalization import Normalization

Method = Literal["cross_encoder", "causal_lm", "embedding", "late_interaction", "listwise"]
Pooling = Literal["rank", "mean", "cls", "last", "none"]
Format = Literal["gguf", "safetensors"]
Priority = Literal["low", "normal", "high"]
TruncateAt = Literal["token", "sentence"]
# Where a part of a recipe comes from, by precedence: the first source that defines the part wins.
Source = Literal["settings", "catalog", "file", "method default"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one model is scored: everything that turns a query and a document into a raw score and a score.

    `max_length`: the most tokens of one forward pass, special tokens included; of the pair for
    `cross_encoder` and `causal_lm`, of a single text for `embedding`, of a document for `late_interaction`,
    of a block for `listwise`.
    `template` (causal_lm, and cross_encoder for a model that reads a prompt): the complete prompt, special
    tokens included, with the placeholders `{query}` and `{document}` and optionally `{instruction}`. U+001E
    separates parts that the reference implementation tokenizes separately. The text between `{?instruction}`
    and `{/instruction}` is part of the prompt only if there is an instruction.
    `labels` (causal_lm): the texts of two tokens, relevant first; raw score = logit(first) - logit(second).
    Or of one token; raw score = logit(label). Or (): raw score = the logit of the model's rank head.
    `query_prefix`, `document_prefix` (embedding, late_interaction): the text before a query or a document.
    `pooling` (embedding): how the token states become one vector. `interaction`: for late_interaction.
    `markers` (listwise): the texts of the two tokens whose states are compared, the document's first.
    `query_tokens`, `document_tokens`: the most tokens of a query and of a document that the model reads, 0
    for no such limit; `block_documents` (listwise): the most documents of a block.
    `nfc`: the model's tokenizer normalizes texts to Unicode NFC first; llama.cpp does not, or not completely.
    `images`: how the model reads images, None if it reads text alone.
    `sources`: where each part that is set comes from; the parts `low` and `high` belong to the normalization.
    """

    method: Method
    max_length: int
    normalization: Normalization
    pooling: Pooling = "none"
    query_prefix: str = ""
    document_prefix: str = ""
    template: str = ""
    instruction: str = ""
    labels: tuple[str, ...] = ("", "")
    markers: tuple[str, ...] = ()
    query_tokens: int = 0
    document_tokens: int = 0
    block_documents: int = 0
    nfc: bool = False
    interaction: Interaction | None = None
    images: ImageInput | None = None
    # Scores do not depend on it, so it is not compared and not part of any cache key.
    sources: Mapping[str, Source] = field(default_factory=dict, repr=False, compare=False)

    def normalization_for(self, query_tokens: int) -> Normalization:
        """The normalization of the raw scores for a query of this many tokens that the model reads apart."""
        if self.interaction is None:
            return self.normalization
        return replace(self.normalization, divisor=max(query_tokens, self.interaction.expansion_length, 1))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a model is not served, and what the user can do: its file is damaged, its recipe is unknown, or the
    backend can't run it.

    `reason` and `next_step` are clauses without a capital letter or a full stop. `lines` are the settings for
    rerankd.toml that supply what is missing, "" if settings can't. `is_minor`: the user need not know
    where something else serves the model.
    """

    reason: str
    next_step: str
    lines: str = ""
    is_minor: bool = False

    def error(self, subject: str) -> Unscorable:
        """The exception to raise; `subject` is a clause that says which model can't be used for what."""
        return Unscorable(f"{subject}: {self}" + (self.lines and f"\n\n{self.lines}"))

    def __str__(self) -> str:
        """The reason and the next step, as the rest of a sentence and a second one."""
        return f"{self.reason}. {self.next_step[:1].upper()}{self.next_step[1:]}."


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """One query, and the documents to order by relevance to it; texts, or Documents that have images.

    `top_n`: how many results to return; None or 0 for all.
    `instruction`: replaces the model's default instruction; None keeps it.
    `max_tokens_per_doc`: truncate each document to this many tokens.
    `max_chunks_per_doc`: if above 1, a long document is read in at most this many chunks, which overlap by
    `overlap_tokens`; its score is the score of its best chunk.
    `truncate`: if False, a document that does not fit is an error instead of being truncated.
    `raw_scores`: return raw scores instead of normalized ones.
    `score_threshold`: omit documents with a lower normalized score, also if raw scores are returned.
    `max_tokens_per_query`: truncate a longer query to this many tokens.
    `max_tokens_per_pair`: a limit below the model's max_length, special tokens included.
    `max_scored_documents`: score only this many documents, in the request's order; None or 0 for all.
    `priority`: the weight of this request among those of the same client.
    `keep_alive_s`: unload the model this long after its last request, 0 at once, inf never; None: as before.
    `warnings`: options of the client's request that rerankd ignores or changes; the response repeats them.

    None means the model's setting for these three. `truncate_query`: truncate a query that is too long for
    the model; otherwise it is an error. `truncate_at`: "token" truncates after the last token that fits,
    "sentence" at the end of a sentence if there is one nearby. `budget_ms`: time for scoring in milliseconds,
    0 for no limit; documents are scored in the request's order, and a document that would not finish in time
    is not started.

    Raises InvalidRequest for a value of the wrong type or out of range.
    """

    query: Content
    documents: tuple[Content, ...]
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
    keep_alive_s: float | None = None
    warnings: tuple[str, ...] = ()
    has_images: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        for at, text in enumerate((self.query, *self.documents)):
            if not isinstance(text, str):
                check(text, f"Document {at - 1}" if at else "The query")
                object.__setattr__(self, "has_images", True)
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
                *others, last = (repr(one) for one in words)
                allowed = f"{', '.join(others)} or {last}"
                raise InvalidRequest(f"{name} is {word!r:.80}, but must be {allowed}.")
        if not isinstance(self.truncate_query, bool | None):
            raise InvalidRequest(
                f"truncate_query is {self.truncate_query!r:.80}, but must be True, False or None."
            )
        keep_s = self.keep_alive_s
        if keep_s is not None and (type(keep_s) not in (int, float) or not keep_s >= 0):
            raise InvalidRequest(f"keep_alive_s is {keep_s!r:.80}, but must be a number of 0 or more.")
        threshold = self.score_threshold
        if threshold is None:
            return
        is_number = isinstance(threshold, int | float) and type(threshold) is not bool
        if not is_number or not math.isfinite(threshold):
            raise InvalidRequest(f"score_threshold is {threshold!r:.80}, but must be a number.")


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
