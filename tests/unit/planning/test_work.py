"""FLOPs from the shape against those that torch counts in transformers' own model."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megatron_apo.config import ModelConfig
from megatron_apo.planning.work import forward_costs, training_costs
from model_providers.qwen_vl.shape import QwenVLShape, read_shape
from tests.unit.model_providers.reference import config

GRIDS = [(1, 8, 8), (1, 6, 10), (1, 2, 40), (3, 4, 10)]


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen2_vl"])
def shape_and_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    from transformers import AutoModelForImageTextToText

    settings = config(tied=False, family=request.param)
    directory: Path = tmp_path_factory.mktemp(request.param)
    settings.save_pretrained(directory)
    return read_shape(directory), AutoModelForImageTextToText.from_config(settings, attn_implementation="eager").eval()


def flops(run) -> int:  # type: ignore[no-untyped-def]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("tokens", [7, 120])
def test_a_sequence(tokens: int, shape_and_model) -> None:  # type: ignore[no-untyped-def]
    """Attention is counted whole there, not the causal half; every token has logits there."""
    shape, model = shape_and_model
    costs = forward_costs(shape)
    expected = (costs.per_token + costs.per_response_token) * tokens + costs.per_pair * tokens**2
    assert flops(lambda: model(input_ids=torch.zeros(1, tokens, dtype=torch.int64))) == expected


@pytest.mark.parametrize("grid", GRIDS)
def test_an_image(grid: tuple[int, int, int], shape_and_model) -> None:  # type: ignore[no-untyped-def]
    """The patch embedding is a convolution there, which is counted alike."""
    shape, model = shape_and_model
    patches = torch.randn(grid[0] * grid[1] * grid[2], shape.vision.patch_values)
    found = flops(lambda: model.model.visual(patches, torch.tensor([grid])))
    assert found == pytest.approx(forward_costs(shape).image(grid), rel=1e-9)


def test_what_an_update_adds(shape_and_model) -> None:  # type: ignore[no-untyped-def]
    """Forward and twice that back; the head makes its logits once more. A frozen tower goes forward only."""
    shape: QwenVLShape = shape_and_model[0]
    forward, plain = forward_costs(shape), training_costs(shape, ModelConfig())
    ratios = [a / b if b else 1 for a, b in zip(astuple(plain), astuple(forward), strict=True)]
    windows = 3 if forward.per_window_pair else 1
    assert ratios == [3, 4, 3, 3, windows, 3, 1]
    frozen = training_costs(shape, ModelConfig(freeze_vision=True, recompute="full"), extra_forward=1)
    assert frozen.per_patch == 2 * forward.per_patch and frozen.per_frame_pair == 2 * forward.per_frame_pair
    assert frozen.per_token == 5 * forward.per_token and frozen.per_response_token == 5 * forward.per_response_token
    selective = training_costs(shape, ModelConfig(recompute="selective"))
    assert replace(selective, per_pair=0, per_window_pair=0, per_frame_pair=0) == replace(
        plain, per_pair=0, per_window_pair=0, per_frame_pair=0
    )
    assert selective.per_pair == 4 * forward.per_pair and selective.per_frame_pair == 4 * forward.per_frame_pair
    language = training_costs(shape, ModelConfig(freeze_language=True))
    assert language.per_token == 2 * forward.per_token and language.per_pair == 3 * forward.per_pair
