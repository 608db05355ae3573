"""How the local attention batches packed sequences of different lengths: buckets of similar ones.

One batch padded to the longest sequence would cost its square for every short one; a call for every sequence would be a
loop over images. A bucket takes sequences of more than ``_SHORTEST_SHARE`` of its longest, so that padding about
doubles a sequence's attention at worst, and the number of buckets grows with the logarithm of the longest length alone.

Shape suffixes: T packed tokens, N sequences of a bucket, S its longest sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Lengths that always share a bucket: their attention costs less than another call. No window is longer.
_SHORT = 64
_SHORTEST_SHARE = 0.7


def bucket_members(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of the sequences of each bucket, in their own order; the longest bucket first, none is empty."""
    by_length = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    buckets: list[list[int]] = []
    shortest = 0.0
    for index in by_length:
        if not buckets or lengths[index] <= shortest:
            buckets.append([])
            shortest = lengths[index] * _SHORTEST_SHARE if lengths[index] > _SHORT else -1.0
        buckets[-1].append(index)
    return [sorted(members) for members in buckets]


@dataclass(frozen=True)
class Bucket:
    """Some of the sequences, padded to the longest of them.

    ``pad_index_NS`` maps padded cells to tokens (cells beyond a sequence's end point at token 0 and are never read
    back); ``key_mask_NS`` says which are real, None when all are.
    """

    pad_index_NS: torch.Tensor
    key_mask_NS: torch.Tensor | None


@dataclass(frozen=True)
class Buckets:
    """``unpad_index_T`` finds each token among the cells of all buckets, joined; None: the cells are the tokens."""

    buckets: tuple[Bucket, ...]
    unpad_index_T: torch.Tensor | None


def unpad_index(rows: Sequence[torch.Tensor], inside: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of the cells of all buckets one after the other, which holds row 0, 1, … of what was padded; int64 [rows].

    ``rows`` and ``inside`` give of each bucket's cells (any shape) the row and whether it is real.
    """
    cells = torch.cat([part.reshape(-1) for part in inside]).nonzero().squeeze(1)
    order = torch.cat([part.reshape(-1) for part in rows])[cells]
    return torch.empty_like(order).index_copy(0, order, cells)


def bucketed(cu_seqlens: torch.Tensor) -> Buckets:
    """Buckets of the packed sequences with boundaries ``cu_seqlens`` int32 [N + 1], on its device."""
    device = cu_seqlens.device
    boundaries = cu_seqlens.tolist()
    lengths = [end - start for start, end in zip(boundaries, boundaries[1:], strict=False)]
    buckets, rows, real = [], [], []
    for members in bucket_members(lengths):
        longest = max(lengths[index] for index in members)
        column_S = torch.arange(longest, device=device)
        start_N1 = torch.tensor([boundaries[index] for index in members], device=device)[:, None]
        length_N1 = torch.tensor([lengths[index] for index in members], device=device)[:, None]
        inside_NS = column_S < length_N1
        pad_index_NS = torch.where(inside_NS, start_N1 + column_S, 0)
        equal = all(lengths[index] == longest for index in members)
        buckets.append(Bucket(pad_index_NS, None if equal else inside_NS))
        rows.append(pad_index_NS)
        real.append(inside_NS)
    if len(buckets) == 1 and buckets[0].key_mask_NS is None:
        return Buckets(tuple(buckets), None)
    return Buckets(tuple(buckets), unpad_index(rows, real))
