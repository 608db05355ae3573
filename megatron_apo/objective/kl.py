"""Estimators of the KL divergence from the reference policy, per token."""

from __future__ import annotations

import torch

ESTIMATORS = ("k1", "k2", "k3")


def kl_divergence(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, *, estimator: str = "k3") -> torch.Tensor:
    """KL(policy || reference) of sampled tokens; the arguments' shape and dtype, differentiable.

    With x = ref_logprobs - logprobs (J. Schulman, "Approximating KL Divergence", 2020): k1 = -x (unbiased, may be
    negative), k2 = x² / 2, k3 = exp(x) - 1 - x (unbiased, never negative). Computed in float64, because exp(x) - 1 - x
    cancels where the two policies are close. Raises ValueError for another estimator.
    """
    x = ref_logprobs.double() - logprobs.double()
    if estimator == "k1":
        kl = -x
    elif estimator == "k2":
        kl = x.square() / 2
    elif estimator == "k3":
        kl = torch.expm1(x) - x
    else:
        raise ValueError(f"estimator={estimator}: must be one of {', '.join(ESTIMATORS)}")
    return kl.to(logprobs.dtype)
