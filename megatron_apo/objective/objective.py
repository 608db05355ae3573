"""Composes the objective from its settings: group shaping before the batch is cut, token losses inside it.

    A'    = advantage * STCR                          per response
    loss  = sum_t policy_weight_t * mismatch_t * PG_t + coefficient * sum_t kl_token_weight_t * dads_t * KL_t

GRPO, GRPO-D, APO and its ablations, Dr. GRPO, DAPO, RLOO and GSPO are settings of it. Shape suffixes: P prompts,
G responses per prompt, T response tokens of one microbatch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_apo.config import ObjectiveConfig
from megatron_apo.objective.advantages import boolean, group_advantages
from megatron_apo.objective.dads import dads_kl_weights, group_difficulty
from megatron_apo.objective.kl import kl_divergence
from megatron_apo.objective.kl_schedule import grpo_d_coefficient
from megatron_apo.objective.mismatch import corrected, mismatch_weights
from megatron_apo.objective.policy_loss import (
    SequenceSums,
    clip_active,
    clipped_policy_loss,
    policy_log_ratios,
    ratio_of,
)
from megatron_apo.objective.stcr import stcr_weights
from megatron_apo.objective.validation import exploration_steps, has_kl


@dataclass(frozen=True)
class ShapedGroups:
    """What the objective made of the groups; ``advantages_PG`` = ``raw_advantages_PG`` * ``stcr_PG``.

    ``stcr_PG`` (>= 1) and ``kl_weights_PG`` are all 1 where STCR or DADS is switched off. ``difficulty_P`` is
    1 - share of correct responses. All have the rewards' dtype.
    """

    raw_advantages_PG: torch.Tensor
    advantages_PG: torch.Tensor
    stcr_PG: torch.Tensor
    kl_weights_PG: torch.Tensor
    difficulty_P: torch.Tensor


@dataclass(frozen=True)
class TokenObjective:
    """One microbatch's part of the loss (a differentiable scalar) and of the metrics.

    ``metrics`` are detached float64 scalars; each is a weighted sum, so that summing over microbatches and ranks gives
    the global mean: no division is left to do.
    """

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]


def shape_groups(
    rewards_PG: torch.Tensor,
    correct_PG: torch.Tensor,
    lengths_PG: torch.Tensor,
    *,
    settings: ObjectiveConfig,
    valid_PG: torch.Tensor | None = None,
) -> ShapedGroups:
    """Advantages, STCR and DADS of groups of scored responses; all arguments [P, G].

    Raises ValueError for groups of one, unequal shapes and rewards that are not finite.
    """
    correct = boolean("correct_PG", correct_PG, rewards_PG)
    raw = group_advantages(
        rewards_PG,
        epsilon=settings.advantage.epsilon,
        unbiased=settings.advantage.unbiased,
        scale=settings.advantage.scale,
        baseline=settings.advantage.baseline,
        valid_PG=valid_PG,
    )
    stcr = torch.ones_like(raw)
    if settings.stcr.enabled:
        stcr = stcr_weights(
            lengths_PG,
            correct,
            base=settings.stcr.base,
            advantages_PG=raw,
            only_negative=settings.stcr.only_negative,
            valid_PG=valid_PG,
        )
    advantages = raw * stcr
    kl_weights = torch.ones_like(raw)
    if settings.dads.enabled:
        kl_weights = dads_kl_weights(advantages, correct, curve=settings.dads.curve, valid_PG=valid_PG)
    difficulty = group_difficulty(correct, valid_PG=valid_PG).to(raw.dtype)
    return ShapedGroups(raw, advantages, stcr, kl_weights, difficulty)


def kl_coefficient(settings: ObjectiveConfig, step: int, total_steps: int) -> float:
    """The KL coefficient at ``step`` in 0 ... total_steps; ValueError for an unknown schedule."""
    kl = settings.kl
    if kl.schedule == "constant":
        return kl.coefficient
    if kl.schedule == "grpo_d":
        return grpo_d_coefficient(
            step,
            total_steps=total_steps,
            exploration_steps=exploration_steps(kl, total_steps),
            minimum=kl.minimum,
            maximum=kl.maximum,
        )
    raise ValueError(f"objective.kl.schedule={kl.schedule}: must be one of constant, grpo_d")


def needs_reference(settings: ObjectiveConfig) -> bool:
    """Whether the KL coefficient is above 0 at any step, so that reference log-probabilities are needed."""
    return has_kl(settings.kl)


def scoring_passes(settings: ObjectiveConfig, updates: int) -> int:
    """Forward passes over the responses before the first of a rollout's ``updates``: reference's and policy's.

    The policy's own log-probabilities are scored for the later updates, and for a KL in the reward; not where
    ``old_logprobs`` "engine" says that the engine's are they.
    """
    reference = needs_reference(settings)
    penalised = reference and settings.kl.placement == "reward"
    policy = int(updates > 1) + int(penalised) if settings.old_logprobs == "trainer" else 0
    return int(reference) + policy


def token_objective(
    logprobs_T: torch.Tensor,
    old_logprobs_T: torch.Tensor,
    ref_logprobs_T: torch.Tensor | None,
    *,
    advantages_T: torch.Tensor,
    policy_weights_T: torch.Tensor,
    kl_token_weights_T: torch.Tensor,
    kl_weights_T: torch.Tensor,
    kl_coefficient: float,
    settings: ObjectiveConfig,
    metric_weight: float,
    engine_logprobs_T: torch.Tensor | None = None,
    sequence_sums: SequenceSums | None = None,
) -> TokenObjective:
    """The loss of response tokens [T]: policy loss plus KL, each under its own reduction weights.

    A token whose weight is 0 contributes exactly 0 to the value and the gradient, whatever its log-probability (-inf,
    nan): it is replaced before anything is computed from it. ``kl_weights_T`` is DADS's factor of the token's response.
    Without ``ref_logprobs_T`` there is no KL term; ValueError when the coefficient then is not 0.

    ``metric_weight`` is 1 / (tokens of the whole update): ratio, clip fraction and KL to the old policy are means over
    tokens, whatever the loss is. ``engine_logprobs_T`` is for ``settings.mismatch``, where ``old_logprobs_T`` must be
    the trainer's own; ``sequence_sums`` for whatever is of a response rather than a token.
    """
    if ref_logprobs_T is None and kl_coefficient != 0:
        raise ValueError(f"kl_coefficient={kl_coefficient}: needs ref_logprobs_T; set objective.kl.coefficient to 0")
    live = policy_weights_T != 0
    logprobs, old_logprobs = _where(live, logprobs_T), _where(live, old_logprobs_T)
    advantages = _where(live, advantages_T)
    clip = {"clip_low": settings.clip_low, "clip_high": settings.clip_high}
    log_ratios = policy_log_ratios(logprobs, old_logprobs, importance=settings.importance, sequence_sums=sequence_sums)
    weights = policy_weights_T
    if settings.mismatch.correction != "none":
        if engine_logprobs_T is None or sequence_sums is None:
            raise ValueError("engine_logprobs_T, sequence_sums: settings.mismatch corrects nothing without them")
        engine_logprobs, level = _where(live, engine_logprobs_T), settings.mismatch.level
        ratios = mismatch_weights(old_logprobs, engine_logprobs, level=level, sequence_sums=sequence_sums)
        weights = weights * corrected(ratios, settings.mismatch)
    policy_loss = _sum(weights, clipped_policy_loss(log_ratios, advantages, **clip))
    loss = policy_loss
    metrics = {"loss/policy": policy_loss}
    with torch.no_grad():
        mean_T = live * metric_weight
        metrics["policy/clip_fraction"] = _sum(mean_T, clip_active(log_ratios, advantages, **clip))
        metrics["policy/ratio"] = _sum(mean_T, ratio_of(log_ratios))
        metrics["policy/kl_old"] = _sum(mean_T, kl_divergence(logprobs, old_logprobs, estimator="k3"))
    if ref_logprobs_T is not None:
        live = kl_token_weights_T != 0
        pair = _where(live, logprobs_T), _where(live, ref_logprobs_T)
        divergence = kl_divergence(*pair, estimator=settings.kl.estimator)
        weighted = _sum(kl_token_weights_T * kl_weights_T, divergence)
        loss = loss + kl_coefficient * weighted
        metrics["kl/raw"] = _sum(kl_token_weights_T, divergence)
        metrics["kl/weighted"] = weighted
        metrics["loss/kl"] = kl_coefficient * weighted
    return TokenObjective(loss.to(logprobs_T.dtype), {name: value.detach() for name, value in metrics.items()})


def _where(live_T: torch.Tensor, values_T: torch.Tensor) -> torch.Tensor:
    """The values of live tokens, 0 elsewhere: in the gradient too, whatever the value (-inf, nan)."""
    return torch.where(live_T, values_T, values_T.new_zeros(()))


def _sum(weights_T: torch.Tensor, values_T: torch.Tensor) -> torch.Tensor:
    """sum(weight * value) in float64, so that the order of tokens does not show."""
    return (weights_T.double() * values_T.double()).sum()
