"""Bounds of every numeric setting: an unusable value is rejected at startup with a message that names it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import annotated_types
import pytest
from pydantic.fields import FieldInfo

from rerankd import config
from rerankd.config import ModelSettings, ScoringSettings, Settings
from rerankd.errors import ConfigError
from support import rerankd

WRONG: list[Any] = [0, -1, 10**6, 10**9, 9 * 10**18, 1e-9, 1e308, "many", "", " ", "nan", "-inf", "1e400"]
WRONG += [math.nan, math.inf, -math.inf, True, [], {}, [1], 1.5]


def is_numeric(field: FieldInfo) -> bool:
    return bool({int, float} & {field.annotation, *get_args(field.annotation)})


def numeric(section: type) -> list[tuple[str, FieldInfo]]:
    return [(name, field) for name, field in section.model_fields.items() if is_numeric(field)]


FIELDS = [("", *row) for row in numeric(Settings)]
FIELDS += [("scoring", *row) for row in numeric(ScoringSettings)]
FIELDS += [("models", *row) for row in numeric(ModelSettings)]


def given(section: str, name: str, value: Any) -> Settings:
    if section == "models":
        return config.load("", {}, {"models": {"a": {name: value}}})
    return config.load("", {}, {"scoring": {name: value}} if section else {name: value})


def read(settings: Settings, section: str, name: str) -> Any:
    owner: Any = {"": settings, "scoring": settings.scoring}.get(section)
    return getattr(owner if owner is not None else settings.models["a"], name)


def bounds(field: FieldInfo) -> tuple[float, float]:
    low = [one.ge for one in field.metadata if isinstance(one, annotated_types.Ge)]
    high = [one.le for one in field.metadata if isinstance(one, annotated_types.Le)]
    assert low and high, "a number needs a lower and an upper bound"
    return float(low[0]), float(high[0])  # type: ignore[arg-type]


@pytest.mark.parametrize(("section", "name", "field"), FIELDS, ids=lambda value: str(value)[:30])
def test_a_number_out_of_bounds_is_rejected_by_name(section: str, name: str, field: FieldInfo) -> None:
    low, high = bounds(field)
    assert math.isfinite(low) and math.isfinite(high)
    refused = 0
    for value in WRONG:
        try:
            settings = given(section, name, value)
        except ConfigError as error:
            refused += 1
            assert name in error.message and "can't be used" in error.message, error.message
        else:
            assert low <= read(settings, section, name) <= high, value
    assert refused >= 12
    for value in (low, high):
        assert read(given(section, name, value), section, name) == value
    with pytest.raises(ConfigError):
        given(section, name, high * 2 + 1)


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1)])
def test_an_empty_score_range_is_rejected_from_every_source(low: float, high: float) -> None:
    with pytest.raises(ConfigError, match=r"low = . must be less than high = 1"):
        config.load(f"[scoring]\nlow = {low}\nhigh = {high}", {}, {})
    with pytest.raises(ConfigError, match=r"models.a: merged with \[scoring\], low = . is not less than"):
        config.load(f"[scoring]\nlow = {low}\n[models.a]\nhigh = {high}", {}, {})


@pytest.mark.parametrize("name", ["home", "cache_path", "api_keys_file", "llama_path"])
def test_a_path_may_begin_with_the_users_folder(name: str) -> None:
    """Else a folder with the name ~ is made in the current one."""
    for settings in (
        config.load(f'{name} = "~/mine"', {}, {}),
        config.load("", {f"RERANKD_{name.upper()}": "~/mine"}, {}),
    ):
        assert getattr(settings, name) == Path.home() / "mine"


@pytest.mark.parametrize("name", ["home", "cache_path", "llama_path", "builtin_wheel", "host"])
def test_a_blank_path_or_host_is_rejected(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        config.load(f'{name} = " "', {}, {})


def test_serve_exits_with_the_message(tmp_path: Any) -> None:
    ended = rerankd("serve", home=tmp_path, RERANKD_THREADS="1000000")
    assert ended.returncode == 2
    assert "RERANKD_THREADS: threads = '1000000' can't be used: it must be less than" in ended.stderr
