"""Sums over whole responses, of which a context-parallel rank may hold only some tokens.

Shape suffix: R response tokens of this rank, in the order of ``Microbatch.response_mask_T``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from megatron_apo.records import Microbatch


def response_sequences(batch: Microbatch) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [R]: which packed sequence each of this rank's response tokens is of, and its place in the whole row."""
    places_R = batch.response_mask_T.nonzero().squeeze(1)
    if batch.places_T is not None:
        places_R = batch.places_T[places_R]
    return torch.searchsorted(batch.cu_seqlens.long(), places_R, right=True) - 1, places_R


def sequence_sums(
    batch: Microbatch, cp_group: dist.ProcessGroup | None = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that takes values [R] to their sum over the response, at each token, in the values' dtype.

    Added in float64, without a gradient. Over a ``cp_group`` of several ranks it is collective: every context rank must
    call it equally often, with as many tokens as it holds (none, perhaps).
    """
    sequences_R, _ = response_sequences(batch)
    count = len(batch.cu_seqlens) - 1

    def sums(values_R: torch.Tensor) -> torch.Tensor:
        totals = torch.zeros(count, dtype=torch.float64, device=values_R.device)
        totals.index_add_(0, sequences_R, values_R.detach().double())
        if cp_group is not None and cp_group.size() > 1:
            dist.all_reduce(totals, group=cp_group)
        return totals[sequences_R].to(values_R.dtype)

    return sums
