"""KL estimators, the GRPO-D schedule, the clipped loss and the reduction weights."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_apo.objective.kl import kl_divergence
from megatron_apo.objective.kl_schedule import grpo_d_coefficient
from megatron_apo.objective.policy_loss import clip_active, clipped_policy_loss, policy_log_ratios
from megatron_apo.objective.reductions import REDUCTIONS, token_weights

F64 = torch.float64
LOG2 = math.log(2.0)


@pytest.mark.parametrize(
    ("estimator", "expected", "gradient"),
    # x = log 2 and -log 2: exp(x) = 2 and 1/2; d/dlogprob = 1, -x, 1 - exp(x)
    [
        ("k1", [-LOG2, LOG2], [1.0, 1.0]),
        ("k2", [LOG2**2 / 2, LOG2**2 / 2], [-LOG2, LOG2]),
        ("k3", [1 - LOG2, LOG2 - 0.5], [-1.0, 0.5]),
    ],
)
def test_kl_values_and_gradients(estimator: str, expected: list[float], gradient: list[float]) -> None:
    logprobs = torch.tensor([-2.0, -2.0], dtype=F64, requires_grad=True)
    kl = kl_divergence(logprobs, torch.tensor([-2.0 + LOG2, -2.0 - LOG2], dtype=F64), estimator=estimator)
    torch.testing.assert_close(kl, torch.tensor(expected, dtype=F64))
    kl.sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor(gradient, dtype=F64))


def test_k3_does_not_cancel_in_float32() -> None:
    # x = 2 ** -12: k3 = x² / 2 * (1 + x / 3 + ...) = 2 ** -25 * 1.0000814
    kl = kl_divergence(torch.tensor([-1.0]), torch.tensor([-1.0 + 2.0**-12]))
    assert kl.dtype == torch.float32
    assert kl.item() == pytest.approx(2.0**-25 * 1.0000814, rel=1e-6)


def test_an_unknown_estimator_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="estimator=k4: must be one of k1, k2, k3"):
        kl_divergence(torch.zeros(1), torch.zeros(1), estimator="k4")


def test_grpo_d_falls_from_the_middle_then_rises_to_the_maximum() -> None:
    schedule = {0: 0.07, 15: 0.055, 30: 0.04, 65: 0.07, 100: 0.10}
    for step, expected in schedule.items():
        value = grpo_d_coefficient(step, total_steps=100, exploration_steps=30, minimum=0.04, maximum=0.10)
        assert value == pytest.approx(expected), step


def test_grpo_d_edges() -> None:
    bounds = {"minimum": 0.0, "maximum": 0.02}
    assert grpo_d_coefficient(0, total_steps=10, exploration_steps=0, **bounds) == 0.0
    assert grpo_d_coefficient(10, total_steps=10, exploration_steps=10, **bounds) == 0.0
    assert grpo_d_coefficient(0, total_steps=0, exploration_steps=0, **bounds) == 0.0
    with pytest.raises(ValueError, match="step=11"):
        grpo_d_coefficient(11, total_steps=10, exploration_steps=3, **bounds)
    with pytest.raises(ValueError, match="exploration_steps=11"):
        grpo_d_coefficient(1, total_steps=10, exploration_steps=11, **bounds)
    with pytest.raises(ValueError, match="minimum=0.2"):
        grpo_d_coefficient(1, total_steps=10, exploration_steps=3, minimum=0.2, maximum=0.1)


def test_the_clipped_loss_by_hand() -> None:
    # Ratios 1.5, 1.25, 1.5 and 0.5, 0.5 against [0.8, 1.3]
    ratios = torch.tensor([1.5, 1.25, 1.5, 0.5, 0.5], dtype=F64)
    advantages = torch.tensor([2.0, 2.0, -2.0, 2.0, -2.0], dtype=F64)
    logprobs = ratios.log().requires_grad_()
    clip = {"clip_low": 0.2, "clip_high": 0.3}
    loss = clipped_policy_loss(logprobs, advantages, **clip)
    torch.testing.assert_close(loss, torch.tensor([-2.6, -2.5, 3.0, -1.0, 1.6], dtype=F64))
    loss.sum().backward()
    # -ratio * A where not clipped, else nothing
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.0, -2.5, 3.0, -1.0, 0.0], dtype=F64))
    active = clip_active(logprobs, advantages, **clip)
    assert active.tolist() == [True, False, False, False, True]


def test_an_exploded_ratio_stays_finite() -> None:
    logprobs = torch.tensor([0.0, 0.0, 0.0], requires_grad=True)
    log_ratios = policy_log_ratios(logprobs, torch.full((3,), -500.0))
    loss = clipped_policy_loss(log_ratios, torch.tensor([1.0, 0.0, -1.0]), clip_low=0.2, clip_high=0.2)
    assert torch.isfinite(loss).all() and loss[0].item() == pytest.approx(-1.2)
    loss.sum().backward()
    assert logprobs.grad is not None and torch.isfinite(logprobs.grad).all()


def test_reduction_weights_by_hand() -> None:
    lengths, included = torch.tensor([2, 4, 10, 0]), torch.tensor([True, True, False, True])
    assert token_weights(lengths, included).tolist() == pytest.approx([1 / 6, 1 / 6, 0.0, 0.0])
    by_sequence = token_weights(lengths, included, kind="sequence_mean")
    assert by_sequence.dtype == F64
    assert by_sequence.tolist() == pytest.approx([1 / 4, 1 / 8, 0.0, 0.0])


def test_sums_and_constants_by_hand() -> None:
    lengths, included = torch.tensor([2, 4, 10, 0]), torch.tensor([True, True, False, True])
    assert token_weights(lengths, included, kind="sequence_sum").tolist() == pytest.approx([1 / 2, 1 / 2, 0.0, 0.0])
    constant = token_weights(lengths, included, kind="constant", constant_length=20)
    assert constant.tolist() == pytest.approx([1 / 40, 1 / 40, 0.0, 0.0])
    with pytest.raises(ValueError, match="constant_length=0: must be at least 1"):
        token_weights(lengths, included, kind="constant")


def test_the_mean_of_microbatches_token_means() -> None:
    """Included in their order: 2 and 6 tokens, then 3 and 1, then 4 alone: three means, each a third of the loss."""
    lengths = torch.tensor([2, 9, 6, 3, 1, 4])
    included = torch.tensor([True, False, True, True, True, True])
    weights = token_weights(lengths, included, kind="microbatch_token_mean", microbatch_sequences=2)
    assert weights.tolist() == pytest.approx([1 / 24, 0.0, 1 / 24, 1 / 12, 1 / 12, 1 / 12])
    values = torch.rand(6, 10, dtype=F64)
    microbatches = [torch.cat([values[i, : lengths[i]] for i in batch]).mean() for batch in ([0, 2], [3, 4], [5])]
    total = sum(weights[i] * values[i, : lengths[i]].sum() for i in range(6))
    torch.testing.assert_close(total, torch.stack(microbatches).mean())
    with pytest.raises(ValueError, match="microbatch_sequences=0"):
        token_weights(lengths, included, kind="microbatch_token_mean", microbatch_sequences=0)


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_reduction_weights_of_nothing(kind: str) -> None:
    nothing = torch.tensor([False, False])
    assert token_weights(torch.tensor([3, 4]), nothing, kind=kind, constant_length=9).tolist() == [0.0, 0.0]
    assert token_weights(torch.zeros(0), torch.zeros(0), kind=kind, constant_length=9).tolist() == []


def test_an_unknown_reduction_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="kind=mean: must be one of token_mean, sequence_mean"):
        token_weights(torch.tensor([1]), torch.tensor([True]), kind="mean")
