"""(pure) The normalization of a recipe, and the errors of settings that do not fit it."""

from __future__ import annotations

from rerankd.domain import Method
from rerankd.errors import ConfigError
from rerankd.normalization import Normalization
from rerankd.recipes.partial_recipe import PartialRecipe


def normalization_of(settings: PartialRecipe, method: Method, merged: PartialRecipe) -> Normalization:
    """The normalization of a recipe that was merged from all sources.

    Raises ConfigError for settings that contradict each other or the method; the message names the setting.
    """
    name, low, high = merged.normalization, merged.low, merged.high
    assert name is not None and low is not None and high is not None, "each method has a default"
    if method not in ("cross_encoder", "causal_lm") and name == "sigmoid" and settings.logit_sigma is None:
        raise ConfigError(
            "normalization = sigmoid squeezes cosines into 0.27…0.73. Use affine with low and high, "
            "or set logit_mean and logit_sigma."
        )
    if name != "sigmoid" and (settings.logit_mean is not None or settings.logit_sigma is not None):
        raise ConfigError(
            f"logit_mean and logit_sigma are for normalization = sigmoid, but this model has {name}. "
            "Remove them."
        )
    if name != "affine":
        if settings.low is not None or settings.high is not None:
            raise ConfigError(
                f"low and high are for normalization = affine, but this model has {name}. Remove them."
            )
        if name == "identity":
            return Normalization(name)
        sigma = 1.0 if merged.logit_sigma is None else merged.logit_sigma
        return Normalization(name, logit_mean=merged.logit_mean or 0.0, logit_sigma=sigma)
    if not low < high:
        raise ConfigError(f"low = {low} must be less than high = {high}")
    return Normalization("affine", low, high)
