"""How settings come to have the options of every backend in the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar, cast

from pydantic import Field, create_model

from rerankd.backends.options import Options, trait
from rerankd.backends.table import BACKENDS

M = TypeVar("M", bound=Options)

GROUPS = [backend.Options for backend in BACKENDS]


def with_options(cls: type[M]) -> type[M]:
    """The class, with the options of all backends."""
    return _made((cls, *GROUPS), {})


def with_own(*shared: type[Options]) -> Callable[[type[M]], type[M]]:
    """The class, with a field for each setting of `shared` and of the backends that a model may have of its
    own: None where it has none."""
    own: dict[str, Any] = {}
    for group in (*shared, *GROUPS):
        for name, field in group.model_fields.items():
            if trait(field, "per_model"):
                kind: Any = field.annotation
                said = Field(description=field.description)
                own[name] = (Annotated[(kind | None, said, *field.metadata)], None)
    return lambda cls: _made((cls,), own)


def _made(bases: tuple[type[M], *tuple[Any, ...]], fields: dict[str, Any]) -> type[M]:
    first = bases[0]
    made = create_model(
        first.__name__, __base__=bases, __module__=first.__module__, __doc__=first.__doc__, **fields
    )
    return cast(type[M], made)
