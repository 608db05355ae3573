from __future__ import annotations

import pytest
import torch

from megatron_apo.objective.stcr import stcr_weights

F64 = torch.float64


def test_excess_length_by_hand() -> None:
    # Correct responses of 10 and 20 tokens: mean 15. Wrong ones of 16, 18 and 9: excess 1, 3 and none. Base 2.
    lengths = torch.tensor([[10, 20, 16, 18, 9]])
    correct = torch.tensor([[1, 1, 0, 0, 0]])
    expected = torch.tensor([[1.0, 1.0, 1.5, 1.875, 1.0]], dtype=F64)
    torch.testing.assert_close(stcr_weights(lengths, correct, base=2.0), expected, rtol=1e-15, atol=0)


def test_the_papers_base_is_exact_at_small_excess() -> None:
    # 1 - 1.00001 ** -1 = 1e-5 / 1.00001 and 1 - 1.00001 ** -1000 = 0.009950117...
    weights = stcr_weights(torch.tensor([[10, 11, 1010]]), torch.tensor([[1, 0, 0]])) - 1
    assert weights[0, 1].item() == pytest.approx(9.99990000e-6, rel=1e-9)
    assert weights[0, 2].item() == pytest.approx(0.0099501173, rel=1e-6)


def test_no_correct_response_means_no_weight() -> None:
    weights = stcr_weights(torch.tensor([[5, 500]]), torch.tensor([[False, False]]), base=2.0)
    assert torch.equal(weights, torch.ones(1, 2, dtype=F64))


def test_only_negative_needs_and_uses_the_advantages() -> None:
    lengths, correct = torch.tensor([[10, 11, 11]]), torch.tensor([[1, 0, 0]])
    advantages = torch.tensor([[1.0, 0.2, -1.2]])
    both = stcr_weights(lengths, correct, base=2.0, advantages_PG=advantages)
    negative = stcr_weights(lengths, correct, base=2.0, advantages_PG=advantages, only_negative=True)
    assert both.tolist() == [[1.0, 1.5, 1.5]]
    assert negative.tolist() == [[1.0, 1.0, 1.5]]
    assert negative.dtype == torch.float32
    with pytest.raises(ValueError, match="needs advantages_PG"):
        stcr_weights(lengths, correct, only_negative=True)


def test_invalid_responses_count_nowhere() -> None:
    # Without the invalid correct response of 100 tokens the mean is 10.
    lengths, correct = torch.tensor([[10, 100, 11, 11]]), torch.tensor([[1, 1, 0, 0]])
    weights = stcr_weights(lengths, correct, base=2.0, valid_PG=torch.tensor([[1, 0, 1, 0]]))
    assert weights.tolist() == [[1.0, 1.0, 1.5, 1.0]]


@pytest.mark.parametrize("base", [1.0, 0.5, float("nan")])
def test_a_base_of_one_or_less_is_refused(base: float) -> None:
    with pytest.raises(ValueError, match="must be above 1"):
        stcr_weights(torch.tensor([[1, 2]]), torch.tensor([[1, 0]]), base=base)


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        stcr_weights(torch.tensor([[1]]), torch.tensor([[1]]))
