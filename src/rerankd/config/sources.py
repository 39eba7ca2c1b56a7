"""Read settings from flags, environment variables and the settings file, in this order of precedence.

`load` is pure: it takes the file's text, an environment and the flags. `find` and `from_machine` read them.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import BaseModel, ValidationError

from rerankd import text_files
from rerankd.backends.options import trait
from rerankd.config import folders
from rerankd.config.cascade import Stage
from rerankd.config.model_settings import ModelSettings
from rerankd.config.scoring_settings import ScoringSettings
from rerankd.config.settings import Settings
from rerankd.config.upstream_settings import UpstreamSettings
from rerankd.deprecated_names import deprecated_in
from rerankd.errors import ConfigError
from rerankd.normalization import Calibration

_log = logging.getLogger("rerankd")

FILE_NAME = "rerankd.toml"
_PREFIX = "RERANKD_"
_MOST_SHOWN = 200
# Names of the variables that Kubernetes and Docker set, and how their values begin.
_LINKS = (
    (r"SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?|ENV_\w+", ""),
    ("PORT", r"(tcp|udp|sctp)://"),  # a number means the setting
    ("NAME", "/"),
)
# Settings that decide which programs run, `home` among them: it holds the engines that were built.
_PROGRAMS = [name for name, field in Settings.model_fields.items() if trait(field, "names_program")]
# Environment variables shared with other programs (LLAMA_PORT and the like).
_SHARED_VARIABLES = {
    variable: name
    for name, field in Settings.model_fields.items()
    if (variable := trait(field, "environment"))
}
_PREFIXES = "|".join({_PREFIX, *(name.partition("_")[0] + "_" for name in _SHARED_VARIABLES)})
# Empty variables are ignored, except where that would leave the server open to all.
_NEVER_BLANK = ("api_key", "api_keys_file")


def find(environ: Mapping[str, str]) -> Path | None:
    """Return the path of the settings file: RERANKD_CONFIG, else ./rerankd.toml, else the one in the user's
    configuration folder, else None."""
    if named := environ.get(_PREFIX + "CONFIG"):
        return Path(named)
    candidates = (Path(FILE_NAME), _user_file())
    return next((path for path in candidates if path is not None and path.is_file()), None)


def _user_file() -> Path | None:
    folder = folders.of_user(platformdirs.user_config_dir)
    return folder / FILE_NAME if folder is not None else None


def _is_users_file(path: Path) -> bool:
    """Whether a settings file that was found, not named, is the one in the user's configuration folder. The
    current folder's is not trusted: it may be part of a download."""
    own = _user_file()
    return path != Path(FILE_NAME) or (own is not None and own.is_file() and path.samefile(own))


def from_machine(overrides: Mapping[str, Any] | None = None, path: Path | None = None) -> Settings:
    """Return the settings of this process's environment and settings file. Raises ConfigError."""
    is_named = path is not None or bool(os.environ.get(_PREFIX + "CONFIG"))
    path = path or find(os.environ)
    if links := service_links(os.environ):
        _log.warning(
            "ignored environment variables that Kubernetes or Docker set for a service of this name: %s",
            ", ".join(links),
        )
    try:
        text = text_files.read(path) if path else ""
    except (OSError, ValueError) as error:
        raise ConfigError(f"The settings file {path} can't be read: {error}.") from error
    return load(
        text,
        os.environ,
        overrides or {},
        file_name=str(path or FILE_NAME),
        may_name_programs=is_named or path is None or _is_users_file(path),
    )


def load(
    text: str,
    environ: Mapping[str, str],
    overrides: Mapping[str, Any],
    file_name: str = FILE_NAME,
    *,
    may_name_programs: bool = True,
) -> Settings:
    """Return settings from a file's text, an environment and flags (None: not given).

    Raises ConfigError, also if the file sets what program runs although `may_name_programs` is false.
    """
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file_name} is not valid TOML: {error}.") from error
    if not may_name_programs and (named := [name for name in values if name in _PROGRAMS]):
        raise ConfigError(
            f"{file_name} in the current folder sets {' and '.join(named)}, which decides what program runs. "
            "The folder may be a download from someone else, so rerankd accepts this setting only from a "
            f"file that you name: --config {file_name}, or RERANKD_CONFIG={file_name}. Or move the setting "
            f"to {_user_file() or 'the environment'}."
        )
    sources = dict.fromkeys(values, file_name)
    for name, key in _environment_names(environ).items():
        # LLAMA_RANK_GGUF holds one path, which may contain commas: it is not split.
        values[key] = [environ[name]] if key == "model" and name in _SHARED_VARIABLES else environ[name]
        sources[key] = name
    for key, value in overrides.items():
        if value is not None:
            values[key] = value
            sources[key] = f"--{key.replace('_', '-')}"
    settings = _validated(values, sources)
    if old := list(_old_names(values, sources)):
        _log.warning("deprecated names of 0.1, which the next release removes: %s", "; ".join(old))
    return settings


