"""A model that is not served yet: when it is retried, and the errors of requests for it."""

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
from rerankd.remote_models import NoRemoteModels
from rerankd.serving.model_list import Entry
from rerankd.serving.model_names import ModelNames
from rerankd.serving.pending_model import PendingModel, delay_s, left_s, may_pass
from rerankd.serving.prepare_model import Model
from rerankd.serving.served_model import ServedModel


def pending(error: RerankdError | None = None) -> PendingModel:
    return PendingModel(Settings(model=("m",)).wanted("m")[0], ("m", "other"), error)


def test_the_delay_grows_to_a_minute_and_stays_there() -> None:
    assert [delay_s(failures) for failures in (1, 2, 3, 6, 7, 1000)] == [1, 2, 4, 32, 60, 60]


@pytest.mark.parametrize("kind", [ModelFileError, UnknownModel, FetchError, RerankdError])
def test_a_temporary_failure_is_retried_and_reports_when(kind: type[RerankdError]) -> None:
    it = pending(kind("It is away."))
    assert may_pass(kind("")) and it.phase == "refused"
    refusal = it.refusal()
    assert isinstance(refusal, ModelUnavailable) and refusal.status_hint == 503
    assert refusal.retry_after_s == 1 and "It is away." in refusal.message
    it.refuse(kind("It is away."))
    assert it.retry_after_s() == 2


@pytest.mark.parametrize("kind", [Unscorable, ConfigError, DoesNotFit])
def test_a_permanent_failure_waits_for_a_reload(kind: type[RerankdError]) -> None:
    it = pending(kind("It is wrong."))
    refusal = it.refusal()
    assert isinstance(refusal, ModelRefused) and refusal.status_hint == 422
    assert refusal.retry_after_s is None and "kill -HUP" in refusal.message


def test_the_remaining_time_of_a_download_follows_from_its_rate() -> None:
    assert left_s(25, 100, 10) == 30
    assert left_s(100, 100, 10) == 0
    for unknown in ((25, 100, 1), (0, 100, 10), (0, 0, 10), (101, 100, 10)):
        assert left_s(*unknown) is None


def test_a_model_being_fetched_reports_its_progress() -> None:
    it = pending()
    assert (it.phase, it.doing) == ("starting", "")
    it.report("downloading", 30, 120)
    assert it.doing == "downloading, 25%"
    refusal = it.refusal()
    assert isinstance(refusal, ModelPending) and "m is being prepared: downloading, 25%" in refusal.message
    it.report("loading", 0, 0)
    assert it.doing == "loading"


def test_a_fetch_that_is_no_longer_wanted_ends_at_its_next_report() -> None:
    it = pending()
    it.is_dropped = True
    with pytest.raises(ModelPending):
        it.report("downloading", 1, 2)


def test_changed_request_defaults_do_not_reload_the_model(tmp_path: Path) -> None:
    """The engines do not depend on these settings, so none is restarted."""

    def add(model: Model, beside: Sequence[Entry]) -> ServedModel:
        raise AssertionError(f"{model.name} was prepared again")

    names = ModelNames(Settings(model=("m",), home=tmp_path), NoRemoteModels())
    names._expect(names._wanted(names.settings))
    (entry,) = names.entries
    after = Settings(model=("m",), home=tmp_path, budget_ms=500, truncate_at="sentence")
    assert names._plan(names._found(after), add) == (entry,)
    assert (entry.wanted.budget_ms, entry.wanted.truncate_at) == (500, "sentence")
