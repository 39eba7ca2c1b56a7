"""The base class of settings. A setting declares its default, type, help text, and what a change requires.

Each backend has an `Options` class for its own settings. The settings file, the environment variables, the
command line and the documentation are generated from these classes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rerankd.domain import Refusal

Needs = Literal["live", "engine", "restart"]
O = TypeVar("O", bound="Options")  # noqa: E741


class Options(BaseModel):
    """A group of settings, such as those of one backend. `needs` is what a change requires: nothing ("live"),
    a new engine, or a restart of rerankd."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, defer_build=True
    )
    needs: ClassVar[Needs] = "engine"

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_switch(cls, value: object, info: ValidationInfo) -> object:
        """Reject a switch where a value is expected, and a blank path. Files and services do not expand ~ in
        a path as shells do."""
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, bool) and bool not in (field.annotation, *get_args(field.annotation)):
            raise ValueError("it takes a value, not true or false")
        is_path = Path in (field.annotation, *get_args(field.annotation))
        if is_path and isinstance(value, str):
            if not value.strip():
                raise ValueError("it is blank; name a path, or remove the setting")
            return os.path.expanduser(value)
        return value

    def options(self, of: type[O]) -> O:
        """Return the subset of these settings that the class `of` declares."""
        return cast(O, of.model_construct(**{name: getattr(self, name) for name in of.model_fields}))


def setting(
    default: Any = PydanticUndefined,
    *,
    environment: str = "",
    names_program: bool = False,
    per_model: bool = False,
    is_permission: bool = False,
    on_cpu: Any = None,
    **field: Any,
) -> Any:
    """A pydantic Field with traits. `environment` is a second environment variable for the setting. A setting
    with `names_program` is ignored in a settings file in the current folder. A setting that is `per_model`
    can also be set in a `[models.NAME]` section. One that `is_permission` asks for nothing. `on_cpu` is the
    value that every engine on a CPU follows. All other arguments are passed to Field."""
    traits: Any = {
        "environment": environment,
        "names_program": names_program,
        "per_model": per_model,
        "is_permission": is_permission,
        "on_cpu": on_cpu,
    }
    return Field(default, json_schema_extra=traits, **field)


def per_model(default: Any, **field: Any) -> Any:
    """A setting that can also be set in a `[models.NAME]` section. The arguments are those of `setting`."""
    return setting(default, per_model=True, **field)


def trait(field: FieldInfo, name: str) -> Any:
    """Return a trait that `setting` declared for a field, or None."""
    return field.json_schema_extra.get(name) if isinstance(field.json_schema_extra, dict) else None


Precision = Literal["auto", "f32", "bf16", "fp8", "int8"]

NO_INT8 = Refusal("it does not compute in int8", "leave precision at auto", is_minor=True)
"""The answer of a backend without int8 to precision = int8: it is never replaced by other arithmetic."""


class PrecisionOptions(Options):
    """The settings that the backends with arithmetic of their own share."""

    precision: Precision = per_model(
        "auto",
        description="precision of the arithmetic; auto: OpenVINO uses bf16 if it is faster on this CPU and "
        "keeps the order of documents; PyTorch uses float32 on a CPU and half precision on a GPU (bf16 where "
        "the card has it), or float8 with fp8; llama.cpp on a GPU rounds keys and values to F16, with f32 it "
        "does not. int8: ONNX Runtime computes products in 8 bits, fast on every CPU; scores change "
        "a little (pip install 'rerankd[onnx]')",
    )
    weights: Literal["full", "compressed"] = per_model(
        "full",
        description="OpenVINO and PyTorch: compressed stores weights in 8 bits, and scores change a little; "
        "OpenVINO takes a third of the memory, PyTorch half. PyTorch does so by itself where full weights do "
        "not fit on a card",
    )
