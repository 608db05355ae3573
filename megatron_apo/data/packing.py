"""From the samples of a microbatch to the packed (THD) tensors the model takes.

Shape suffixes: T packed tokens, N packed sequences, K image tokens, L patches, C values per patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from megatron_apo.data.costs import ImageKey, image_key
from megatron_apo.records import Microbatch, PromptImage, TrainingSample

_PADDING_TOKEN = 0  # any id of the vocabulary: its position carries no weight and nothing attends to it


def packed_lengths(real_lengths: np.ndarray, *, align: int = 1, sequence_multiple: int = 1) -> np.ndarray:
    """Tokens of each packed sequence with its padding, and of the tail's where there is one: their sum is computed.

    Each sequence is padded to a multiple of ``sequence_multiple``, their sum to one of ``align`` too; without sequences
    there is such padding alone.
    """
    lengths = real_lengths + -real_lengths % sequence_multiple
    total, align = int(lengths.sum()), math.lcm(align, sequence_multiple)
    padding = (-total) % align if total else align
    return np.append(lengths, padding) if padding else lengths


def build_microbatch(
    samples: Sequence[TrainingSample],
    indices: Sequence[int],
    *,
    position_ids: Callable[[TrainingSample], torch.Tensor],
    pixel_values: Callable[[PromptImage], torch.Tensor],
    vision_token_ids: Sequence[int],
    spatial_merge_size: int,
    with_pixels: bool = True,
    device: torch.device | str = "cpu",
    align: int = 1,
    sequence_multiple: int = 1,
) -> Microbatch:
    """Packs ``samples[i]`` for i in ``indices`` one after the other.

    ``position_ids(sample)`` gives int64 [3, length]; ``pixel_values(image)`` gives float32 [L, C], C perhaps as
    several axes, and is asked once for each different image or video and only ``with_pixels``; ``vision_token_ids``
    are their placeholders. Each sequence is padded at its end, where none of its tokens look, to a multiple of
    ``sequence_multiple`` tokens. The tail is padded until T is a multiple of ``align`` too: an extra sequence at the
    end of ``cu_seqlens``, without a sample index or weight. Without indices the result is such padding alone.
    ``image_positions_K`` and ``image_features_K`` are None when there is no image.
    Raises ValueError for a prompt whose image tokens do not match its images.
    """
    chosen = [samples[i] for i in indices]
    layout = _layout(chosen, align=align, sequence_multiple=sequence_multiple)
    ids = _packed_ids(chosen, layout)
    labels = np.zeros(layout.tokens, dtype=np.int64)
    labels[:-1] = ids[1:]
    labels[layout.ends - 1] = 0
    response_mask = np.zeros(layout.tokens, dtype=bool)
    response_mask[layout.predicting] = True

    def per_token(name: str) -> torch.Tensor:
        values = np.array([getattr(s, name) for s in chosen], dtype=np.float32)
        return _spread(np.repeat(values, layout.response_lengths), layout).to(device)

    position_ids_3T = _positions(chosen, layout, position_ids)
    image_positions, image_features, unique = _place_images(chosen, layout.starts, vision_token_ids, spatial_merge_size)
    pixels = torch.cat([pixel_values(image) for image in unique]).flatten(1) if unique and with_pixels else None
    return Microbatch(
        input_ids_T=torch.from_numpy(ids).to(device),
        position_ids_3T=position_ids_3T.to(device),
        labels_T=torch.from_numpy(labels).to(device),
        response_mask_T=torch.from_numpy(response_mask).to(device),
        cu_seqlens=torch.from_numpy(np.concatenate([[0], layout.ends]).astype(np.int32)).to(device),
        max_seqlen=int(layout.lengths.max()),
        sample_indices=tuple(indices),
        advantages_T=per_token("advantage"),
        policy_weights_T=per_token("policy_weight"),
        kl_token_weights_T=per_token("kl_token_weight"),
        kl_weights_T=per_token("kl_weight"),
        rollout_logprobs_T=_rollout_logprobs(chosen, layout).to(device),
        pixel_values_LC=None if pixels is None else pixels.to(device),
        image_grids=tuple(image.grid_thw for image in unique),
        image_positions_K=torch.from_numpy(image_positions).to(device) if unique else None,
        image_features_K=torch.from_numpy(image_features).to(device) if unique else None,
    )


@dataclass(frozen=True)
class _Layout:
    """Where each sample's tokens lie; arrays are int64.

    ``lengths``, ``starts`` and ``ends`` are of the packed sequences with their padding, and of a tail of padding at the
    end where there is one; the others of the samples alone.
    """

    real_lengths: np.ndarray
    response_lengths: np.ndarray
    lengths: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    predicting: np.ndarray  # every place that predicts a token of a response

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())


def _layout(chosen: Sequence[TrainingSample], *, align: int, sequence_multiple: int) -> _Layout:
    prompt_lengths = np.array([len(s.prompt_ids) for s in chosen], dtype=np.int64)
    response_lengths = np.array([len(s.response_ids) for s in chosen], dtype=np.int64)
    assert (prompt_lengths > 0).all(), "the first response token is predicted from the prompt's last"
    real_lengths = prompt_lengths + response_lengths
    lengths = packed_lengths(real_lengths, align=align, sequence_multiple=sequence_multiple)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    # Token t predicts token t + 1: the prompt's last token up to the response's last but one.
    predicting = _ranges(starts[: len(chosen)] + prompt_lengths - 1, response_lengths)
    return _Layout(real_lengths, response_lengths, lengths, starts, ends, predicting)


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """start, start + 1, … (count values) for each pair, one after the other; int64."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()), dtype=np.int64)


