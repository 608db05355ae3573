from __future__ import annotations

import pytest
import torch

from megatron_apo.objective.dads import dads_kl_weights, group_difficulty

# correct responses of 8: the factor of a positive response, to three places
ONE_MINUS_EXP = {8: 1.0, 7: 0.907, 6: 0.870, 5: 0.817, 4: 0.743, 3: 0.639, 2: 0.493, 1: 0.288, 0: 1.0}
EXP = {8: 1.0, 7: 0.712, 6: 0.507, 5: 0.361, 4: 0.257, 3: 0.183, 2: 0.130, 1: 0.093, 0: 1.0}


@pytest.mark.parametrize(("curve", "table"), [("one_minus_exp", ONE_MINUS_EXP), ("exp", EXP)])
def test_the_curves(curve: str, table: dict[int, float]) -> None:
    for count, expected in table.items():
        correct = torch.arange(8)[None] < count
        advantages = torch.ones(1, 8, dtype=torch.float64)
        weights = dads_kl_weights(advantages, correct, curve=curve)
        assert weights.tolist() == [[pytest.approx(expected, abs=5e-4)] * 8], count


def test_only_positive_advantages_are_shaped() -> None:
    weights = dads_kl_weights(torch.tensor([[1.0, 0.0, -1.0, 0.5]]), torch.tensor([[1, 1, 0, 0]]))
    half = pytest.approx(0.743, abs=5e-4)
    assert weights.tolist() == [[half, 1.0, 1.0, half]]
    assert weights.dtype == torch.float32


def test_difficulty_counts_valid_responses_only() -> None:
    correct = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    valid = torch.tensor([[1, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    difficulty = group_difficulty(correct, valid_PG=valid)
    torch.testing.assert_close(difficulty, torch.tensor([2 / 3, 0.0, 1.0], dtype=torch.float64))
    weights = dads_kl_weights(torch.ones(3, 4), correct, valid_PG=valid)
    # 1 - exp(-e / 3) = 0.596; the second group's valid responses are all correct, the third has none
    third = pytest.approx(0.596, abs=5e-4)
    assert weights.tolist() == [[third, 1.0, third, third], [1.0] * 4, [1.0] * 4]


def test_an_unknown_curve_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="curve=linear: must be one of one_minus_exp, exp"):
        dads_kl_weights(torch.ones(1, 2), torch.ones(1, 2), curve="linear")
