"""Late interaction (ColBERT): a model reads queries and documents apart, and returns a vector for each token.

The raw score is MaxSim: the sum over the query's vectors of the largest dot product with a vector of the
document; all vectors have length 1. A document's vectors do not depend on the query, so they can be kept.

Source: ColBERT, https://arxiv.org/abs/2004.12832; MultiVectorEncoder of sentence-transformers 6.2.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interaction:
    """How a late-interaction model reads texts. Lengths are in tokens, special tokens included.

    `query_marker`, `document_marker`: the token after the one that begins a text; "" for none.
    `query_length`: the most tokens of a query. `expansion_length`: a shorter query is filled up to this
    length with `expansion_token`, whose vectors count as well; 0 for no expansion. `attends_to_expansion`:
    whether the tokens of the query see these. `skiplist`: tokens of a document whose vectors are left out.
    """

    query_length: int
    query_marker: str = ""
    document_marker: str = ""
    expansion_length: int = 0
    expansion_token: str = ""
    attends_to_expansion: bool = False
    skiplist: tuple[str, ...] = ()
