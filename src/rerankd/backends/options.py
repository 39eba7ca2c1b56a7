"""Settings, each written once: default, type, help, and what a change of it needs.

A backend has an `Options` class of its own settings. The settings file, the environment, the command line and
the documentation are made from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

Needs = Literal["live", "engine", "restart"]
O = TypeVar("O", bound="Options")  # noqa: E741


@dataclass(frozen=True, slots=True)
class Traits:
    """What is said of a setting besides its default, type and help.

    `needs` is what a change takes: nothing ("live"), another engine, or a restart of rerankd. `environment`
    is a second name in the environment. A setting that `names_program` is not taken from a file that lies in
    the current folder.
    """

    needs: Needs = "engine"
    per_model: bool = False
    environment: str = ""
    names_program: bool = False


class Options(BaseModel):
    """Settings that belong together, such as those of one backend. A change of these takes another engine."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, defer_build=True
    )

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
    needs: Needs = "engine",
    environment: str = "",
    names_program: bool = False,
    **field: Any,
) -> Any:
    """A setting; see Traits. The other arguments are those of pydantic's Field."""
    said: Any = {"traits": Traits(needs, environment=environment, names_program=names_program)}
    return Field(default, json_schema_extra=said, **field)


def per_model(default: Any, **field: Any) -> Any:
    """A setting that a `[models.NAME]` section may set, too. The arguments are those of pydantic's Field."""
    said: Any = {"traits": Traits(per_model=True)}
    return Field(default, json_schema_extra=said, **field)


def traits(field: FieldInfo) -> Traits:
    """What is said of a setting."""
    extra = field.json_schema_extra
    found: Any = extra.get("traits") if isinstance(extra, dict) else None
    return found or Traits()
