"""Settings, each written once: default, type, help, and what a change of it needs.

A backend has an `Options` class of its own settings. The settings file, the environment, the command line and
the documentation are made from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

Needs = Literal["live", "engine", "restart"]
O = TypeVar("O", bound="Options")  # noqa: E741


class Options(BaseModel):
    """Settings that belong together, such as those of one backend. `needs` is what a change of them takes:
    nothing ("live"), another engine, or a restart of rerankd."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, defer_build=True
    )
    needs: ClassVar[Needs] = "engine"

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_switch(cls, value: object, info: ValidationInfo) -> object:
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, bool) and bool not in (field.annotation, *get_args(field.annotation)):
            raise ValueError("it takes a value, not true or false")
        is_path = Path in (field.annotation, *get_args(field.annotation))
        if is_path and isinstance(value, str) and not value.strip():
            raise ValueError("it is blank; name a path, or remove the setting")
        return value

    def options(self, of: type[O]) -> O:
        """Those of these settings that are a backend's."""
        return cast(O, of.model_construct(**{name: getattr(self, name) for name in of.model_fields}))


def setting(
    default: Any = PydanticUndefined,
    *,
    environment: str = "",
    names_program: bool = False,
    per_model: bool = False,
    **field: Any,
) -> Any:
    """A setting with traits: `environment` is a second name in the environment; one that `names_program` is
    not taken from a file that lies in the current folder; what is `per_model` may be set by a `[models.NAME]`
    section, too. The other arguments are those of pydantic's Field."""
    traits: Any = {"environment": environment, "names_program": names_program, "per_model": per_model}
    return Field(default, json_schema_extra=traits, **field)


def per_model(default: Any, **field: Any) -> Any:
    """A setting that a `[models.NAME]` section may set, too. The arguments are those of pydantic's Field."""
    return setting(default, per_model=True, **field)


def trait(field: FieldInfo, name: str) -> Any:
    """What `setting` was told of a field; None where that is nothing."""
    return field.json_schema_extra.get(name) if isinstance(field.json_schema_extra, dict) else None
