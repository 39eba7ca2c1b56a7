"""A backend's own settings: each written once, with its help and what a change of it needs.

A backend has an `Options` class of these. The settings file, the environment, the command line and the
documentation are made from it.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """The settings of one backend. A field made with `per_model` may be set for each model, too."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


def per_model(default: Any, **field: Any) -> Any:
    """A setting that a `[models.NAME]` section may set, too. The arguments are those of pydantic's Field."""
    return Field(default, json_schema_extra={"per_model": True}, **field)
