"""The clipped policy-gradient loss, per token."""

from __future__ import annotations

import torch

# exp() of a larger log-ratio nears float32's range; the product with a zero gradient or advantage would be nan.
_LARGEST_LOG_RATIO = 60.0


def policy_ratio(logprobs: torch.Tensor, old_logprobs: torch.Tensor) -> torch.Tensor:
    """exp(logprobs - old_logprobs), the log-ratio limited to ±60 so that the value and its gradient stay finite."""
    return torch.exp((logprobs - old_logprobs).clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO))


def clipped_policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> torch.Tensor:
    """PPO's clipped surrogate, negated (arXiv:1707.06347, eq. 7); clip_low and clip_high may differ (arXiv:2503.14476).

    -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) with ratio = exp(logprobs - old_logprobs). All
    arguments and the result have one shape; differentiable in ``logprobs``.
    """
    ratio = policy_ratio(logprobs, old_logprobs)
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def clip_active(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> torch.Tensor:
    """Booleans: where the clipped branch is the smaller one, so that the token has no gradient."""
    ratio = policy_ratio(logprobs, old_logprobs)
    too_high = (advantages > 0) & (ratio > 1.0 + clip_high)
    too_low = (advantages < 0) & (ratio < 1.0 - clip_low)
    return too_high | too_low