def _packed_ids(chosen: Sequence[TrainingSample], layout: _Layout) -> np.ndarray:
    """int64 [T]"""
    ids = np.full(layout.tokens, _PADDING_TOKEN, dtype=np.int64)
    if chosen:
        pieces = [np.array(piece, dtype=np.int64) for s in chosen for piece in (s.prompt_ids, s.response_ids)]
        ids[_ranges(layout.starts[: len(chosen)], layout.real_lengths)] = np.concatenate(pieces)
    return ids


def _positions(
    chosen: Sequence[TrainingSample], layout: _Layout, position_ids: Callable[[TrainingSample], torch.Tensor]
) -> torch.Tensor:
    """int64 [3, T]; a sequence's padding has 0, the tail counts from 0."""
    positions = [
        functional.pad(position_ids(s), (0, int(length - s.length)))
        for s, length in zip(chosen, layout.lengths, strict=False)  # without the tail's
    ]
    padding = int(layout.lengths[len(chosen) :].sum())
    if padding:
        positions.append(torch.arange(padding).expand(3, padding))
    position_ids_3T = torch.cat([p.to(torch.int64) for p in positions], dim=1)
    assert position_ids_3T.shape == (3, layout.tokens), (position_ids_3T.shape, layout.tokens)
    return position_ids_3T


def _spread(values: np.ndarray, layout: _Layout) -> torch.Tensor:
    """float32 [T]: a value for each response token, at the place that predicts it; 0 elsewhere."""
    spread = np.zeros(layout.tokens, dtype=np.float32)
    spread[layout.predicting] = values
    return torch.from_numpy(spread)


def _rollout_logprobs(chosen: Sequence[TrainingSample], layout: _Layout) -> torch.Tensor:
    """float32 [T]: each response token's log-probability at the position that predicts it; 0 where none is known."""
    values = [np.zeros(0, dtype=np.float32)]
    for sample, length in zip(chosen, layout.response_lengths, strict=True):
        assert len(sample.rollout_logprobs) in (0, length), (len(sample.rollout_logprobs), length)
        known = np.array(sample.rollout_logprobs, dtype=np.float32)
        values.append(known if len(known) else np.zeros(length, dtype=np.float32))
    return _spread(np.concatenate(values), layout)


def _place_images(
    chosen: Sequence[TrainingSample], starts: np.ndarray, vision_token_ids: Sequence[int], spatial_merge_size: int
) -> tuple[np.ndarray, np.ndarray, list[PromptImage]]:
    """(positions [K], feature rows [K], the different images in the order of their features).

    Only the prompts are searched for placeholders: a response that sampled one is text like any other.
    """
    unique: list[PromptImage] = []
    rows_of: dict[ImageKey, np.ndarray] = {}
    next_row = 0
    positions: list[np.ndarray] = []
    features: list[np.ndarray] = []
    for sample, start in zip(chosen, starts, strict=False):
        found = np.flatnonzero(np.isin(np.array(sample.prompt_ids, dtype=np.int64), vision_token_ids))
        expected = 0
        for image in sample.images:
            key = image_key(image)
            if key not in rows_of:
                merged = int(np.prod(image.grid_thw)) // spatial_merge_size**2
                rows_of[key] = np.arange(next_row, next_row + merged, dtype=np.int64)
                next_row += merged
                unique.append(image)
            features.append(rows_of[key])
            expected += len(rows_of[key])
        if len(found) != expected:
            names = ", ".join(image.path for image in sample.images) or "no image"
            raise ValueError(
                f"prompt has {len(found)} image tokens, its images ({names}) give {expected}; the prompt was made with "
                "another processor: use the same model.path and data settings"
            )
        positions.append(found + start)
    if not unique:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), []
    return np.concatenate(positions), np.concatenate(features), unique
