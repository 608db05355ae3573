"""From Megatron's shards to Hugging Face tensors, over all ranks of a model, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist

from megatron_apo.parallel.groups import Groups
from model_providers.qwen_vl.loading import global_parameters, model_rows
from model_providers.qwen_vl.model import QwenVLModel
from model_providers.qwen_vl.weight_map import WeightRow, to_hf

Select = Callable[[torch.nn.Parameter], torch.Tensor]


def _weights(parameter: torch.nn.Parameter) -> torch.Tensor:
    return parameter.detach()


def main_gradients(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Selects the gradient that Megatron's DDP accumulated (``main_grad``), 0 where frozen, instead of the weight."""
    if not parameter.requires_grad:
        return torch.zeros_like(parameter)
    return parameter.main_grad.detach()  # type: ignore[attr-defined,no-any-return]


def _owners(rows: list[WeightRow], mine: dict[str, torch.nn.Parameter], groups: Groups) -> list[int]:
    """The first pipeline stage that holds each row."""
    present = torch.tensor([int(row.megatron in mine) for row in rows], dtype=torch.int32)
    if groups.pipeline_size == 1:
        return [0] * len(rows)
    gathered = torch.zeros(groups.pipeline_size, len(rows), dtype=torch.int32)
    gathered[groups.pipeline_rank] = present
    dist.all_reduce(gathered, op=dist.ReduceOp.MAX, group=groups.model_control)
    assert bool((gathered.sum(0) >= 1).all()), "a weight of the map is on no pipeline stage"
    return gathered.argmax(0).tolist()  # type: ignore[no-any-return]


def _all_shards(tensor: torch.Tensor, row: WeightRow, groups: Groups) -> list[torch.Tensor]:
    if groups.tensor_size == 1 or row.cut is None:
        return [tensor]
    shards = [torch.empty_like(tensor) for _ in range(groups.tensor_size)]
    dist.all_gather(shards, tensor.contiguous(), group=groups.tp)
    return shards


def export_tensors(
    model: QwenVLModel | Sequence[QwenVLModel], groups: Groups, select: Select = _weights
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields (published name, whole tensor) in the map's order on rank 0; yields nothing elsewhere.

    ``model``: this rank's pipeline stage, or its chunks. Collective over the ranks of the first data-parallel replica:
    each of them must exhaust the iterator; the other replicas hold the same weights and return at once, context ranks
    after the first once the owners are known. ``select`` picks what is exported of a parameter: its weight,
    or its gradient in tests and diagnostics. One whole tensor is in memory at a time.
    """
    if groups.data_rank != 0:
        return
    chunks = [model] if isinstance(model, QwenVLModel) else list(model)
    first = chunks[0]
    rows = [row for row in model_rows(first).values() if row.exported]
    mine = {name: parameter for chunk in chunks for name, parameter in global_parameters(chunk)}
    owners = _owners(rows, mine, groups)
    if groups.context_rank != 0:
        return
    for row, owner in zip(rows, owners, strict=True):
        tensors: list[tuple[str, torch.Tensor]] = []
        if groups.pipeline_rank == owner:
            shards = _all_shards(select(mine[row.megatron]), row, groups)
            if groups.tensor_rank == 0:
                tensors = to_hf(row, shards)
                if owner != 0:
                    for _, tensor in tensors:
                        dist.send(_as_bytes(tensor), groups.model_ranks[0], group=groups.model_control)
        if groups.is_controller:
            if owner != 0:
                source, dtype = _stage_leader(owner, groups), _row_dtype(first, select)
                tensors = [
                    (name, _receive(shape, dtype, source, groups))
                    for name, shape in zip(row.hf, row.shapes, strict=True)
                ]
            yield from tensors


def _stage_leader(stage: int, groups: Groups) -> int:
    """Global rank of tensor and context rank 0 of ``stage`` in this replica: model ranks come stage by stage."""
    per_stage = len(groups.model_ranks) // groups.pipeline_size
    return groups.model_ranks[stage * per_stage]


def _row_dtype(model: QwenVLModel, select: Select) -> torch.dtype:
    return select(next(model.parameters())).dtype


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Gloo knows no bfloat16 on every build; bytes are exact and always known."""
    return tensor.contiguous().cpu().reshape(-1).view(torch.uint8)


def _receive(shape: tuple[int, ...], dtype: torch.dtype, source: int, groups: Groups) -> torch.Tensor:
    buffer = torch.empty(torch.Size(shape).numel() * dtype.itemsize, dtype=torch.uint8)
    dist.recv(buffer, source, group=groups.model_control)
    return buffer.view(dtype).reshape(shape)
