"""(pure) Explain a recipe to the user: how a raw score is computed, and how it becomes a score."""

from __future__ import annotations

from rerankd.domain import Recipe
from rerankd.normalization import Calibration, Normalization


def explain(recipe: Recipe, calibration: Calibration | None = None) -> str:
    """The scoring formula, as a clause."""
    if calibration is None:
        return f"{_raw(recipe)}; {_score(recipe)}"
    return f"{_raw(recipe)}; {_probability(calibration.normalization(), recipe)}; {calibration.words}"


def _raw(recipe: Recipe) -> str:
    if recipe.method == "cross_encoder":
        return "a cross-encoder: its raw score is one logit for each pair"
    if recipe.method == "embedding":
        return "an embedding model: its raw score is the cosine of query and document"
    if recipe.method == "late_interaction":
        return (
            "a late interaction model (ColBERT): its raw score is MaxSim, the sum over the query's tokens of "
            "the largest cosine with a token of the document"
        )
    if recipe.method == "listwise":
        return (
            f"a listwise model: it reads up to {recipe.block_documents} documents in one prompt; its raw "
            "score is the cosine of the vectors of document and query, and depends on the other documents"
        )
    labels = " - ".join(f"logit({label!r})" for label in recipe.labels)
    return f"a causal language model with a prompt: its raw score is {labels or 'the logit of its rank head'}"


def _score(recipe: Recipe) -> str:
    normalization = recipe.normalization
    is_sum = recipe.method == "late_interaction"
    if normalization.name == "affine":
        mean = "raw / (the number of these tokens) from " if is_sum else ""
        return f"the score maps {mean}{normalization.low:g}…{normalization.high:g} to 0…1"
    if normalization.name == "identity":
        same = "raw / (the number of these tokens)" if is_sum else "the same number"
        return f"the score is {same}, limited to 0…1"
    argument = normalization.argument
    sigmoid = "its sigmoid" if argument == "raw" else f"sigmoid({argument})"
    if recipe.method == "causal_lm" and argument == "raw" and len(recipe.labels) == 2:
        sigmoid += ", the probability of {!r} rather than {!r}".format(*recipe.labels)
    return f"the score is {sigmoid}"


def _probability(how: Normalization, recipe: Recipe) -> str:
    per_token = ", with raw / (the number of these tokens)" * (recipe.method == "late_interaction")
    if how.name == "sigmoid":
        return f"the score is a probability of relevance, sigmoid({how.argument}){per_token}"
    return f"the score is a probability of relevance, from a table with {len(how.knots)} knots{per_token}"
