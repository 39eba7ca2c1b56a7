"""What errors carry beside their message."""

from __future__ import annotations

import inspect
from http import HTTPStatus

import pytest

from rerankd import errors
from rerankd.errors import EngineStartFailed, Overloaded, RerankdError, TooLong

_ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, RerankdError)]
_FACTS = {"code", "status_hint", "exit_code", "wait_s"}


@pytest.mark.parametrize("kind", _ALL)
def test_an_error_says_what_it_means_and_carries_what_is_known(kind: type[RerankdError]) -> None:
    assert "code" in vars(kind) and kind.__doc__
    assert {name for name in vars(kind) if not name.startswith("_")} <= _FACTS
    assert HTTPStatus(kind.status_hint) and 1 <= kind.exit_code <= 7


def test_each_code_is_one_errors() -> None:
    assert len({kind.code for kind in _ALL}) == len(_ALL) > 30


def test_what_a_class_does_not_say_is_its_bases() -> None:
    assert (TooLong.code, TooLong.status_hint, TooLong.exit_code) == ("too_long", 400, 2)
    assert (EngineStartFailed.status_hint, EngineStartFailed.exit_code) == (503, 4)


def test_the_time_to_wait_is_the_errors_own_or_its_classs() -> None:
    assert Overloaded("Full.").retry_after_s == EngineStartFailed("No.").retry_after_s == 1
    assert Overloaded("Full.", retry_after_s=7).retry_after_s == 7
    assert TooLong("Long.").retry_after_s is None
