"""Packed microbatches of this rank, and Megatron's pipeline schedule over them.

Shape suffixes: T packed tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_apo.data.packing import build_microbatch
from megatron_apo.parallel.context import cut_microbatch
from megatron_apo.parallel.groups import Groups
from megatron_apo.parallel.sequences import response_sequences
from megatron_apo.records import Microbatch, PromptImage, TrainingSample
from megatron_apo.training.forward_step import HeadSettings, scoring_step
from model_providers.qwen_vl.megatron_config import BuildSettings
from model_providers.qwen_vl.mrope import mrope_position_ids
from model_providers.qwen_vl.shape import QwenVLShape


def pack_microbatch(
    samples: Sequence[TrainingSample],
    indices: Sequence[int],
    shape: QwenVLShape,
    settings: BuildSettings,
    groups: Groups,
    *,
    pixel_values: Callable[[PromptImage], torch.Tensor],
    sequence_multiple: int = 1,
) -> Microbatch:
    """``samples[i]`` for i in ``indices``, packed, padded as the layout asks for and cut over the context ranks.

    ``pixel_values`` gives an image's patches; it is asked on the first stage only. Every sequence is padded to a
    multiple of ``sequence_multiple`` tokens besides. ValueError for a prompt that does not match its images, by its id.
    """
    merge = shape.vision.spatial_merge_size

    def position_ids(sample: TrainingSample) -> torch.Tensor:
        try:
            return mrope_position_ids(
                sample.prompt_ids,
                len(sample.response_ids),
                [image.grid_thw for image in sample.images],
                shape.vision_tokens,
                [image.seconds_per_grid for image in sample.images],
            )
        except ValueError as error:
            raise ValueError(f"prompt {sample.prompt_id!r}: {error}") from error

    whole = build_microbatch(
        samples,
        indices,
        position_ids=position_ids,
        pixel_values=pixel_values,
        vision_token_ids=(shape.image_token_id, shape.video_token_id),
        spatial_merge_size=merge,
        with_pixels=groups.first_stage,
        device=groups.device,
        align=groups.context_size * (groups.tensor_size if settings.sequence_parallel else 1),
        sequence_multiple=sequence_multiple * (2 * groups.context_size if groups.context_size > 1 else 1),
    )
    return cut_microbatch(whole, groups.context_rank, groups.context_size, spatial_merge_size=merge)


def run_schedule(
    model: list[Any], step: Callable[..., Any], batches: Sequence[Microbatch], *, forward_only: bool = False
) -> list[dict[str, torch.Tensor]]:
    """What ``step``'s loss functions collected of each microbatch; an empty list on stages before the last."""
    collected: list[dict[str, torch.Tensor]] = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=[iter(batches) for _ in model] if len(model) > 1 else iter(batches),
        model=model,
        num_microbatches=len(batches),
        seq_length=max(len(batch.input_ids_T) for batch in batches),  # only read when shapes are fixed
        micro_batch_size=1,
        forward_only=forward_only,
    )
    return collected


def score_microbatches(
    model: list[Any], batches: Sequence[Microbatch], head: HeadSettings, groups: Groups
) -> list[torch.Tensor] | None:
    """Log-probabilities [T] of each microbatch, 0 outside responses; None on stages before the last."""
    with torch.no_grad():
        collected = run_schedule(model, scoring_step(head, groups), batches, forward_only=True)
    if not groups.last_stage:
        return None
    spread = []
    for batch, item in zip(batches, collected, strict=True):
        logprobs_T = torch.zeros_like(batch.policy_weights_T)
        logprobs_T[batch.response_mask_T] = item["logprobs_R"].to(logprobs_T.dtype)
        spread.append(logprobs_T)
    return spread


def response_places(batch: Microbatch, samples: Sequence[TrainingSample]) -> tuple[torch.Tensor, torch.Tensor]:
    """(index into ``samples``, position in its response) of this rank's response tokens, int64 [R] each, on the CPU.

    R response tokens, in the order of ``response_mask_T``.
    """
    sequences_R, places_R = response_sequences(batch)
    sequences_R = sequences_R.cpu()
    starts = batch.cu_seqlens.long().cpu()
    prompts = torch.tensor([len(samples[index].prompt_ids) for index in batch.sample_indices], dtype=torch.int64)
    indices = torch.tensor(batch.sample_indices, dtype=torch.int64)
    return indices[sequences_R], places_R.cpu() - starts[sequences_R] - prompts[sequences_R] + 1
