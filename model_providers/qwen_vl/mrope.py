"""Multimodal rotary positions (time, height, width) of a prompt with images and videos, continued as text.

Qwen2.5-VL (arXiv:2502.13923, section 2.1.2): a text token advances all three positions by one; the merged patches of an
image share the time position, and spread over height and width from where the text stopped; those of a video spread
over time too, by seconds (in Qwen2-VL, arXiv:2409.12191, by temporal patches). The text goes on after the largest
position the image or video used, as it did in the models' training.

Shape suffix: L tokens of one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from model_providers.qwen_vl.shape import VisionTokens

Grid = tuple[int, int, int]


def _check(grid: Grid, seconds: float, number: int, tokens: VisionTokens) -> None:
    merge = tokens.spatial_merge_size
    if min(grid) < 1 or grid[1] % merge or grid[2] % merge:
        raise ValueError(
            f"image {number}: grid {grid} of patches (time, height, width) must be positive, and height and width "
            f"multiples of {merge}, the spatial merge"
        )
    if not 0.0 <= seconds < float("inf"):
        raise ValueError(f"image {number}: seconds_per_grid={seconds} must be above 0 for a video, 0 for a still image")
    if grid[0] > 1 and not seconds:
        raise ValueError(
            f"image {number}: grid {grid} has {grid[0]} temporal patches but seconds_per_grid is 0; give the seconds "
            "from one to the next (second_per_grid_ts), without which a video has no time"
        )


def _vision_positions(grid: Grid, seconds: float, start: int, tokens: VisionTokens) -> torch.Tensor:
    merge = tokens.spatial_merge_size
    time, height, width = grid[0], grid[1] // merge, grid[2] // merge
    # Seconds come as float32 from the processors; the product is in double precision and cut, as vLLM does it.
    step = float(np.float32(seconds)) * tokens.tokens_per_second if seconds and tokens.tokens_per_second else 1.0
    moments = (torch.arange(time, dtype=torch.float64) * step).long()
    axes = torch.meshgrid(moments, torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack(axes).reshape(3, -1) + start


def _fill_prompt(
    positions_3L: torch.Tensor, ids: np.ndarray, grids: Sequence[Grid], seconds: Sequence[float], tokens: VisionTokens
) -> int:
    """Writes the positions of the prompt ``ids`` [prompt tokens], and returns the one that follows it."""
    placeholders = (tokens.image_token_id, tokens.video_token_id)
    runs = np.flatnonzero((ids == placeholders[0]) | (ids == placeholders[1]))
    position = index = 0

    def write_text(end: int) -> None:
        nonlocal position, index
        positions_3L[:, index:end] = torch.arange(position, position + end - index)
        position, index = position + end - index, end

    for image, grid in enumerate(grids):
        following = np.searchsorted(runs, index)
        if following == len(runs):
            raise ValueError(f"the prompt has placeholders for {image} images but {len(grids)} images came with it")
        write_text(int(runs[following]))
        _check(grid, seconds[image], image, tokens)
        block = _vision_positions(grid, seconds[image], position, tokens)
        end, placeholder = index + block.shape[1], placeholders[bool(seconds[image])]
        if end > len(ids) or (ids[index:end] != placeholder).any():
            raise ValueError(
                f"{'video' if seconds[image] else 'image'} {image} with grid {grid} needs {block.shape[1]} "
                f"placeholder tokens from token {index} on (id {placeholder})"
            )
        positions_3L[:, index:end] = block
        position, index = int(block.max()) + 1, end
    following = np.searchsorted(runs, index)
    if following < len(runs):
        raise ValueError(
            f"the prompt has more image placeholder runs than its {len(grids)} images; token {runs[following]} "
            "starts one"
        )
    write_text(len(ids))
    return position


def mrope_position_ids(
    prompt_ids: Sequence[int],
    response_length: int,
    grids: Sequence[Grid],
    tokens: VisionTokens,
    seconds_per_grid: Sequence[float] | None = None,
) -> torch.Tensor:
    """Position ids, int64 [3, L], of ``prompt_ids`` followed by ``response_length`` response tokens.

    Only the prompt is searched for placeholders: a sampled image token is text. ``grids`` count patches (time,
    height, width) before the spatial merge, of images and videos in the prompt's order; ``seconds_per_grid`` are the
    seconds between a video's temporal patches, 0 for a still image (default: no videos). Raises ValueError when
    placeholders and grids do not match, or a video has no seconds. Nothing is kept from one call to the next.
    """
    given = tuple((int(t), int(h), int(w)) for t, h, w in grids)
    seconds = (0.0,) * len(given) if seconds_per_grid is None else tuple(map(float, seconds_per_grid))
    if len(seconds) != len(given):
        raise ValueError(f"{len(given)} grids but {len(seconds)} seconds_per_grid; give one for each, 0 for an image")
    ids = np.asarray(prompt_ids, dtype=np.int64)
    positions = torch.empty(3, len(ids) + response_length, dtype=torch.int64)
    following = _fill_prompt(positions, ids, given, seconds, tokens)
    positions[:, len(ids) :] = torch.arange(following, following + response_length)
    return positions
