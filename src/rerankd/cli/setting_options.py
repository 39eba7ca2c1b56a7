"""Command-line flags made from settings: name, type, bounds, default and help come from the setting."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from rerankd.backends.table import BACKENDS
from rerankd.cli.completion import models_here
from rerankd.config import Settings

ServedModels = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL",
        help="Names from `rerankd list`, GGUF files, builtin:e5, or names of [models.NAME] sections.",
        show_default="the configured models, else the model pulled last, else builtin:e5",
        autocompletion=models_here,
    ),
]
"""The models that a command serves."""


def of_backends() -> list[str]:
    """Return the names of the backends' settings, each once: some backends share one."""
    return [*dict.fromkeys(name for backend in BACKENDS for name in backend.Options.model_fields)]


def takes(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a flag for each of these settings to a command with a parameter `**flags`. Flags that are not given
    are None."""

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
    # A boolean is a single flag that turns it on; without `spelled`, typer would add --no-... as well.
    spelled = [f"--{name.replace('_', '-')}"] if kind is bool else []
    limits: dict[str, Any] = {
        limit: getattr(one, bound)
        for one in field.metadata
        for bound, limit in (("ge", "min"), ("le", "max"))
        if hasattr(one, bound)
    }
    text = field.description or ""
    shown = str(field.default) if field.default not in (None, "", (), False) else None
    option = typer.Option(
        *spelled, help=f"{text[:1].upper()}{text[1:]}.", show_default=shown or False, **limits
    )
    optional: Any = kind | None
    annotation = Annotated[(optional, option)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _kind(field: FieldInfo) -> Any:
    """Return a setting's type on the command line, without None."""
    given = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    kind = given[0] if NoneType in get_args(field.annotation) else field.annotation
    return list[str] if get_origin(kind) is tuple else kind
