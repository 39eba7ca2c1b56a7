"""A model that can't be asked yet: when it is tried again, and what who asks is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rerankd.config import Settings
from rerankd.errors import (
    ConfigError,
    DoesNotFit,
    FetchError,
    ModelFileError,
    ModelPending,
    ModelRefused,
    ModelUnavailable,
    RerankdError,
    UnknownModel,
    Unscorable,
)
from rerankd.serving.model_names import Entry, ModelNames
from rerankd.serving.pending_model import PendingModel, delay_s, left_s, may_pass
from rerankd.serving.prepare_model import Model
from rerankd.serving.served_model import ServedModel


def pending(error: RerankdError | None = None) -> PendingModel:
    return PendingModel(Settings(model=("m",)).wanted("m")[0], ("m", "other"), error)


def test_the_delay_grows_to_a_minute_and_stays_there() -> None:
    assert [delay_s(failures) for failures in (1, 2, 3, 6, 7, 1000)] == [1, 2, 4, 32, 60, 60]


@pytest.mark.parametrize("kind", [ModelFileError, UnknownModel, FetchError, RerankdError])
def test_what_may_pass_by_itself_is_tried_again_and_says_when(kind: type[RerankdError]) -> None:
    it = pending(kind("It is away."))
    assert may_pass(kind("")) and it.phase == "refused"
    refusal = it.refusal()
    assert isinstance(refusal, ModelUnavailable) and refusal.status_hint == 503
    assert refusal.retry_after_s == 1 and "It is away." in refusal.message
    it.refuse(kind("It is away."))
    assert it.retry_after_s() == 2


@pytest.mark.parametrize("kind", [Unscorable, ConfigError, DoesNotFit])
def test_what_does_not_pass_by_itself_waits_for_a_reload(kind: type[RerankdError]) -> None:
    it = pending(kind("It is wrong."))
    refusal = it.refusal()
    assert isinstance(refusal, ModelRefused) and refusal.status_hint == 422
    assert refusal.retry_after_s is None and "kill -HUP" in refusal.message


def test_what_is_left_of_a_download_is_told_by_its_rate_once_there_is_one() -> None:
    assert left_s(25, 100, 10) == 30
    assert left_s(100, 100, 10) == 0
    for unknown in ((25, 100, 1), (0, 100, 10), (0, 0, 10), (101, 100, 10)):
        assert left_s(*unknown) is None


def test_one_that_is_fetched_tells_what_is_done() -> None:
    it = pending()
    assert (it.phase, it.doing) == ("starting", "")
    it.report("downloading", 30, 120)
    assert it.doing == "downloading, 25%"
    refusal = it.refusal()
    assert isinstance(refusal, ModelPending) and "m is being prepared: downloading, 25%" in refusal.message
    it.report("loading", 0, 0)
    assert it.doing == "loading"


def test_a_fetch_that_nobody_wants_any_more_is_ended_by_its_next_report() -> None:
    it = pending()
    it.is_dropped = True
    with pytest.raises(ModelPending):
        it.report("downloading", 1, 2)


def test_a_reload_of_what_requests_get_by_default_keeps_the_model(tmp_path: Path) -> None:
    """Its engines know nothing of these settings, so none is started."""

    def add(model: Model, beside: Sequence[Entry]) -> ServedModel:
        raise AssertionError(f"{model.name} was read anew")

    names = ModelNames(Settings(model=("m",), home=tmp_path))
    names._expect(names._wanted(names.settings))
    (entry,) = names.entries
    after = Settings(model=("m",), home=tmp_path, budget_ms=500, truncate_at="sentence")
    assert names._plan(names._found(after), add) == (entry,)
    assert (entry.wanted.budget_ms, entry.wanted.truncate_at) == (500, "sentence")
