"""The window plan equals transformers' window index and boundaries; small ones are worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from model_providers.qwen_vl.shape import VisionShape, read_shape
from model_providers.qwen_vl.vision import plan_windows
from tests.unit.model_providers.reference import make_checkpoint

Grid = tuple[int, int, int]


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> VisionShape:
    return read_shape(make_checkpoint(tmp_path_factory.mktemp("policy"), tied=False)).vision


GRIDS: list[list[Grid]] = [
    [(1, 2, 2)],
    [(1, 8, 8)],
    [(1, 6, 10)],
    [(1, 2, 40), (1, 14, 2)],
    [(1, 10, 6), (1, 2, 2), (1, 4, 4), (1, 22, 18)],
    [(3, 6, 10), (2, 4, 4)],
]


@pytest.mark.parametrize("window_size", [56, 112])
@pytest.mark.parametrize("grids", GRIDS)
def test_equals_transformers(vision: VisionShape, grids: list[Grid], window_size: int) -> None:
    from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

    grid_thw = torch.tensor(grids)
    plan = plan_windows(grids, dataclasses.replace(vision, window_size=window_size))
    index, boundaries = get_vision_window_index(grid_thw, 2, window_size, vision.patch_size)
    assert torch.equal(plan.order_M, index)
    assert torch.equal(plan.window_lengths.cumsum(0), boundaries[1:].long())
    positions = get_vision_position_ids(grid_thw, 2)
    assert torch.equal(torch.stack((plan.rows_L, plan.columns_L), dim=1), positions)
    assert torch.equal(plan.frame_lengths.cumsum(0), get_vision_cu_seqlens(grid_thw)[1:].long())


def test_by_hand(vision: VisionShape) -> None:
    """3 x 3 merged patches in windows of 2 x 2: four windows of 4, 2, 2 and 1 merged patches of 4."""
    plan = plan_windows([(1, 6, 6)], vision)
    assert plan.order_M.tolist() == [0, 1, 3, 4, 2, 5, 6, 7, 8]
    assert plan.window_lengths.tolist() == [16, 8, 8, 4]
    assert plan.frame_lengths.tolist() == [36]
    assert plan.rows_L[:8].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert plan.columns_L[:8].tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
