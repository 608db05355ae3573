"""Suboptimal-trajectory complexity regularisation (APO, arXiv:2506.21655).

Shape suffixes: P prompts, G responses per prompt.
"""

from __future__ import annotations

import math

import torch

from megatron_apo.objective.advantages import boolean, check_groups, validity


def stcr_weights(
    lengths_PG: torch.Tensor,
    correct_PG: torch.Tensor,
    *,
    base: float = 1.00001,
    advantages_PG: torch.Tensor | None = None,
    only_negative: bool = False,
    valid_PG: torch.Tensor | None = None,
) -> torch.Tensor:
    """What to multiply each advantage by: 1 + w, in [1, 2], [P, G].

    w = 1 - base ** -(excess length of a wrong response), where the excess is over the mean length of the correct
    responses of the group and never negative. 1 for a correct one, in a group without a correct one, and where invalid;
    invalid responses do not count in the mean. ``lengths_PG`` counts response tokens, the end token included.

    A wrong but well-formatted response can have a positive advantage, which this then raises, as in the authors' code;
    ``only_negative`` applies the weight only where ``advantages_PG`` is negative. Computed in float64 (float32 is 0.14%
    off at small excess for base 1.00001); the result has the dtype of ``advantages_PG`` where given, else of floating
    ``lengths_PG``, else float64. Raises ValueError for a base of 1 or less, groups of one, or missing advantages.
    """
    check_groups("lengths_PG", lengths_PG)
    if not base > 1:
        raise ValueError(f"base={base}: must be above 1; the weight of a longer wrong response grows with it")
    if only_negative and advantages_PG is None:
        raise ValueError("only_negative=True: needs advantages_PG to know which advantages are negative")
    valid = validity(lengths_PG, valid_PG)
    correct = boolean("correct_PG", correct_PG, lengths_PG)
    lengths = lengths_PG.double()
    good = correct & valid
    good_count = good.sum(dim=1, keepdim=True)
    good_length = lengths.masked_fill(~good, 0.0).sum(dim=1, keepdim=True) / good_count.clamp(min=1)
    applies = valid & ~correct & (good_count > 0)
    if only_negative and advantages_PG is not None:
        applies &= advantages_PG < 0
    excess = (lengths - good_length).clamp(min=0.0).masked_fill(~applies, 0.0)
    weights = 1.0 - torch.expm1(-excess * math.log(base))
    reference = lengths_PG if advantages_PG is None else advantages_PG
    return weights.to(reference.dtype) if reference.is_floating_point() else weights
