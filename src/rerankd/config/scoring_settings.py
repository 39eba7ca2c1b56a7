"""How a model is scored, as far as the user says so."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rerankd.backends.options import Options
from rerankd.deprecated_names import with_current_names
from rerankd.domain import Method, NormalizationName


class ScoringSettings(Options):
    """How a model is scored, where the user knows better than the file and the catalog."""

    method: Method | None = Field(None, description="how the model scores")
    template: str | None = Field(None, description="causal_lm: the prompt, with {query} and {document} in it")
    labels: tuple[str, str] | None = Field(
        None, description="causal_lm: the tokens for relevant and not relevant"
    )
    instruction: str | None = Field(
        None, description="causal_lm: what {instruction} becomes when none is sent"
    )
    max_length: int | None = Field(
        None, ge=16, le=2**20, description="tokens that one pair may use; lower it to save memory"
    )
    pooling: Literal["mean", "cls", "last"] | None = Field(
        None, description="embedding: how tokens are pooled; ModernBERT: what its head reads"
    )
    query_prefix: str | None = Field(None, description="embedding: text put before a query")
    document_prefix: str | None = Field(None, description="embedding: text put before a document")
    normalization: NormalizationName | None = Field(None, description="how a raw value becomes a score")
    low: float | None = Field(None, ge=-1e6, le=1e6, description="affine: the raw value that becomes 0")
    high: float | None = Field(None, ge=-1e6, le=1e6, description="affine: the raw value that becomes 1")

    @model_validator(mode="before")
    @classmethod
    def _takes_old_names(cls, values: object) -> object:
        return with_current_names("scoring", values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _has_a_range(self) -> Self:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low = {self.low:g} must be less than high = {self.high:g}")
        return self
