"""Scoring overrides: method, prompt template, max_length, pooling and normalization set by the user."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from rerankd.backends.options import Options
from rerankd.deprecated_names import with_current_names
from rerankd.domain import Method
from rerankd.normalization import NormalizationName


class ScoringSettings(Options):
    """Scoring settings that override what a model's file and the catalog define; None: not overridden."""

    method: Method | None = Field(
        None,
        description="scoring method: " + ", ".join(get_args(Method)),
    )
    template: str | None = Field(
        None,
        description="causal_lm: prompt template; it must contain {query} and {document}; text between "
        "{?instruction} and {/instruction} is left out without an instruction",
    )
    labels: Annotated[tuple[str, ...], Field(min_length=1, max_length=2)] | None = Field(
        None,
        description="causal_lm: the tokens that mean relevant and not relevant; a single one: its logit is "
        "the raw score",
    )
    instruction: str | None = Field(
        None, description="causal_lm: value of {instruction} if the request sends none"
    )
    max_length: int | None = Field(
        None,
        ge=16,
        le=2**20,
        description="maximum tokens of a pair (late_interaction: a document); a lower value saves memory",
    )
    pooling: Literal["mean", "cls", "last"] | None = Field(
        None, description="embedding: pooling of the token states; ModernBERT: input of its classifier"
    )
    query_prefix: str | None = Field(
        None, description="embedding, late_interaction: text inserted before a query"
    )
    document_prefix: str | None = Field(
        None, description="embedding, late_interaction: text inserted before a document"
    )
    query_marker: str | None = Field(None, description="late_interaction: token inserted before a query")
    document_marker: str | None = Field(
        None, description="late_interaction: token inserted before a document"
    )
    query_length: int | None = Field(
        None, ge=4, le=2**20, description="late_interaction: maximum tokens of a query"
    )
    expansion_length: int | None = Field(
        None,
        ge=0,
        le=2**20,
        description="late_interaction: queries are filled up to this number of tokens; 0: they are not",
    )
    expansion_token: str | None = Field(None, description="late_interaction: token that fills a query")
    attends_to_expansion: bool | None = Field(
        None, description="late_interaction: the query's tokens see those that fill it"
    )
    skiplist: tuple[str, ...] | None = Field(
        None, description="late_interaction: tokens of documents that are left out of the comparison"
    )
    normalization: NormalizationName | None = Field(
        None, description="function that turns a raw score into a score"
    )
    low: float | None = Field(None, ge=-1e6, le=1e6, description="affine: raw score that becomes 0")
    high: float | None = Field(None, ge=-1e6, le=1e6, description="affine: raw score that becomes 1")
    logit_mean: float | None = Field(
        None, ge=-1e6, le=1e6, description="sigmoid: raw score that becomes 0.5; 0 if not set"
    )
    logit_sigma: float | None = Field(
        None,
        ge=1e-6,
        le=1e6,
        description="sigmoid: number by which the raw score less logit_mean is divided; 1 if not set",
    )

    @model_validator(mode="before")
    @classmethod
    def _takes_old_names(cls, values: object) -> object:
        return with_current_names("scoring", values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _has_a_range(self) -> Self:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low = {self.low:g} must be less than high = {self.high:g}")
        return self
