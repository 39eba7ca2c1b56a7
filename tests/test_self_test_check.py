import math

import pytest

from rerankd.domain import Normalization
from rerankd.scoring import self_test

SIGMOID = Normalization("sigmoid")
GOOD = [3.0, 2.0, -3.0, -4.0, -2.0]


def runs(values: list[float]) -> list[list[float]]:
    return [[values[at] for at in order] for order in self_test.ARRANGEMENTS]


def test_a_correct_model_passes() -> None:
    assert self_test.check(runs(GOOD), SIGMOID) == (None, ())


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (runs([3.0, math.nan, 0.0, 1.0, 2.0]), "not finite numbers"),
        (runs([math.inf, 1.0, 0.0, 1.0, 2.0]), "not finite numbers"),
        (runs([1.0] * 5), "same raw score"),
        (runs([1e-20] * 5), "same raw score"),
        ([*runs(GOOD)[:2], [GOOD[0] - 0.6]], "its position"),
        ([GOOD, GOOD, GOOD[:1]], "its position"),
    ],
)
def test_a_broken_model_is_detected(broken: list[list[float]], says: str) -> None:
    refusal, _ = self_test.check(broken, SIGMOID)
    assert refusal is not None
    assert says in refusal.reason and "--force" in refusal.next_step


def test_a_wrong_order_is_only_a_warning() -> None:
    refusal, (doubt,) = self_test.check(runs([-3.0, 2.0, 1.0, 0.0, -4.0]), SIGMOID)
    assert refusal is None and "simple English question" in doubt


def test_a_few_thousandths_are_only_a_warning() -> None:
    noisy = [runs(GOOD)[0], [value + 0.03 for value in runs(GOOD)[1]], [GOOD[0]]]
    refusal, (doubt,) = self_test.check(noisy, SIGMOID)
    assert refusal is None and "its position" in doubt


def test_noise_within_the_score_contract_gives_no_warning() -> None:
    noisy = [runs(GOOD)[0], [value + 1e-4 for value in runs(GOOD)[1]], [GOOD[0]]]
    assert self_test.check(noisy, SIGMOID) == (None, ())