def _old_names(values: Mapping[str, Any], sources: Mapping[str, str]) -> Iterator[str]:
    sections = {"scoring": values.get("scoring", {})}
    sections |= {f"models.{name}": own for name, own in values.get("models", {}).items()}
    for name, section in sections.items():
        if isinstance(section, Mapping) and (
            found := [str(one) for one in deprecated_in("scoring", section)]
        ):
            yield f"{sources[name.partition('.')[0]]} in [{name}]: {', '.join(found)}"


def override(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Return `settings` with some values replaced. Raises ConfigError."""
    return _validated({**settings.model_dump(), **values}, {}) if values else settings


def _validated(values: Mapping[str, Any], sources: Mapping[str, str]) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(item, sources) for item in error.errors())) from error


def _environment_names(environ: Mapping[str, str]) -> dict[str, str]:
    links = service_links(environ)
    names = {name: key for name, key in _SHARED_VARIABLES.items() if environ.get(name) and name not in links}
    for name, value in environ.items():
        key = name.removeprefix(_PREFIX).lower()
        is_blank = not value and key not in _NEVER_BLANK
        if not name.startswith(_PREFIX) or name in links or key == "config" or is_blank:
            continue
        if key in ("models", "scoring", "upstreams"):
            raise ConfigError(f"{name} is not a setting. Add a [{key}] section to a settings file instead.")
        if key not in Settings.model_fields:
            nearest = _nearest(key, Settings.model_fields, prefix=_PREFIX)
            raise ConfigError(f"{name} is not a setting.{nearest}")
        names[name] = key
    return names


def service_links(environ: Mapping[str, str]) -> list[str]:
    """Return the variables that Kubernetes and `docker run --link` set, not the user: a Service named rerankd
    or llama makes Kubernetes set RERANKD_PORT or LLAMA_PORT in every container of its namespace.

    https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
    """
    return sorted(name for name, value in environ.items() if value and _is_service_link(name, value))


def _is_service_link(name: str, value: str) -> bool:
    return any(
        re.fullmatch(rf"({_PREFIXES})(\w+_)?({names})", name) and re.match(start, value)
        for names, start in _LINKS
    )


def _sentence(item: Any, sources: Mapping[str, str]) -> str:
    location = item["loc"]
    if not location:
        return f"The settings contradict each other: {item['msg'].removeprefix('Value error, ')}."
    key = ".".join(str(part) for part in location)
    source = sources.get(str(location[0]), "settings")
    if item["type"] == "extra_forbidden":
        sections: dict[str, type[BaseModel]] = {
            "scoring": ScoringSettings,
            "models": ModelSettings,
            "upstreams": UpstreamSettings,
        }
        owner = Stage if "stages" in location else sections.get(str(location[0]), Settings)
        if location[-1] in Settings.model_fields and owner in sections.values():
            return (
                f"{source}: {key} is not a setting: {location[-1]} belongs at the top of the file, above all "
                "[sections]."
            )
        return f"{source}: {key} is not a setting.{_nearest(str(location[-1]), owner.model_fields)}"
    if item["type"] == "unexpected_keyword_argument":  # the only dataclass in the settings
        nearest = _nearest(str(location[-1]), Calibration.__dataclass_fields__)
        return f"{source}: {key} is not a setting.{nearest}"
    if item["type"] in ("missing", "missing_argument"):
        return f"{source}: {key} is missing."
    value = item["input"]
    typed = str(value).lower() if isinstance(value, bool) else re.sub(r"//[^/@]*@", "//…@", repr(value))
    # Neither a secret nor a long section is shown.
    shown = key if location[-1] == "api_key" or len(typed) > _MOST_SHOWN else f"{key} = {typed}"
    reason = item["msg"].removeprefix("Value error, ").lower().replace("input should be", "it must be")
    return f"{source}: {shown} can't be used: {reason.partition(', unable to parse')[0]}."


def _nearest(key: str, names: Iterable[str], prefix: str = "") -> str:
    names = sorted(names)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    if not close:
        return " The settings are: " + ", ".join(names) + "."
    return f" Did you mean {prefix + close[0].upper() if prefix else close[0]}?"
