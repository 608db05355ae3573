"""Ratios and corrections of whole responses through the adapter, against the equations written out one by one.

Responses are packed into microbatches in another order than they were drawn; the equations see each by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from megatron_apo.config import MismatchConfig, ObjectiveConfig
from megatron_apo.objective.mismatch import mismatch_metrics
from megatron_apo.records import TrainingSample
from megatron_apo.training.forward_step import LossSettings, objective_loss
from tests.unit.objective.as_trained import packed_batch

LENGTHS, ADVANTAGES = [3, 1, 5, 2], [1.5, -0.7, -2.0, 0.4]
MICROBATCHES = [(2, 0), (), (3, 1)]
LOW, HIGH = 0.1, 0.15
TOKENS = sum(LENGTHS)
GSPO = ObjectiveConfig(
    name="gspo", importance="sequence", clip_low=LOW, clip_high=HIGH, reduction="sequence_mean", old_logprobs="engine"
)
Responses = list[torch.Tensor]


def responses(seed: int, scale: float) -> Responses:
    """float64 log-probabilities of each response's tokens, as a policy or an engine gives them (float32 numbers)."""
    generator = torch.Generator().manual_seed(seed)
    return [(-1.0 + scale * torch.randn(length, generator=generator)).double() for length in LENGTHS]


ENGINE, OLD, POLICY = responses(1, 0.3), responses(2, 0.3), responses(4, 0.3)


@dataclass(frozen=True)
class Outcome:
    """The loss of all microbatches, its gradient by response, and the sums that metrics are made of."""

    loss: float
    gradients: Responses
    sums: dict[str, float]


def adapter(settings: ObjectiveConfig, old: str) -> Outcome:
    """What the adapter makes of the microbatches, added up as Megatron's schedule does."""
    samples = [
        TrainingSample(
            prompt_ids=(1,) * (2 + index),
            response_ids=(5,) * length,
            images=(),
            advantage=ADVANTAGES[index],
            policy_weight=1 / (len(LENGTHS) * length),
            rollout_logprobs=tuple(ENGINE[index].tolist()),
        )
        for index, length in enumerate(LENGTHS)
    ]
    leaves = [values.clone().requires_grad_() for values in POLICY]
    loss = LossSettings(settings, kl_coefficient=0.0, total_tokens=TOKENS, old_logprobs=old)
    total, counted = torch.zeros((), dtype=torch.float64), 0
    sums: dict[str, float] = {}
    for indices in MICROBATCHES:
        batch = packed_batch(samples, indices)
        stored = torch.zeros(len(batch.labels_T), dtype=torch.float64)
        stored[batch.response_mask_T] = _joined(OLD, indices)
        logprobs = _joined(leaves, indices)
        part, count, found = objective_loss(
            logprobs, torch.zeros_like(logprobs), replace(batch, old_logprobs_T=stored), loss
        )
        total, counted = total + part, counted + int(count)
        sums = {name: sums.get(name, 0.0) + float(value) for name, value in found.items()}
    (total / counted).backward()
    return Outcome(float(total.detach()) / counted, [_gradient(leaf) for leaf in leaves], sums)


def _joined(values: Responses, indices: Sequence[int]) -> torch.Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.float64), *(values[index] for index in indices)])


def _gradient(leaf: torch.Tensor) -> torch.Tensor:
    assert leaf.grad is not None
    return leaf.grad


def written_out(ratios: Responses, weights: list[float]) -> torch.Tensor:
    """-1/n sum_i w_i mean_t min(r_it A_i, clip(r_it) A_i)."""
    terms = [
        -weight * torch.minimum(ratio * advantage, ratio.clamp(1 - LOW, 1 + HIGH) * advantage).mean()
        for ratio, advantage, weight in zip(ratios, ADVANTAGES, weights, strict=True)
    ]
    return torch.stack(terms).mean()


