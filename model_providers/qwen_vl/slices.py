"""Which part of which Hugging Face tensor a tensor rank holds of a row: so that it reads nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from model_providers.qwen_vl.weight_map import WeightRow


@dataclass(frozen=True)
class Slice:
    """Entries ``start`` to ``stop`` of tensor ``source`` (a position in ``row.hf``) along ``dimension``.

    They go to ``place`` and after along the same dimension of the parameter.
    """

    source: int
    dimension: int
    start: int
    stop: int
    place: int


def rank_slices(row: WeightRow, local_shape: tuple[int, ...], tensor_rank: int, tensor_size: int) -> list[Slice]:
    """What a parameter of ``local_shape`` is made of on ``tensor_rank``; the rest of it, if any, is padding.

    How far a tensor is padded is what the parameter's shape says. Equal to ``weight_map.to_megatron`` in effect.
    """
    if row.cut is None:
        return [Slice(0, 0, 0, row.shapes[0][0], 0)]
    length = local_shape[row.cut]
    if row.layout == "gate_up":
        half = length // 2
        return [
            cut
            for source, shape in enumerate(row.shapes)
            for cut in _one(source, 0, shape[0], tensor_rank, half, tensor_size, source * half)
        ]
    if row.layout in ("qkv", "fused_qkv"):
        return _interleaved(row, tensor_rank * length, (tensor_rank + 1) * length)
    return _one(0, row.cut, row.shapes[0][row.cut], tensor_rank, length, tensor_size, 0)


def _one(source: int, dimension: int, whole: int, rank: int, length: int, size: int, place: int) -> list[Slice]:
    assert length * size >= whole, (whole, length, size)
    start, stop = rank * length, min((rank + 1) * length, whole)
    return [Slice(source, dimension, start, stop, place)] if start < stop else []


def _interleaved(row: WeightRow, first: int, last: int) -> list[Slice]:
    """Rows ``first`` to ``last`` of the order "per group its queries, keys, values"."""
    if row.layout == "fused_qkv":
        third = row.shapes[0][0] // 3
        parts = [(0, index * third, third // row.groups) for index in range(3)]
    else:
        parts = [(source, 0, shape[0] // row.groups) for source, shape in enumerate(row.shapes)]
    found, begin = [], 0
    for group in range(row.groups):
        for source, offset, rows in parts:
            low, high = max(begin, first), min(begin + rows, last)
            if low < high:
                start = offset + group * rows + low - begin
                found.append(Slice(source, 0, start, start + high - low, low - first))
            begin += rows
    assert begin >= last, (row.megatron, begin, last)
    return found
