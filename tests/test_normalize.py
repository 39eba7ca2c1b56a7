import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.domain import Normalization
from rerankd.errors import EngineError
from rerankd.scoring import normalize

SIGMOID = Normalization("sigmoid")
NORMALIZATIONS = [
    SIGMOID,
    Normalization("sigmoid", logit_mean=3, logit_sigma=0.1),
    Normalization("affine", 0.7, 0.95),
    Normalization("identity"),
    Normalization("isotonic", knots=((-1.0, 0.1), (0.5, 0.1), (2.0, 0.9))),
]
finite = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("raw", "how", "score"),
    [
        (0.0, SIGMOID, 0.5),
        (math.log(3), SIGMOID, 0.75),
        (1e308, SIGMOID, 1.0),
        (-1e308, SIGMOID, 0.0),
        (5 * math.log(3), Normalization("sigmoid", logit_sigma=5), 0.75),
        (2.0, Normalization("sigmoid", logit_mean=2), 0.5),
        (2 + 0.5 * math.log(3), Normalization("sigmoid", logit_mean=2, logit_sigma=0.5), 0.75),
        (0.7, Normalization("affine", 0.7, 0.95), 0.0),
        (0.825, Normalization("affine", 0.7, 0.95), 0.5),
        (1.0, Normalization("affine", 0.7, 0.95), 1.0),
        (0.25, Normalization("identity"), 0.25),
        (7.0, Normalization("identity"), 1.0),
        (-9.0, Normalization("isotonic", knots=((0.0, 0.2), (1.0, 0.6))), 0.2),
        (0.0, Normalization("isotonic", knots=((0.0, 0.2), (1.0, 0.6))), 0.2),
        (0.25, Normalization("isotonic", knots=((0.0, 0.2), (1.0, 0.6))), 0.3),
        (1.0, Normalization("isotonic", knots=((0.0, 0.2), (1.0, 0.6))), 0.6),
        (9.0, Normalization("isotonic", knots=((0.0, 0.2), (1.0, 0.6))), 0.6),
        (1.0, Normalization("isotonic", knots=((0.0, 0.2), (1.0, 0.6)), divisor=4), 0.3),
        (5.0, Normalization("isotonic", knots=((0.0, 0.2),)), 0.2),
    ],
)
def test_score_formulas(raw: float, how: Normalization, score: float) -> None:
    assert normalize.score(raw, how) == pytest.approx(score, abs=1e-12)


@given(finite, finite)
def test_sigmoid_is_in_range_and_keeps_the_order(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert 0 <= normalize.score(low, SIGMOID) <= normalize.score(high, SIGMOID) <= 1


@given(st.floats(-30, 30))
def test_sigmoid_is_softmax_over_two_labels(raw: float) -> None:
    softmax = math.exp(raw) / (math.exp(raw) + math.exp(0))
    assert normalize.score(raw, SIGMOID) == pytest.approx(softmax, rel=1e-9)


@given(st.lists(finite | st.none(), min_size=1))
def test_rank_is_sorted_and_ties_keep_their_order(values: list[float | None]) -> None:
    order = normalize.rank(values)
    assert sorted(order) == list(range(len(values)))
    for before, after in itertools.pairwise(order):
        first, second = values[before], values[after]
        if first is None:
            assert second is None and before < after
        elif second is not None:
            assert first > second or (first == second and before < after)


@given(st.lists(finite | st.none(), min_size=1), st.sampled_from(NORMALIZATIONS))
def test_a_document_without_a_score_gets_the_lowest_number(
    values: list[float | None], how: Normalization
) -> None:
    without = [at for at, value in enumerate(values) if value is None]
    normalized = normalize.shown(values, how, raw=False)
    assert all(normalized[at] == 0 for at in without)
    raw = normalize.shown(values, how, raw=True)
    assert all(raw[at] == value for at, value in enumerate(values) if value is not None)
    for at in without:
        assert raw[at] == min(raw)
        assert normalize.score(raw[at], how) < 1e-37 or how.name == "isotonic"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_a_score_that_is_not_finite_is_an_engine_error(bad: float | None) -> None:
    with pytest.raises(EngineError, match="pair 1"):
        normalize.check_complete([0.5, bad], {})
    normalize.check_complete([0.5, None], {1: "the engine crashed on it"})
