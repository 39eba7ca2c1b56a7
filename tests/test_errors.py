"""The attributes of the error classes: code, HTTP status, exit code, time to retry."""

from __future__ import annotations

import inspect
import pickle
from http import HTTPStatus

import pytest

from rerankd import errors
from rerankd.errors import EngineStartFailed, Overloaded, RerankdError, TextsRefused, TooLong

_ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, RerankdError)]
_ATTRIBUTES = {"code", "status_hint", "exit_code", "wait_s"}


@pytest.mark.parametrize("kind", _ALL)
def test_an_error_class_has_a_code_and_a_docstring_and_only_known_attributes(
    kind: type[RerankdError],
) -> None:
    assert "code" in vars(kind) and kind.__doc__
    assert {name for name in vars(kind) if not name.startswith("_")} <= _ATTRIBUTES
    assert HTTPStatus(kind.status_hint) and 1 <= kind.exit_code <= 7


def test_error_codes_are_unique() -> None:
    assert len({kind.code for kind in _ALL}) == len(_ALL) > 30


def test_attributes_are_inherited_from_the_base_class() -> None:
    assert (TooLong.code, TooLong.status_hint, TooLong.exit_code) == ("too_long", 400, 2)
    assert (EngineStartFailed.status_hint, EngineStartFailed.exit_code) == (503, 4)


def test_retry_after_defaults_to_the_value_of_the_class() -> None:
    assert Overloaded("Full.").retry_after_s == EngineStartFailed("No.").retry_after_s == 1
    assert Overloaded("Full.", retry_after_s=7).retry_after_s == 7
    assert TooLong("Long.").retry_after_s is None


@pytest.mark.parametrize("kind", _ALL)
def test_an_error_is_the_same_in_another_process(kind: type[RerankdError]) -> None:
    # Whatever a class takes besides the message.
    more = [
        {1: "a reason"}
        for one in list(inspect.signature(kind).parameters.values())[1:]
        if one.kind is one.POSITIONAL_OR_KEYWORD
    ]
    error = kind("It failed.", *more)
    error.retry_after_s = 7
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == "It failed." and vars(again) == vars(error)


def test_an_error_keeps_what_its_class_adds() -> None:
    assert pickle.loads(pickle.dumps(TextsRefused("No.", {3: "it crashes"}))).reasons == {3: "it crashes"}
