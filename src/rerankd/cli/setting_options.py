"""Settings as options of a command: name, type, bounds, default and help are the setting's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from rerankd.backends.table import BACKENDS
from rerankd.config import Settings


def of_backends() -> list[str]:
    """The settings that are a backend's own."""
    return [name for backend in BACKENDS for name in backend.Options.model_fields]


def takes(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, which takes `**flags`, an option for each of these settings. It is called with None for
    those that are not given."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        written = inspect.signature(command, eval_str=True)
        *own, _ = written.parameters.values()
        signature: Any = written.replace(parameters=[*own, *map(_option, names)])
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in signature.parameters.values()}
        return command

    return add


def _option(name: str) -> inspect.Parameter:
    field = Settings.model_fields[name]
    kind = _kind(field)
    # Of a switch, only what it does not do by itself is said on the command line.
    spelled = [f"--{name.replace('_', '-')}"] if kind is bool else []
    limits: dict[str, Any] = {
        limit: getattr(one, bound)
        for one in field.metadata
        for bound, limit in (("ge", "min"), ("le", "max"))
        if hasattr(one, bound)
    }
    said = field.description or ""
    shown = str(field.default) if field.default not in (None, "", (), False) else None
    option = typer.Option(
        *spelled, help=f"{said[:1].upper()}{said[1:]}.", show_default=shown or False, **limits
    )
    optional: Any = kind | None
    annotation = Annotated[(optional, option)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _kind(field: FieldInfo) -> Any:
    """A setting's type on the command line, without the None that each option may be."""
    given = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    kind = given[0] if NoneType in get_args(field.annotation) else field.annotation
    return list[str] if get_origin(kind) is tuple else kind