def check(found: Outcome, expected: torch.Tensor, leaves: Responses) -> None:
    expected.backward()
    assert found.loss == pytest.approx(float(expected.detach()), rel=1e-6)
    for ours, leaf in zip(found.gradients, leaves, strict=True):
        torch.testing.assert_close(ours, _gradient(leaf), rtol=1e-5, atol=1e-7)


def test_gspo_whose_old_policy_is_the_engine() -> None:
    """s_i = exp(mean_t(logp - engine_logp)) (arXiv:2507.18071, eq. 5 and 7); two of the four are clipped."""
    found = adapter(GSPO, "engine")
    leaves = [values.clone().requires_grad_() for values in POLICY]
    ratios = [(own - engine).mean().exp() for own, engine in zip(leaves, ENGINE, strict=True)]
    check(found, written_out(ratios, [1.0] * 4), leaves)
    values = [float(ratio.detach()) for ratio in ratios]
    pairs = zip(values, ADVANTAGES, strict=True)
    clipped = [ratio > 1 + HIGH if advantage > 0 else ratio < 1 - LOW for ratio, advantage in pairs]
    assert 0 < sum(clipped) < 4
    tokens = sum(length for length, is_clipped in zip(LENGTHS, clipped, strict=True) if is_clipped)
    assert found.sums["policy/clip_fraction"] == pytest.approx(tokens / TOKENS)
    mean = sum(length * ratio for length, ratio in zip(LENGTHS, values, strict=True)) / TOKENS
    assert found.sums["policy/ratio"] == pytest.approx(mean, rel=1e-6)


def weights_of(policy: Responses) -> list[float]:
    """pi / pi_engine of each whole response."""
    return [float((own - engine).sum().exp()) for own, engine in zip(policy, ENGINE, strict=True)]


@pytest.mark.parametrize("importance", ["token", "sequence"])
@pytest.mark.parametrize("correction", ["truncate", "mask"])
def test_mismatch_of_whole_responses_is_corrected(correction: str, importance: str) -> None:
    """Each response's loss times min(w, upper), or w within the limits; w = pi_old / pi_engine is a constant."""
    weights = weights_of(OLD)
    upper, lower = sorted(weights)[2] * 1.01, sorted(weights)[0] * 1.01  # beyond each lies one response
    mismatch = MismatchConfig(correction=correction, level="sequence", upper=upper, lower=lower)
    settings = replace(GSPO, importance=importance, mismatch=mismatch, old_logprobs="trainer")
    found = adapter(settings, "stored")
    if correction == "truncate":
        corrected = [min(weight, upper) for weight in weights]
    else:
        corrected = [weight if lower <= weight <= upper else 0.0 for weight in weights]
    assert sum(one != other for one, other in zip(corrected, weights, strict=True)) == (1 + (correction == "mask"))
    leaves = [values.clone().requires_grad_() for values in POLICY]
    log_ratios = [own - old for own, old in zip(leaves, OLD, strict=True)]
    if importance == "sequence":
        log_ratios = [one.mean() for one in log_ratios]
    check(found, written_out([one.exp() for one in log_ratios], corrected), leaves)


def test_mismatch_of_whole_responses_is_measured_with_the_engine_as_old_policy() -> None:
    """w_i = pi / pi_engine of the four responses; their mean and (sum w)² / (n sum w²), long and short alike."""
    mismatch = MismatchConfig(level="sequence")
    found = mismatch_metrics(adapter(replace(GSPO, mismatch=mismatch), "engine").sums)
    weights = weights_of(POLICY)
    assert found["mismatch/weight_mean"] == pytest.approx(sum(weights) / 4, rel=1e-6)
    kish = sum(weights) ** 2 / (4 * sum(weight**2 for weight in weights))
    assert found["mismatch/effective_sample_size"] == pytest.approx(kish, rel=1e-6) and kish < 0.98
    assert found["mismatch/corrected_share"] == 0.0
