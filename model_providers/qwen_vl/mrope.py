"""Multimodal rotary positions (time, height, width) of a prompt with images, continued as text by its response.

Qwen2.5-VL (arXiv:2502.13923, section 2.1.2): a text token advances all three positions by one; an image's merged
patches share the time position, and spread over height and width from where the text stopped; the text goes on after
the largest position the image used.

Shape suffix: L tokens of one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch


def _image_positions(grid: tuple[int, int, int], start: int, merge: int) -> torch.Tensor:
    time, height, width = grid[0], grid[1] // merge, grid[2] // merge
    axes = torch.meshgrid(torch.arange(time), torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack(axes).reshape(3, -1) + start


@lru_cache(maxsize=4096)
def _prompt_positions(
    prompt_ids: tuple[int, ...], grids: tuple[tuple[int, int, int], ...], image_token_id: int, merge: int
) -> tuple[torch.Tensor, int]:
    pieces: list[torch.Tensor] = []
    position = index = image = 0
    while index < len(prompt_ids):
        if prompt_ids[index] == image_token_id:
            if image == len(grids):
                raise ValueError(
                    f"the prompt has more image placeholder runs than its {len(grids)} images; token {index} starts one"
                )
            grid = grids[image]
            block = _image_positions(grid, position, merge)
            if prompt_ids[index : index + block.shape[1]] != (image_token_id,) * block.shape[1]:
                raise ValueError(
                    f"image {image} with grid {grid} needs {block.shape[1]} placeholder tokens from token {index} on"
                )
            pieces.append(block)
            position += max(grid[1], grid[2]) // merge
            index += block.shape[1]
            image += 1
        else:
            end = index
            while end < len(prompt_ids) and prompt_ids[end] != image_token_id:
                end += 1
            pieces.append((torch.arange(end - index) + position).expand(3, -1))
            position += end - index
            index = end
    if image != len(grids):
        raise ValueError(f"the prompt has placeholders for {image} images but {len(grids)} images came with it")
    positions = torch.cat(pieces, dim=1) if pieces else torch.zeros(3, 0, dtype=torch.int64)
    return positions, position


def mrope_position_ids(
    prompt_ids: Sequence[int],
    response_length: int,
    image_grids: Sequence[tuple[int, int, int]],
    *,
    image_token_id: int,
    spatial_merge_size: int,
) -> torch.Tensor:
    """Position ids, int64 [3, L], of ``prompt_ids`` followed by ``response_length`` response tokens.

    Only the prompt is searched for placeholders: a sampled image token is text. ``image_grids`` count patches (time,
    height, width) before the spatial merge. Raises ValueError when placeholders and images do not match.
    """
    grids = tuple((int(t), int(h), int(w)) for t, h, w in image_grids)
    prompt, following = _prompt_positions(tuple(prompt_ids), grids, image_token_id, spatial_merge_size)
    response = (torch.arange(response_length) + following).expand(3, -1)
    return torch.cat((prompt, response), dim=1)
