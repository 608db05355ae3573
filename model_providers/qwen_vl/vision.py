"""The vision tower of both families from Megatron-Core's transformer layers: patches in, merged features out.

Qwen2.5-VL (arXiv:2502.13923, section 2.1.1): most layers attend within windows, a few over the whole image (a video:
over one frame); rotary positions are two-dimensional; a merger turns 2 x 2 patches into one token of the language
model. Qwen2-VL (arXiv:2409.12191, section 2.1): the same without windows; ``VisionShape`` says what else differs.

Shape suffixes: L patches, C values per patch, M merged patches, H vision width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from megatron.core import tensor_parallel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch.nn import functional

from model_providers.qwen_vl.layers import layer_spec, norm_class, packed_layout
from model_providers.qwen_vl.shape import VisionShape


@dataclass(frozen=True)
class WindowPlan:
    """How the patches of a batch of images are ordered and cut; built on the CPU from the grids alone.

    ``order_M`` sorts merged patches by window; ``window_lengths`` and ``frame_lengths`` are patches per window and per
    frame; ``rows_L`` and ``columns_L`` are each patch's position in its image, in the image processor's order.
    """

    order_M: torch.Tensor
    window_lengths: torch.Tensor
    frame_lengths: torch.Tensor
    rows_L: torch.Tensor
    columns_L: torch.Tensor


def plan_windows(grids: Sequence[tuple[int, int, int]], shape: VisionShape) -> WindowPlan:
    """Window order of images whose patch grids (time, height, width) are ``grids``.

    Windows tile the merged grid from its top left corner; those at the right and bottom edge may be smaller. Without
    windows a frame is one, and the order the images' own.
    """
    merge = shape.spatial_merge_size
    whole = max(max(height, width) for _, height, width in grids)
    side = shape.window_size // (merge * shape.patch_size) if shape.window_size else whole
    keys, rows, columns, frames = [], [], [], []
    frame_number = 0
    for time, height, width in grids:
        frame, row, column = torch.meshgrid(
            torch.arange(time), torch.arange(height // merge), torch.arange(width // merge), indexing="ij"
        )
        windows_across = -(-width // (merge * side))
        window = (row // side) * windows_across + column // side
        # One number per window, increasing with image, frame, window: frames are numbered across the whole batch.
        keys.append(torch.stack((frame + frame_number, window)).reshape(2, -1))
        frame_number += time
        frames += [height * width] * time
        inner_row, inner_column = torch.meshgrid(torch.arange(merge), torch.arange(merge), indexing="ij")
        rows.append((row.reshape(-1, 1) * merge + inner_row.reshape(1, -1)).reshape(-1))
        columns.append((column.reshape(-1, 1) * merge + inner_column.reshape(1, -1)).reshape(-1))
    frame_M, window_M = torch.cat(keys, dim=1)
    key_M = frame_M * (int(window_M.max()) + 1) + window_M
    order = torch.sort(key_M, stable=True).indices
    _, counts = torch.unique_consecutive(key_M[order], return_counts=True)
    return WindowPlan(order, counts * merge**2, torch.tensor(frames), torch.cat(rows), torch.cat(columns))


def _boundaries(lengths: torch.Tensor) -> torch.Tensor:
    return functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


class PatchMerger(MegatronModule):
    """Norm, then merge^2 neighbouring patches as one vector through Linear -> GELU -> Linear."""

    def __init__(
        self,
        config: TransformerConfig,
        shape: VisionShape,
        spec: str,
        pg_collection: ProcessGroupCollection,
    ) -> None:
        super().__init__(config=config)
        self.width = shape.hidden * shape.spatial_merge_size**2
        norm = norm_class(spec, shape.norm)
        self.norm = norm(config=config, hidden_size=shape.hidden, eps=config.layernorm_epsilon)
        common = {"config": config, "init_method": config.init_method, "bias": True, "tp_group": pg_collection.tp}
        self.linear_fc1 = ColumnParallelLinear(self.width, self.width, gather_output=False, **common)
        self.linear_fc2 = RowParallelLinear(
            self.width, shape.out_hidden, input_is_parallel=True, skip_bias_add=False, **common
        )

    def forward(self, hidden_LH: torch.Tensor) -> torch.Tensor:
        merged = self.norm(hidden_LH).reshape(-1, 1, self.width)
        inner, _ = self.linear_fc1(merged)
        out, _ = self.linear_fc2(functional.gelu(inner))
        return out.squeeze(1)


class VisionModel(MegatronModule):
    """Patches [L, C] of one or more images -> features [M, out_hidden] in the images' own order."""

    def __init__(
        self, config: TransformerConfig, shape: VisionShape, spec: str, pg_collection: ProcessGroupCollection
    ) -> None:
        super().__init__(config=config)
        self.shape = shape
        self.tp_group = pg_collection.tp
        self.patch_embed = torch.nn.Linear(shape.patch_values, shape.hidden, bias=False, dtype=config.params_dtype)
        one_layer = layer_spec(spec, AttnMaskType.no_mask, shape.norm)
        self.layers = torch.nn.ModuleList(
            build_module(one_layer, config=config, layer_number=number + 1, pg_collection=pg_collection)
            for number in range(shape.layers)
        )
        self.merger = PatchMerger(config, shape, spec, pg_collection)

    def _rotary_frequencies(self, plan: WindowPlan, device: torch.device) -> torch.Tensor:
        """Angles [L, 1, 1, head size] in the processor's patch order: rows turn the first half, columns the second."""
        quarter = self.shape.hidden // self.shape.heads // 4
        inverse = 1.0 / 10000.0 ** (torch.arange(quarter, dtype=torch.float32, device=device) / quarter)
        position_L2 = torch.stack((plan.rows_L, plan.columns_L), dim=1).to(device)
        half = (position_L2[:, :, None].float() * inverse).flatten(1)
        return torch.cat((half, half), dim=1)[:, None, None, :]

    def forward(self, patches_LC: torch.Tensor, grids: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        device = patches_LC.device
        plan = plan_windows(grids, self.shape)
        unit = self.shape.spatial_merge_size**2
        order = plan.order_M.to(device)
        patch_order = (order[:, None] * unit + torch.arange(unit, device=device)).reshape(-1)
        hidden = self.patch_embed(patches_LC.to(self.patch_embed.weight.dtype))[patch_order].unsqueeze(1)
        rotary = self._rotary_frequencies(plan, device)[patch_order]
        window_lengths, frame_lengths = plan.window_lengths, plan.frame_lengths
        if self.config.sequence_parallel:
            # Each rank's share is of whole merged patches; what fills the last one up attends to itself alone.
            filler = -len(order) % self.tp_group.size() * unit
            if filler:
                hidden = functional.pad(hidden, (0, 0, 0, 0, 0, filler))
                rotary = functional.pad(rotary, (0, 0, 0, 0, 0, 0, 0, filler))
                window_lengths, frame_lengths = (
                    functional.pad(x, (0, 1), value=filler) for x in (window_lengths, frame_lengths)
                )
            hidden = tensor_parallel.scatter_to_sequence_parallel_region(hidden, group=self.tp_group)
        windows = packed_layout(_boundaries(window_lengths).to(device), int(window_lengths.max()))
        frames = packed_layout(_boundaries(frame_lengths).to(device), int(frame_lengths.max()))
        for number, layer in enumerate(self.layers):
            layout = frames if number in self.shape.full_attention_layers else windows
            hidden = self._layer_forward(layer, hidden, rotary, layout)
        merged = self.merger(hidden.squeeze(1))
        if self.config.sequence_parallel:
            # What reads the features sends every rank their whole gradient: split it on the way back, no sum.
            merged = tensor_parallel.gather_from_sequence_parallel_region(
                merged, tensor_parallel_output_grad=False, group=self.tp_group
            )[: len(order)]
        return torch.empty_like(merged).index_copy(0, order, merged)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """For Megatron's checkpoints, which take what a plain ModuleList holds for whole on every tensor rank: here
        each layer says itself how it is cut."""
        state: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        for number, layer in enumerate(self.layers):
            cut = cast(TransformerLayer, layer)
            state |= cut.sharded_state_dict(f"{prefix}layers.{number}.", sharded_offsets, metadata)
        return state

    def _layer_forward(
        self, layer: torch.nn.Module, hidden: torch.Tensor, rotary: torch.Tensor, layout: PackedSeqParams
    ) -> torch.Tensor:
        def run(hidden: torch.Tensor) -> torch.Tensor:
            return layer(hidden_states=hidden, attention_mask=None, rotary_pos_emb=rotary, packed_seq_params=layout)[0]

        if self.config.recompute_granularity == "full" and self.training:
            return tensor_parallel.checkpoint(run, False, hidden)
        return run(hidden)
