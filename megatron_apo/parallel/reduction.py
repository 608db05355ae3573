"""Metrics and messages from the ranks that know them to every rank."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
import torch.distributed as dist

from megatron_apo.parallel.groups import Groups


def share_text(text: str, groups: Groups) -> str:
    """The text of the lowest rank that has one, on every rank; empty when none has. All ranks call it together."""
    if groups.world_size == 1:
        return text
    source = torch.tensor([groups.rank if text else groups.world_size])
    dist.all_reduce(source, op=dist.ReduceOp.MIN, group=groups.control)
    speaker = int(source)
    if speaker == groups.world_size:
        return ""
    encoded = text.encode() if groups.rank == speaker else b""
    length = torch.tensor([len(encoded)])
    dist.broadcast(length, speaker, group=groups.control)
    buffer = (
        torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        if encoded
        else torch.empty(int(length), dtype=torch.uint8)
    )
    dist.broadcast(buffer, speaker, group=groups.control)
    return buffer.numpy().tobytes().decode()


def reduce_metrics(sums: Mapping[str, float], groups: Groups, *, maxima: Collection[str] = ()) -> dict[str, float]:
    """Adds ``sums`` over data and context ranks (takes the largest of those in ``maxima``), result on every rank.

    On each replica's last stage, tensor rank 0 of each context rank contributes: context ranks hold different tokens,
    tensor ranks the same. The other ranks' arguments are not read. All contributors must have the same names: the first
    one's are sent round with the numbers, because no other stage knows them.
    """
    if groups.world_size == 1:
        return dict(sums)
    contributes = groups.last_stage and groups.tensor_rank == 0
    text = share_text("\n".join(sorted(sums)) if contributes else "", groups)
    names = text.split("\n") if text else []
    added = torch.tensor([sums[n] if contributes and n not in maxima else 0.0 for n in names], dtype=torch.float64)
    largest = torch.tensor([sums[n] if contributes and n in maxima else -math.inf for n in names], dtype=torch.float64)
    dist.all_reduce(added, group=groups.control)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=groups.control)
    return {n: float(largest[i] if n in maxima else added[i]) for i, n in enumerate(names)}


def sum_over_ranks(values: torch.Tensor, groups: Groups) -> torch.Tensor:
    """The sum of every rank's float64 tensor (on the CPU), on every rank. All ranks call it together."""
    if groups.world_size > 1:
        dist.all_reduce(values, group=groups.control)
    return values
