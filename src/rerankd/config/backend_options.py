"""Add the options of every backend to the settings classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar, cast

from pydantic import Field, create_model

from rerankd.backends.options import Options, trait
from rerankd.backends.table import BACKENDS

M = TypeVar("M", bound=Options)

GROUPS = [backend.Options for backend in BACKENDS]


def with_options(cls: type[M]) -> type[M]:
    """Add the options of all backends to a class."""
    return _create((cls, *GROUPS), {})


def with_overrides(*shared: type[Options]) -> Callable[[type[M]], type[M]]:
    """Add a field to a class for each per-model setting of `shared` and of the backends; None: not set."""
    overrides: dict[str, Any] = {}
    for group in (*shared, *GROUPS):
        for name, field in group.model_fields.items():
            if trait(field, "per_model"):
                kind: Any = field.annotation
                described = Field(description=field.description)
                overrides[name] = (Annotated[(kind | None, described, *field.metadata)], None)
    return lambda cls: _create((cls,), overrides)


def _create(bases: tuple[type[M], *tuple[Any, ...]], fields: dict[str, Any]) -> type[M]:
    first = bases[0]
    created = create_model(
        first.__name__, __base__=bases, __module__=first.__module__, __doc__=first.__doc__, **fields
    )
    return cast(type[M], created)
