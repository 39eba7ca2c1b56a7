"""Which model a calibration belongs to, and the section of rerankd.toml that contains it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace

from rerankd.domain import Recipe
from rerankd.formats.content_digest import content_digest
from rerankd.formats.metadata import ModelMetadata
from rerankd.normalization import Calibration
from rerankd.recipes.resolution import Resolution
from rerankd.toml_values import toml, toml_key

_DIGEST_BYTES = 16
# The parts of a recipe that a raw score depends on. max_length is none of them: it only decides how much of a
# long document is read.
_PARTS = (
    "method",
    "pooling",
    "query_prefix",
    "document_prefix",
    "template",
    "instruction",
    "labels",
    "markers",
)


def model_digest(metadata: ModelMetadata, recipe: Recipe) -> str:
    """Identifies what raw scores depend on besides the texts and the engine's precision: the model's weights
    and the recipe. Raises OSError if the model's files can't be read."""
    values = {part: getattr(recipe, part) for part in _PARTS}
    values["interaction"] = asdict(recipe.interaction) if recipe.interaction is not None else None
    values["content"] = content_digest(metadata.path, metadata.parts)
    text = json.dumps(values, sort_keys=True).encode()
    return hashlib.blake2b(text, digest_size=_DIGEST_BYTES).hexdigest()


def with_calibration(
    resolved: Resolution, metadata: ModelMetadata, calibration: Calibration | None
) -> Resolution:
    """The resolution with the calibration of the settings; if that was fitted on another model, without it
    and with a warning."""
    recipe = resolved.recipe
    if calibration is None or recipe is None:
        return resolved
    try:
        is_of_model = model_digest(metadata, recipe) == calibration.model
    except OSError:  # the file was just deleted; whoever opens it next reports that
        is_of_model = False
    if is_of_model:
        return replace(resolved, calibration=calibration)
    warning = (
        f"The calibration on {calibration.collection} of {calibration.fitted} is not used: it was fitted on "
        "another file or another recipe, so its scores would not be probabilities. Fit it again with rerankd "
        "eval --calibrate --write, or remove it from the settings."
    )
    return replace(resolved, warnings=(*resolved.warnings, warning))


def section(name: str, calibration: Calibration) -> str:
    """The section of rerankd.toml for a calibration of the model whose section has this name. Each value is
    on one line."""
    values = {key: value for key, value in asdict(calibration).items() if value not in (None, ())}
    return "\n".join(
        (
            f"[models.{toml_key(name)}.calibration]",
            *(f"{key} = {_value(value)}" for key, value in values.items()),
        )
    )


def _value(value: str | float | Sequence[object]) -> str:
    """A value in TOML, where floats never look like integers."""
    if isinstance(value, str):
        return toml(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    return f"[{', '.join(map(_value, value))}]"  # type: ignore[arg-type]
