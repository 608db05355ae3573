"""Difficulty-adaptive divergence shaping (APO, arXiv:2506.21655).

Shape suffixes: P prompts, G responses per prompt.
"""

from __future__ import annotations

import math

import torch

from megatron_apo.objective.advantages import boolean, check_groups, validity

CURVES = ("one_minus_exp", "exp")


def group_difficulty(correct_PG: torch.Tensor, *, valid_PG: torch.Tensor | None = None) -> torch.Tensor:
    """1 - share of correct responses among the valid ones: [P] float64; 1 for a group without a valid response."""
    valid = validity(correct_PG, valid_PG)
    correct = correct_PG.bool() & valid
    return 1.0 - correct.sum(dim=1).double() / valid.sum(dim=1).clamp(min=1)


def dads_kl_weights(
    advantages_PG: torch.Tensor,
    correct_PG: torch.Tensor,
    *,
    curve: str = "one_minus_exp",
    valid_PG: torch.Tensor | None = None,
) -> torch.Tensor:
    """The factor of each response's KL term: f(difficulty) where the advantage is positive, else 1; [P, G].

    f(d) = 1 - exp(-e (1 - d)) ("one_minus_exp") or exp(-e d) ("exp"), e = exp(1); 1 when the valid responses are all
    correct or all wrong. ``advantages_PG`` are the final ones (STCR applied); the result has their dtype. An invalid
    response gets 1. Raises ValueError for an unknown curve or groups of one.
    """
    check_groups("advantages_PG", advantages_PG)
    valid = validity(advantages_PG, valid_PG)
    correct = boolean("correct_PG", correct_PG, advantages_PG) & valid
    difficulty = group_difficulty(correct, valid_PG=valid)
    if curve == "one_minus_exp":
        factor = 1.0 - torch.exp(-math.e * (1.0 - difficulty))
    elif curve == "exp":
        factor = torch.exp(-math.e * difficulty)
    else:
        raise ValueError(f"curve={curve}: must be one of {', '.join(CURVES)}")
    mixed = correct.any(dim=1) & (~correct & valid).any(dim=1)  # from counts: no comparison of rounded shares
    shaped = (advantages_PG > 0) & valid & mixed[:, None]
    weights = torch.where(shaped, factor[:, None], torch.ones_like(factor)[:, None])
    return weights.to(advantages_PG.dtype) if advantages_PG.is_floating_point() else weights
