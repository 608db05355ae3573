"""Positions of videos equal those of vLLM's own models, which sample the responses that are trained on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_apo.rollout.vllm.environment import prepare_environment
from model_providers.qwen_vl.mrope import mrope_position_ids
from model_providers.qwen_vl.shape import VisionTokens

IMAGE, VIDEO, START, END = 290, 291, 292, 293


def vllm_class(tokens_per_second: int) -> Any:
    """The model of the family that counts so many positions a second."""
    prepare_environment()
    from vllm.model_executor.models import qwen2_5_vl, qwen2_vl

    if tokens_per_second:
        return qwen2_5_vl.Qwen2_5_VLForConditionalGeneration
    return qwen2_vl.Qwen2VLForConditionalGeneration


def feature(grid: tuple[int, int, int], seconds: float, offset: int, *, timed: bool) -> Any:
    def data(value: Any) -> Any:
        return SimpleNamespace(data=torch.tensor(value))

    kind = "video" if seconds else "image"
    fields = {f"{kind}_grid_thw": data(grid)} | ({"second_per_grid_ts": data(seconds)} if seconds and timed else {})
    return SimpleNamespace(modality=kind, data=fields, mm_position=SimpleNamespace(offset=offset))


@pytest.mark.parametrize("tokens_per_second", [0, 2])
@pytest.mark.parametrize("seconds", [0.1, 0.7, 2 / 3, 1.0, 1.3, 7.5])
def test_long_and_short_videos(tokens_per_second: int, seconds: float) -> None:
    visuals = [((9, 4, 6), seconds), ((1, 8, 2), 0.0), ((2, 2, 40), 1.0)]
    ids, features = [1, 2, 3], []
    for (t, h, w), each in visuals:
        ids.append(START)
        features.append(feature((t, h, w), each, len(ids), timed=bool(tokens_per_second)))
        ids += [*[VIDEO if each else IMAGE] * (t * h * w // 4), END, 7]
    vision = SimpleNamespace(spatial_merge_size=2)
    if tokens_per_second:  # Qwen2-VL's config and processor know nothing of seconds
        vision.tokens_per_second = tokens_per_second
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    known = vllm_class(tokens_per_second)
    model.iter_mm_grid_thw = lambda features: known.iter_mm_grid_thw(model, features)
    expected, _ = known.get_mrope_input_positions(model, ids, features)
    grids, lengths = zip(*visuals, strict=True)
    tokens = VisionTokens(IMAGE, VIDEO, 2, tokens_per_second)
    assert torch.equal(mrope_position_ids(ids, 0, grids, tokens, lengths), expected)
