"""Ratios of whole responses (GSPO) and the correction of trainer-engine mismatch, against the formulas written out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

from megatron_apo.config import MismatchConfig, ObjectiveConfig
from megatron_apo.objective.mismatch import corrected, mismatch_metrics, mismatch_sums, mismatch_weights
from megatron_apo.objective.objective import TokenObjective, token_objective
from megatron_apo.objective.policy_loss import policy_log_ratios

F64 = torch.float64
LENGTHS = [3, 1, 5]
SEQUENCE = torch.tensor([0] * 3 + [1] + [2] * 5)
ADVANTAGES = torch.tensor([1.5, -0.7, -2.0], dtype=F64)
PLAIN = ObjectiveConfig(name="gspo", clip_low=0.1, clip_high=0.15, importance="sequence", reduction="sequence_mean")


def sums(values: torch.Tensor) -> torch.Tensor:
    """What one rank's adapter gives the objective."""
    return torch.zeros(3, dtype=F64).index_add(0, SEQUENCE, values.detach().double())[SEQUENCE].to(values.dtype)


def tokens(seed: int, scale: float = 0.3) -> torch.Tensor:
    return -1.0 + scale * torch.randn(9, generator=torch.Generator().manual_seed(seed), dtype=F64)


def loss_of(
    logprobs: torch.Tensor, old: torch.Tensor, settings: ObjectiveConfig, weights_S: torch.Tensor, engine: torch.Tensor
) -> TokenObjective:
    return token_objective(
        logprobs,
        old,
        None,
        advantages_T=ADVANTAGES[SEQUENCE],
        policy_weights_T=weights_S[SEQUENCE],
        kl_token_weights_T=torch.zeros(9, dtype=F64),
        kl_weights_T=torch.ones(9, dtype=F64),
        kl_coefficient=0.0,
        settings=settings,
        metric_weight=1 / 9,
        engine_logprobs_T=engine,
        sequence_sums=sums,
    )


@pytest.mark.parametrize("weights", ["sequence_mean", "token_mean"])
def test_the_sequence_ratio_has_the_sequence_losss_value_and_gradient(weights: str) -> None:
    """GSPO's equation 5 by autograd over whole responses; one of the three is clipped."""
    lengths = torch.tensor(LENGTHS, dtype=F64)
    weights_S = 1 / (3 * lengths) if weights == "sequence_mean" else torch.full((3,), 1 / 9, dtype=F64)
    old, logprobs = tokens(1), tokens(2).requires_grad_()
    result = loss_of(logprobs, old, PLAIN, weights_S, old)
    result.loss.backward()
    plain = logprobs.detach().clone().requires_grad_()
    ratio_S = torch.stack([part.mean() for part in (plain - old).split(LENGTHS)]).exp()
    clipped_S = ratio_S.clamp(0.9, 1.15)
    loss_S = -torch.minimum(ratio_S * ADVANTAGES, clipped_S * ADVANTAGES)
    expected = (weights_S * lengths * loss_S).sum()
    expected.backward()
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(logprobs.grad, plain.grad)
    outside = (clipped_S != ratio_S) & (loss_S != -(ratio_S * ADVANTAGES))
    assert 0 < int(outside.sum()) < 3  # some are clipped, some are not
    assert result.metrics["policy/clip_fraction"].item() == pytest.approx(float(lengths[outside].sum()) / 9)
    assert result.metrics["policy/ratio"].item() == pytest.approx(float((lengths * ratio_S.detach()).sum()) / 9)


def test_a_sequence_ratio_needs_to_know_the_sequences() -> None:
    with pytest.raises(ValueError, match="importance=sequence: must be token, or sequence with sequence_sums"):
        policy_log_ratios(torch.zeros(1), torch.zeros(1), importance="sequence")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (MismatchConfig(), [1.0, 1.0, 1.0, 1.0]),
        (MismatchConfig(correction="truncate", upper=2.0), [0.25, 1.0, 2.0, 2.0]),
        (MismatchConfig(correction="mask", upper=2.0, lower=0.5), [0.0, 1.0, 2.0, 0.0]),
        (MismatchConfig(correction="mask", upper=2.0), [0.25, 1.0, 2.0, 0.0]),
    ],
)
def test_corrections_by_hand(settings: MismatchConfig, expected: list[float]) -> None:
    assert corrected(torch.tensor([0.25, 1.0, 2.0, 4.0]), settings).tolist() == expected


def test_nan_is_never_masked_away() -> None:
    for correction in ("truncate", "mask"):
        assert corrected(torch.tensor([math.nan]), MismatchConfig(correction=correction)).isnan().all()


LevelWeights = Callable[[torch.Tensor], torch.Tensor]


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("correction", ["truncate", "mask"])
def test_the_corrected_loss(level: str, correction: str) -> None:
    """Each token's clipped loss times its weight, the weight a constant for the gradient."""
    mismatch = MismatchConfig(correction=correction, level=level, upper=1.2, lower=0.9)
    settings = dataclasses.replace(PLAIN, importance="token", mismatch=mismatch)
    weights_S = torch.full((3,), 1 / 9, dtype=F64)
    engine, old, logprobs = tokens(3), tokens(1), tokens(2).requires_grad_()
    result = loss_of(logprobs, old, settings, weights_S, engine)
    result.loss.backward()
    plain = logprobs.detach().clone().requires_grad_()
    log_weight = old - engine
    if level == "sequence":
        log_weight = torch.cat([part.sum().expand(len(part)) for part in log_weight.split(LENGTHS)])
    weight = log_weight.exp()
    weight = weight.clamp(max=1.2) if correction == "truncate" else weight * ((weight <= 1.2) & (weight >= 0.9))
    assert 0 < int((weight != log_weight.exp()).sum()) < 9
    ratio, advantage = (plain - old).exp(), ADVANTAGES[SEQUENCE]
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.15) * advantage)
    expected = -(weight * surrogate).sum() / 9
    expected.backward()
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(logprobs.grad, plain.grad)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_what_is_measured(level: str) -> None:
    """Mean and effective sample size over tokens or responses; sums of parts are the sums of the whole."""
    settings = MismatchConfig(correction="truncate", level=level, upper=1.1)
    engine, old = tokens(3), tokens(1)
    weights = mismatch_weights(old, engine, level=level, sequence_sums=sums)
    log_ratios = old - engine
    units = torch.stack([part.sum() for part in log_ratios.split(LENGTHS)]) if level == "sequence" else log_ratios
    expected = units.exp()
    found = mismatch_metrics({name: float(v) for name, v in mismatch_sums(weights, settings, sums).items()})
    assert found["mismatch/weight_mean"] == pytest.approx(float(expected.mean()))
    kish = float(expected.sum() ** 2 / (len(expected) * expected.square().sum()))
    assert found["mismatch/effective_sample_size"] == pytest.approx(kish) and kish < 0.999
    assert found["mismatch/corrected_share"] == pytest.approx(float((expected > 1.1).double().mean()))


def test_equal_policies_have_weight_one() -> None:
    weights = mismatch_weights(tokens(1), tokens(1), level="sequence", sequence_sums=sums)
    found = mismatch_metrics({n: float(v) for n, v in mismatch_sums(weights, MismatchConfig(), sums).items()})
    assert found == pytest.approx(
        {"mismatch/weight_mean": 1.0, "mismatch/effective_sample_size": 1.0, "mismatch/corrected_share": 0.0}
    )
