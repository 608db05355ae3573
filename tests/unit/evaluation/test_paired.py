"""Two models on the same rows: numbers by hand and against scipy's tests."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
from scipy.stats import binomtest, permutation_test

from megatron_apo.evaluation.paired import (
    check_same_rows,
    differences_by_category,
    paired_difference,
    sign_flip_p_value,
)
from megatron_apo.evaluation.responses import AnsweredRow, ImageFile
from tests.unit.evaluation.rows import row


def test_by_hand() -> None:
    first = [row("a", "cw"), row("b", "ww"), row("c", "cc"), row("d", "ww")]
    second = [row("d", "ww"), row("c", "cw"), row("b", "cc"), row("a", "cc")]
    found = paired_difference(first, second)
    assert (found.rows, found.first, found.second) == (4, 3 / 8, 5 / 8)
    assert found.difference == pytest.approx((0.5 + 1 - 0.5 + 0) / 4)
    assert (found.both, found.only_first, found.only_second, found.neither) == (2, 0, 1, 1)
    # gains 1, 2, -1, 0: of the eight sign patterns of 1, 2, 1 only four sums are below 2: |sum| is 4 4 2 2 2 2 0 0
    assert found.p_value == pytest.approx(6 / 8)
    low, high = found.interval
    assert low < found.difference < high


def test_with_one_response_a_row_it_is_mcnemars_exact_test() -> None:
    for better, worse in ((7, 1), (0, 0), (12, 12), (30, 11), (1, 0)):
        gains = [1] * better + [-1] * worse + [0] * 5
        expected = binomtest(better, better + worse).pvalue if better + worse else 1.0
        assert sign_flip_p_value(gains) == pytest.approx(expected, rel=1e-12)


def test_with_several_it_is_the_exact_permutation_test() -> None:
    generator = random.Random(0)
    for _ in range(5):
        gains = [generator.randint(-4, 4) for _ in range(9)]
        exact = permutation_test(
            (np.array(gains, dtype=float), np.zeros(len(gains))),
            lambda one, other, axis: (one - other).sum(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=np.inf,
        )
        assert sign_flip_p_value(gains) == pytest.approx(exact.pvalue, abs=1e-12)


def test_by_category() -> None:
    first = [row("a", "c", category="sum"), row("b", "w", category="count"), row("c", "w")]
    second = [row("a", "w", category="sum"), row("b", "c", category="count"), row("c", "c")]
    found = differences_by_category(first, second)
    assert [(name, one.difference, one.rows) for name, one in found.items()] == [("count", 1.0, 1), ("sum", -1.0, 1)]


def with_image(one: AnsweredRow, digest: str) -> AnsweredRow:
    return dataclasses.replace(one, images=(ImageFile("1.png", digest),))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ([row("a", "c")], r"one and two: evaluations of different rows \(1 row only in one, 0 only in two; .*'b'"),
        ([row("a", "c"), row("b", "c"), row("z", "c")], "0 rows only in one, 1 only in two; for example 'z'"),
        ([row("a", "c"), dataclasses.replace(row("b", "c"), gold="14")], "row 'b' has another gold, '13' and '14'"),
        ([row("a", "c"), row("b", "c", category="sum")], "row 'b' has another category"),
        ([row("a", "c"), row("b", "cw")], "row 'b' has 1 and 2 responses; .* same evaluation.samples"),
        ([row("a", "c"), with_image(row("b", "c"), "00")], "row 'b' has other pictures"),
    ],
)
def test_other_rows_are_refused(second: list[AnsweredRow], message: str) -> None:
    first = [row("a", "c"), row("b", "w")]
    check_same_rows(["one", "same"], [first, first])
    with pytest.raises(ValueError, match=message):
        check_same_rows(["one", "two"], [first, second])
