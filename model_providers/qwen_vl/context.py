"""How context-parallel ranks share packed sequences: each holds two pieces of every sequence.

A sequence is cut into 2 * size equal pieces; rank r holds the r-th from the front and the r-th from the back. Under a
causal mask the front is cheap and the back dear, so every rank has the same work. It is the cut that Transformer
Engine's own context parallelism expects of packed sequences, which are padded at their ends to a multiple of 2 * size.

Shape suffixes: T packed tokens, R tokens of one rank (T / size), N sequences (of a bucket), S longest of them, Q its
piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from model_providers.qwen_vl.buckets import bucket_members, unpad_index


def _piece_lengths(cu_seqlens: torch.Tensor, size: int) -> torch.Tensor:
    """Tokens per piece of each sequence, int64 [N]; ValueError when a sequence cannot be cut."""
    lengths = cu_seqlens.long().diff()
    if bool((lengths % (2 * size)).any()):
        raise ValueError(
            f"cu_seqlens: sequences of {lengths.tolist()} tokens; with {size} context ranks each must be padded to a "
            f"multiple of {2 * size}"
        )
    return lengths // (2 * size)


def context_rows(cu_seqlens: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """Rows of the packed sequences that context rank ``rank`` of ``size`` holds, in its order; int64 [R].

    ``cu_seqlens``: int32 [N + 1], multiples of 2 * size (else ValueError).
    """
    pieces = _piece_lengths(cu_seqlens, size)
    starts = cu_seqlens[:-1].long()
    first = torch.stack((starts + rank * pieces, starts + (2 * size - 1 - rank) * pieces), dim=1).flatten()
    counts = pieces.repeat_interleave(2)
    before = counts.cumsum(0) - counts
    total = int(counts.sum())
    return torch.arange(total, device=cu_seqlens.device) + (first - before).repeat_interleave(counts)


@dataclass(frozen=True)
class ContextBucket:
    """Gathers and masks of one rank's attention in sequences of similar length.

    ``query_index_2NQ`` gathers this rank's two pieces of each sequence from its own rows, padded to [N, Q].
    ``key_index_NS`` gathers whole sequences from the ranks' rows one after the other. Piece h sees the first
    ``key_columns[h]`` of them, under the mask ``masks[h]`` [N, 1, Q, columns].
    """

    query_index_2NQ: torch.Tensor
    key_index_NS: torch.Tensor
    key_columns: tuple[int, int]
    masks: tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class ContextLayout:
    """All buckets of one rank's attention, made once per batch; ``unpad_index_R`` undoes their [2, N, Q], joined."""

    buckets: tuple[ContextBucket, ...]
    unpad_index_R: torch.Tensor


def context_layout(cu_seqlens: torch.Tensor, rank: int, size: int) -> ContextLayout:
    """The causal attention of context rank ``rank`` of ``size`` over sequences with boundaries ``cu_seqlens``."""
    pieces = _piece_lengths(cu_seqlens, size)
    starts = cu_seqlens[:-1].long()
    buckets, rows, real = [], [], []
    for members in bucket_members(cu_seqlens.diff().tolist()):
        chosen = torch.tensor(members, device=cu_seqlens.device)
        bucket, inside_2NQ = _bucket(starts[chosen], pieces[chosen], int(cu_seqlens[-1]) // size, rank, size)
        buckets.append(bucket)
        rows.append(bucket.query_index_2NQ)
        real.append(inside_2NQ)
    return ContextLayout(tuple(buckets), unpad_index(rows, real))


def _bucket(
    starts_N: torch.Tensor, pieces_N: torch.Tensor, per_rank: int, rank: int, size: int
) -> tuple[ContextBucket, torch.Tensor]:
    """The bucket of sequences that start at ``starts_N`` in pieces of ``pieces_N``; which cells [2, N, Q] are real."""
    device, pieces_N1, starts_N1 = starts_N.device, pieces_N[:, None], starts_N[:, None]
    widest = int(pieces_N.max())
    longest = 2 * size * widest
    column_Q = torch.arange(widest, device=device)
    inside_NQ = column_Q < pieces_N1
    local_N1 = starts_N1 // size
    query_index = torch.stack([torch.where(inside_NQ, local_N1 + half * pieces_N1 + column_Q, 0) for half in (0, 1)])

    column_S = torch.arange(longest, device=device)
    length_N1 = torch.clamp(pieces_N1, min=1)
    piece_NS = column_S // length_N1
    owner_NS = torch.minimum(piece_NS, 2 * size - 1 - piece_NS)
    row_NS = owner_NS * per_rank + local_N1 + (piece_NS >= size) * pieces_N1 + column_S % length_N1
    key_index = torch.where(column_S < 2 * size * pieces_N1, row_NS, 0)

    columns, masks = [], []
    for piece in (rank, 2 * size - 1 - rank):
        columns.append((piece + 1) * widest)
        position_NQ = piece * pieces_N1 + column_Q
        masks.append((column_S[: columns[-1]] <= position_NQ[:, :, None])[:, None])
    bucket = ContextBucket(
        query_index_2NQ=query_index,
        key_index_NS=key_index,
        key_columns=(columns[0], columns[1]),
        masks=(masks[0], masks[1]),
    )
    return bucket, inside_NQ.expand(2, -1, -1)


@dataclass(frozen=True)
class ContextShare:
    """Context rank ``rank`` of ``size`` and the whole sequences it has a share of.

    ``attention`` is made when it is first asked for: Transformer Engine has no use for its masks.
    """

    cu_seqlens: torch.Tensor
    rank: int
    size: int

    @cached_property
    def attention(self) -> ContextLayout:
        """Gathers and masks of the local attention."""
        return context_layout(self.cu_seqlens, self.rank, self.size)
