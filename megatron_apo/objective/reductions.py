"""A reduction is a weight per token, computed from the global batch before it is cut.

Microbatches and ranks then partition one sum, and the result does not depend on the layout. Shape suffix: S sequences.
"""

from __future__ import annotations

import torch

REDUCTIONS = ("token_mean", "sequence_mean", "sequence_sum", "constant", "microbatch_token_mean")


def token_weights(
    lengths_S: torch.Tensor,
    included_S: torch.Tensor,
    *,
    kind: str = "token_mean",
    constant_length: int = 0,
    microbatch_sequences: int = 2,
) -> torch.Tensor:
    """The weight of every response token of each sequence: [S] float64; 0 for a sequence that is left out.

    Summing weight * value over all response tokens gives, over the included sequences:

    - "token_mean", the mean over all tokens: 1 / tokens;
    - "sequence_mean", the mean over sequences of their token means: 1 / (tokens of the sequence * sequences);
    - "sequence_sum", the mean over sequences of their sums: 1 / sequences;
    - "constant", that over ``constant_length`` tokens (Dr. GRPO, arXiv:2503.20783, section 3.2);
    - "microbatch_token_mean", the mean over microbatches of their token means, as a trainer computes it that averages
      each microbatch's own loss: 1 / (tokens of the microbatch * microbatches). A microbatch is
      ``microbatch_sequences`` included sequences in their order, however the batch is really cut.

    ``lengths_S`` counts response tokens; a sequence without any is not counted. Nothing included: all zeros. Raises
    ValueError for another kind and for a constant or a microbatch of less than 1.
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
    elif kind == "sequence_sum":
        weights = torch.ones_like(lengths) / included.sum().clamp(min=1)
    elif kind == "constant":
        if constant_length < 1:
            raise ValueError(f"constant_length={constant_length}: must be at least 1, the longest possible response")
        weights = torch.ones_like(lengths) / (included.sum().clamp(min=1) * constant_length)
    elif kind == "microbatch_token_mean":
        weights = _of_microbatches(lengths, included, microbatch_sequences)
    else:
        raise ValueError(f"kind={kind}: must be one of {', '.join(REDUCTIONS)}")
    return weights.masked_fill(~included, 0.0)


def _of_microbatches(lengths: torch.Tensor, included: torch.Tensor, sequences: int) -> torch.Tensor:
    if sequences < 1:
        raise ValueError(f"microbatch_sequences={sequences}: must be at least 1")
    place = (included.long().cumsum(0) - 1).clamp(min=0) // sequences
    count = int(place.max()) + 1 if len(place) else 1
    tokens = torch.zeros(count, dtype=lengths.dtype).index_add(0, place, lengths.masked_fill(~included, 0.0))
    return 1.0 / (tokens[place].clamp(min=1.0) * count)
