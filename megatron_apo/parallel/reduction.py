"""Metrics from the ranks that compute them to every rank."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
import torch.distributed as dist

from megatron_apo.parallel.groups import Groups


def reduce_metrics(sums: Mapping[str, float], groups: Groups, *, maxima: Collection[str] = ()) -> dict[str, float]:
    """Adds ``sums`` over the data-parallel replicas (takes the largest of those in ``maxima``), result on every rank.

    Tensor rank 0 of each replica's last stage contributes; the other ranks' arguments are not read. All contributors
    must have the same names: the first replica's are sent round with the numbers, because no other stage knows them.
    """
    if groups.world_size == 1:
        return dict(sums)
    contributes = groups.last_stage and groups.tensor_rank == 0
    text = "\n".join(sorted(sums)).encode() if contributes and groups.data_rank == 0 else b""
    length = torch.tensor([len(text)])
    dist.all_reduce(length, op=dist.ReduceOp.MAX, group=groups.control)
    buffer = torch.zeros(int(length), dtype=torch.uint8)
    if text:
        buffer = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    dist.all_reduce(buffer, op=dist.ReduceOp.MAX, group=groups.control)
    names = bytes(buffer.tolist()).decode().split("\n") if len(buffer) else []
    added = torch.tensor([sums[n] if contributes and n not in maxima else 0.0 for n in names], dtype=torch.float64)
    largest = torch.tensor([sums[n] if contributes and n in maxima else -math.inf for n in names], dtype=torch.float64)
    dist.all_reduce(added, group=groups.control)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=groups.control)
    return {n: float(largest[i] if n in maxima else added[i]) for i, n in enumerate(names)}
