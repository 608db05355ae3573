"""A reduction is a weight per token, computed from the global batch before it is cut.

Microbatches and ranks then partition one sum, and the result does not depend on the layout. Shape suffix: S sequences.
"""

from __future__ import annotations

import torch

REDUCTIONS = ("token_mean", "sequence_mean")


def token_weights(lengths_S: torch.Tensor, included_S: torch.Tensor, *, kind: str = "token_mean") -> torch.Tensor:
    """The weight of every response token of each sequence: [S] float64; 0 for a sequence that is left out.

    Summing weight * value over all response tokens gives the mean over all tokens of the included sequences
    ("token_mean": 1 / tokens) or the mean over included sequences of their token means ("sequence_mean":
    1 / (tokens of the sequence * sequences)). ``lengths_S`` counts response tokens; a sequence without any is not
    counted. Nothing included: all zeros. Raises ValueError for another kind.
    """
    if lengths_S.shape != included_S.shape:
        raise ValueError(
            f"included_S: has shape {tuple(included_S.shape)}; must be {tuple(lengths_S.shape)} like lengths_S"
        )
    included = included_S.bool() & (lengths_S > 0)
    lengths = lengths_S.double()
    if kind == "token_mean":
        weights = torch.ones_like(lengths) / lengths.masked_fill(~included, 0.0).sum().clamp(min=1.0)
    elif kind == "sequence_mean":
        weights = 1.0 / (lengths.clamp(min=1.0) * included.sum().clamp(min=1))
    else:
        raise ValueError(f"kind={kind}: must be one of {', '.join(REDUCTIONS)}")
    return weights.masked_fill(~included, 0.0)
