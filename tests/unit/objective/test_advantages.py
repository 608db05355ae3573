from __future__ import annotations

import math

import pytest
import torch

from megatron_apo.objective.advantages import group_advantages

F64 = torch.float64


def test_four_rewards_by_hand() -> None:
    # mean 1, deviations 1, -1, 1, -1; variance 4 / 3 (ddof 1) or 1 (ddof 0)
    rewards = torch.tensor([[2.0, 0.0, 2.0, 0.0]], dtype=F64)
    expected = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=F64)
    torch.testing.assert_close(group_advantages(rewards), expected * math.sqrt(3 / 4), rtol=1e-8, atol=0)
    torch.testing.assert_close(group_advantages(rewards, unbiased=False), expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(group_advantages(rewards, unbiased=False, epsilon=1.0), expected / 2)
    torch.testing.assert_close(group_advantages(rewards, scale=False), expected)


@pytest.mark.parametrize("scale", [True, False])
def test_equal_rewards_give_exactly_zero(scale: bool) -> None:
    advantages = group_advantages(torch.full((1, 12), 1.1), scale=scale, epsilon=0.0)
    assert torch.equal(advantages, torch.zeros(1, 12))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    assert group_advantages(torch.tensor([[1.0, 0.0]], dtype=dtype)).dtype == dtype


def test_invalid_responses_count_nowhere() -> None:
    rewards = torch.tensor([[2.0, 0.0, math.nan], [3.0, 1.0, 1.0], [1.0, 2.0, 3.0]], dtype=F64)
    valid = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 1]])
    half = math.sqrt(0.5)
    expected = torch.tensor([[half, -half, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=F64)
    torch.testing.assert_close(group_advantages(rewards, valid_PG=valid), expected, rtol=1e-8, atol=0)


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="must be at least 2; a group of one always has zero advantage"):
        group_advantages(torch.tensor([[1.0], [0.0]]))


def test_an_infinite_valid_reward_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        group_advantages(torch.tensor([[1.0, math.inf]]))


def test_a_baseline_of_the_others_by_hand() -> None:
    """Rewards 1, 0, 0.5: less the means of the other two, 0.25, 0.75, 0.5; with one invalid, less the one other."""
    rewards = torch.tensor([[1.0, 0.0, 0.5]], dtype=torch.float64)
    found = group_advantages(rewards, scale=False, baseline="leave_one_out")
    assert found.tolist() == [pytest.approx([0.75, -0.75, 0.0])]
    valid = torch.tensor([[True, True, False]])
    assert group_advantages(rewards, scale=False, baseline="leave_one_out", valid_PG=valid).tolist() == [
        [1.0, -1.0, 0.0]
    ]
    with pytest.raises(ValueError, match="baseline=mean: must be one of group, leave_one_out"):
        group_advantages(rewards, baseline="mean")
