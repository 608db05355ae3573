"""The statistics of two backends on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_apo.comparison.statistics import all_pairs, pair_statistics

NAN = math.nan


def test_by_hand() -> None:
    """Differences 0.5, 0, -0.25, 0.125; deviations from the means (1.5, .5, -.5, -1.5) and (35, 19, -5, -49) / 32."""
    first, second = torch.tensor([-1.0, -2, -3, -4]), torch.tensor([-1.5, -2, -2.75, -4.125])
    found = pair_statistics("one", first, "other", second)
    assert found.name == "one - other" and found.tokens == 4
    assert found.mean == pytest.approx(0.875 / 4)
    assert found.maximum == 0.5 and found.worst == 0
    assert found.kl == pytest.approx(0.375 / 4)  # signed: 0.5 + 0 - 0.25 + 0.125
    assert found.correlation == pytest.approx((1.5 * 35 + 0.5 * 19 + 0.5 * 5 + 1.5 * 49) / math.sqrt(5 * 4012))
    assert found.within(0.5) and not found.within(0.499)
    back = pair_statistics("other", second, "one", first)
    assert back.kl == -found.kl and back.maximum == found.maximum


def test_the_percentile_leaves_out_one_in_a_hundred() -> None:
    """200 differences of 1/1000 to 200/1000, shuffled: 198 of them are at most 0.198."""
    distances = torch.arange(1, 201, dtype=torch.float64)[torch.randperm(200)] / 1000
    found = pair_statistics("one", -distances, "other", torch.zeros(200))
    assert found.percentile_99 == pytest.approx(0.198)
    assert pair_statistics("one", torch.tensor([1.0]), "other", torch.tensor([3.0])).percentile_99 == 2


@pytest.mark.parametrize("values", [(-1.0, NAN, -9.0), (-1.0, -math.inf, -9.0)])
def test_what_is_no_number_is_the_worst(values: tuple[float, ...]) -> None:
    """Also where both sides are -inf: nothing is known of their difference."""
    found = pair_statistics("one", torch.tensor(values), "other", torch.tensor([-1.0, -math.inf, -1.0]))
    assert found.worst == 1 and math.isnan(found.maximum) and math.isnan(found.percentile_99)
    assert not found.within(1e9)


def test_a_constant_side_has_no_correlation() -> None:
    assert math.isnan(pair_statistics("one", torch.ones(3), "other", torch.arange(3.0)).correlation)


def test_every_two_backends() -> None:
    scores = {name: torch.tensor([float(value)]) for value, name in enumerate(("a", "b", "c"))}
    assert [(pair.name, pair.kl) for pair in all_pairs(scores)] == [("a - b", -1), ("a - c", -2), ("b - c", -1)]
