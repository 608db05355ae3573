"""Before an update: is everything finite that parameters and optimizer state would be computed from?

Every rank looks at what it holds itself, the loss and log-probabilities of its own microbatches and its own gradient
buffers, and one exchange over all ranks makes the verdict the same everywhere: either all step, or none.

Shape suffix: R response tokens of a microbatch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from megatron_apo.parallel.groups import Groups

_COUNT = "count/not_finite_"
NOT_FINITE_REFERENCE = _COUNT + "reference"
# The row of the first log-probability that is not finite in its microbatch, -1 without one: a place, not a sum.
NOT_FINITE_ROW = "not_finite/row"
_LOG_PROBABILITIES = {
    "policy": "the policy's log-probabilities",
    "old": "the old policy's log-probabilities",
    "reference": "the reference's log-probabilities",
    "engine": "the rollout engine's log-probabilities",
}
_THINGS = ("the loss", *_LOG_PROBABILITIES.values(), "the gradients")


class NonFiniteError(RuntimeError):
    """Too many updates in a row were skipped for a NaN or an infinity. No parameter was touched by any of them."""


@dataclass(frozen=True)
class Fault:
    """Something that is not finite: ``what`` it is, and the lowest rank that saw it."""

    what: str
    rank: int


def count_not_finite(live_R: torch.Tensor, **logprobs_R: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """How many of the tokens in ``live_R`` (bool) have a log-probability that is NaN or infinite, of each kind.

    Kinds are ``policy``, ``old``, ``reference`` and ``engine``, each [R] or None. With the sums goes the first such
    row, of any kind (``NOT_FINITE_ROW``). A token outside ``live_R`` has weight 0 and no say.
    """
    counts, anywhere_R = {}, torch.zeros_like(live_R)
    for kind, values_R in logprobs_R.items():
        if values_R is not None:
            bad_R = live_R & ~values_R.detach().isfinite()
            counts[_COUNT + kind] = bad_R.sum()
            anywhere_R |= bad_R
    first = anywhere_R.int().argmax() if anywhere_R.numel() else anywhere_R.new_zeros((), dtype=torch.int64)
    found = anywhere_R.any()
    return counts | {NOT_FINITE_ROW: torch.where(found, first, -torch.ones_like(first))}


def find_faults(model: Sequence[Any], sums: Mapping[str, float], groups: Groups) -> list[Fault]:
    """What is not finite on any rank, the same list on every rank; collective, on the control group.

    ``model``: this rank's chunks under Megatron's DDP, their gradients reduced. ``sums``: what this rank's own
    microbatches added up to (empty on stages before the last). Gradients also count as not finite when their norm
    overflows float32: clipping would multiply them by 0 and Adam take that for a gradient.
    """
    seen = [
        not math.isfinite(sums.get("loss/total", 0.0)),
        *(sums.get(_COUNT + kind, 0) > 0 for kind in _LOG_PROBABILITIES),
        not _gradients_are_finite(model, groups.world_size),
    ]
    ranks = torch.tensor([groups.rank if one else groups.world_size for one in seen])
    if groups.world_size > 1:
        dist.all_reduce(ranks, op=dist.ReduceOp.MIN, group=groups.control)
    return [Fault(what, rank) for what, rank in zip(_THINGS, ranks.tolist(), strict=True) if rank < groups.world_size]


def describe_faults(faults: Sequence[Fault], token: str) -> str:
    """``the loss (first on rank 1) and the gradients (first on rank 0) …``; ``token`` names a place, or is empty."""
    things = [f"{fault.what} (first on rank {fault.rank})" for fault in faults]
    listed = " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)
    return f"NaN or infinity in {listed}" + (f", at {token}" if token else "")


def _gradients_are_finite(model: Sequence[Any], world_size: int) -> bool:
    """One pass over each gradient buffer and no copy of it: the norm is NaN or infinite if one number in it is."""
    squares = 0.0
    for chunk in model:
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers):
            if buffer.grad_data.numel():
                squares += float(torch.linalg.vector_norm(buffer.grad_data, dtype=torch.float32).double() ** 2)
    # Megatron adds the squares of all ranks in float32.
    return squares * world_size < torch.finfo(torch.float32).max  # False for NaN
