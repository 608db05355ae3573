"""Each context-parallel rank's share of a microbatch.

The model sees only this rank's tokens; labels, weights and log-probabilities are cut with them, so that the sums over
tokens of all context ranks are those of the whole microbatch. An image goes to the ranks that hold a token of it.

Shape suffixes: T packed tokens, K image tokens, L patches.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from megatron_apo.records import Microbatch
from model_providers.qwen_vl.context import context_rows

_PER_TOKEN = (
    *("input_ids_T", "labels_T", "response_mask_T", "advantages_T", "policy_weights_T", "kl_token_weights_T"),
    *("kl_weights_T", "rollout_logprobs_T", "old_logprobs_T", "ref_logprobs_T"),
)


def cut_microbatch(batch: Microbatch, rank: int, size: int, *, spatial_merge_size: int) -> Microbatch:
    """The share of context rank ``rank`` of ``size``; ``cu_seqlens`` and ``max_seqlen`` stay those of the whole.

    ``places_T`` says which packed position each of its tokens is. ValueError when a sequence was not padded to a
    multiple of 2 * ``size`` tokens.
    """
    if size == 1:
        return batch
    rows = context_rows(batch.cu_seqlens, rank, size)
    fields = {name: getattr(batch, name) for name in _PER_TOKEN}
    cut: dict[str, Any] = {name: None if tensor is None else tensor[rows] for name, tensor in fields.items()}
    images = _cut_images(batch, rows, spatial_merge_size)
    return replace(batch, **cut, **images, position_ids_3T=batch.position_ids_3T[:, rows], places_T=rows)


def _cut_images(batch: Microbatch, rows: torch.Tensor, spatial_merge_size: int) -> dict[str, Any]:
    """The images that one of ``rows`` shows, and where; features are counted again without the others."""
    if batch.image_positions_K is None or batch.image_features_K is None:
        return {}
    local_T = torch.full((len(batch.input_ids_T),), -1, dtype=torch.int64, device=rows.device)
    local_T[rows] = torch.arange(len(rows), device=rows.device)
    positions_K = local_T[batch.image_positions_K]
    here = positions_K >= 0
    positions_K, features_K = positions_K[here], batch.image_features_K[here]
    if not len(positions_K):
        return dict(pixel_values_LC=None, image_grids=(), image_positions_K=None, image_features_K=None)
    patches = torch.tensor([time * height * width for time, height, width in batch.image_grids], device=rows.device)
    image_of_feature = torch.arange(len(patches), device=rows.device).repeat_interleave(
        patches // spatial_merge_size**2
    )
    shown = torch.zeros(len(patches), dtype=torch.bool, device=rows.device)
    shown[image_of_feature[features_K]] = True
    kept_feature = shown[image_of_feature]
    new_row = kept_feature.cumsum(0) - 1
    pixels = batch.pixel_values_LC
    return dict(
        pixel_values_LC=None if pixels is None else pixels[shown.repeat_interleave(patches)],
        image_grids=tuple(grid for grid, keep in zip(batch.image_grids, shown.tolist(), strict=True) if keep),
        image_positions_K=positions_K,
        image_features_K=new_row[features_K],
    )
