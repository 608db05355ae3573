"""The likeliest tokens under a vocabulary split over tensor-parallel ranks, without the logits in memory.

Shape suffixes: T tokens, H hidden, V vocabulary (this rank's part of it), C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist


@torch.no_grad()
def vocab_parallel_argmax(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    *,
    vocab_size: int,
    tp_group: dist.ProcessGroup | None = None,
    forbidden_token_ids: Sequence[int] = (),
    chunk_tokens: int = 1024,
) -> torch.Tensor:
    """The id with the largest logit in each row of ``hidden_TH @ weight_VH.T``, int64 [T]; of equals the lowest.

    Rank r of ``tp_group`` holds the ids from r * V on (all of them without a group); those from ``vocab_size`` on are
    padding and, as ``forbidden_token_ids``, never chosen. Every rank of the group must call it with the same tokens.
    """
    shard = weight_VH.shape[0]
    first = 0 if tp_group is None else dist.get_rank(tp_group) * shard
    local = [token - first for token in forbidden_token_ids if 0 <= token - first < shard]
    left_out = torch.tensor(local, dtype=torch.int64, device=weight_VH.device)
    found_T = torch.empty(hidden_TH.shape[0], dtype=torch.int64, device=hidden_TH.device)
    for start in range(0, hidden_TH.shape[0], chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        logits_CV = torch.mm(hidden_TH[rows], weight_VH.t()).float()
        logits_CV[:, max(0, vocab_size - first) :] = -torch.inf
        logits_CV.index_fill_(1, left_out, -torch.inf)
        highest_C, ids_C = logits_CV.max(dim=1)
        ids_C += first
        if tp_group is not None:
            own_C = highest_C.clone()
            dist.all_reduce(highest_C, op=dist.ReduceOp.MAX, group=tp_group)
            ids_C[own_C != highest_C] = torch.iinfo(torch.int64).max
            dist.all_reduce(ids_C, op=dist.ReduceOp.MIN, group=tp_group)
        found_T[rows] = ids_C
    return found_T
