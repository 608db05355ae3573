"""The clipped policy-gradient loss, per token.

Shape suffix: T response tokens of one microbatch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

# exp() of a larger log-ratio nears float32's range; the product with a zero gradient or advantage would be nan.
_LARGEST_LOG_RATIO = 60.0

# Values [T] to their sum over the whole response, at each of its tokens, without a gradient. A response may have
# tokens on other context-parallel ranks: then only they together know the sum.
SequenceSums = Callable[[torch.Tensor], torch.Tensor]


def ratio_of(log_ratios: torch.Tensor) -> torch.Tensor:
    """exp of a log-ratio limited to ±60, so that the value and its gradient stay finite."""
    return torch.exp(log_ratios.clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO))


def policy_log_ratios(
    logprobs_T: torch.Tensor,
    old_logprobs_T: torch.Tensor,
    *,
    importance: str = "token",
    sequence_sums: SequenceSums | None = None,
) -> torch.Tensor:
    """log of the importance ratio at each token, differentiable in ``logprobs_T``.

    "token": logprobs - old_logprobs. "sequence": its mean over the response (GSPO, arXiv:2507.18071, eq. 7); each token
    has the mean's value with its own log-probability's gradient (its eq. 14), so that a loss with one weight and one
    advantage for all tokens of a response has the gradient of the sequence-level loss, and no gradient crosses ranks.
    ValueError for another choice, or sequences without ``sequence_sums``.
    """
    difference_T = logprobs_T - old_logprobs_T
    if importance == "token":
        return difference_T
    if importance != "sequence" or sequence_sums is None:
        raise ValueError(f"importance={importance}: must be token, or sequence with sequence_sums")
    own_T = logprobs_T - logprobs_T.detach()
    return (sequence_sums(difference_T) / sequence_sums(torch.ones_like(difference_T)).clamp(min=1.0)) + own_T


def clipped_policy_loss(
    log_ratios: torch.Tensor, advantages: torch.Tensor, *, clip_low: float, clip_high: float
) -> torch.Tensor:
    """PPO's clipped surrogate, negated (arXiv:1707.06347, eq. 7); clip_low and clip_high may differ (arXiv:2503.14476).

    -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) with ratio = exp(log_ratios). Both arguments and the
    result have one shape; differentiable in ``log_ratios``.
    """
    ratio = ratio_of(log_ratios)
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def clip_active(
    log_ratios: torch.Tensor, advantages: torch.Tensor, *, clip_low: float, clip_high: float
) -> torch.Tensor:
    """Booleans: where the clipped branch is the smaller one, so that the token has no gradient."""
    ratio = ratio_of(log_ratios)
    too_high = (advantages > 0) & (ratio > 1.0 + clip_high)
    too_low = (advantages < 0) & (ratio < 1.0 - clip_low)
    return too_high | too_low
