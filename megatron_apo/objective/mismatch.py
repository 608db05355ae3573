"""What the rollout engine's own arithmetic changed: importance weights of the trainer's policy over the sampler's.

Engine and trainer hold the same weights and still give a token slightly different probabilities (other kernels, other
precision). The gradient is then taken under a distribution that nobody sampled from; these weights measure by how much,
and correct it (Ionides 2008, "Truncated Importance Sampling"; in reinforcement learning of language models e.g.
arXiv:2505.24298).

Shape suffix: T response tokens of one microbatch.
"""

from __future__ import annotations

import torch

from megatron_apo.config import MismatchConfig
from megatron_apo.objective.policy_loss import SequenceSums, ratio_of


def mismatch_weights(
    trainer_logprobs_T: torch.Tensor,
    engine_logprobs_T: torch.Tensor,
    *,
    level: str,
    sequence_sums: SequenceSums,
) -> torch.Tensor:
    """pi_trainer / pi_engine of each token, or of its whole response (level "sequence"): [T], no gradient.

    Both are of the policy that sampled, before any update. The log of a weight is limited to ±60.
    """
    difference_T = (trainer_logprobs_T - engine_logprobs_T).detach()
    return ratio_of(sequence_sums(difference_T) if level == "sequence" else difference_T)


def corrected(weights_T: torch.Tensor, settings: MismatchConfig) -> torch.Tensor:
    """What the policy loss of each token is multiplied by; ones without a correction.

    "truncate": the weight, at most ``upper``. "mask": the weight, 0 outside [``lower``, ``upper``]. A NaN stays one.
    """
    if settings.correction == "none":
        return torch.ones_like(weights_T)
    if settings.correction == "truncate":
        return weights_T.clamp(max=settings.upper)
    outside = (weights_T > settings.upper) | (weights_T < settings.lower)
    return weights_T.masked_fill(outside, 0.0)


def mismatch_sums(
    weights_T: torch.Tensor, settings: MismatchConfig, sequence_sums: SequenceSums
) -> dict[str, torch.Tensor]:
    """float64 scalars that add up over microbatches and ranks; ``mismatch_metrics`` makes metrics of them.

    A unit is a token or a response, as ``settings.level`` says; a response's tokens share it evenly.
    """
    weights = weights_T.double()
    share = torch.ones_like(weights)
    if settings.level == "sequence":
        share = 1.0 / sequence_sums(share).clamp(min=1.0)
    changed = (corrected(weights, settings) != weights).double() if settings.correction != "none" else share * 0.0
    return {
        "gate/units": share.sum(),
        "gate/weight": (share * weights).sum(),
        "gate/square": (share * weights.square()).sum(),
        "gate/changed": (share * changed).sum(),
    }


def mismatch_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Mean weight, effective sample size as a share of the samples (Kish: (sum w)² / (n sum w²)), share corrected."""
    units = max(sums["gate/units"], 1e-300)
    square = sums["gate/square"]
    return {
        "mismatch/weight_mean": sums["gate/weight"] / units,
        "mismatch/effective_sample_size": sums["gate/weight"] ** 2 / (units * square) if square else 0.0,
        "mismatch/corrected_share": sums["gate/changed"] / units,
    }
