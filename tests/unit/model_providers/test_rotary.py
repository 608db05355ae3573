"""Angles at positions in the tens of thousands: no matrix product, which TF32 would round; and transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_apo.parallel.groups import Groups
from model_providers.qwen_vl.rotary import MultimodalAngles
from model_providers.qwen_vl.vision import plan_windows
from tests.unit.model_providers.reference import build_model, config, make_checkpoint

SECTION = [16, 24, 24]
POSITIONS = torch.tensor([[0, 7, 2049, 20011, 40961, 127999], [0, 3, 4099, 30011, 65537, 100003],
                          [0, 1, 1025, 50021, 99991, 120011]])[:, None]  # fmt: skip


class NoProducts(TorchDispatchMode):
    """Fails at a matrix product; CUDA's may be in TF32, with 11 bits of each factor."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert str(func.overloadpacket) not in ("aten.mm", "aten.bmm", "aten.addmm", "aten.matmul"), func
        return func(*args, **(kwargs or {}))


def test_far_positions_by_hand() -> None:
    """Dimension i of the half turns by position * 1e6^(-2i/128); the first 16 by time, then height, then width."""
    with NoProducts():
        angles = MultimodalAngles(128, 1e6)(POSITIONS, SECTION)
    assert angles.shape == (6, 1, 1, 128) and angles.dtype == torch.float32
    for dimension in range(128):
        half = dimension % 64
        axis = 0 if half < 16 else 1 if half < 40 else 2
        exact = POSITIONS[axis, 0].double() * 1e6 ** (-half / 64)
        # Two roundings of float32, the frequency's and the product's, and those of the power.
        assert float(((angles[:, 0, 0, dimension] - exact).abs() / exact.clamp(min=1e-30)).max()) < 5e-7, dimension


def test_far_positions_as_transformers_has_them() -> None:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

    text = config(tied=True).text_config
    rotary: Callable[..., Any] = Qwen2_5_VLRotaryEmbedding(text)
    cosine, sine = rotary(torch.zeros(1), POSITIONS)
    section = text.rope_parameters["mrope_section"]
    angles = MultimodalAngles(cosine.shape[-1], text.rope_parameters["rope_theta"])(POSITIONS, section)[:, 0, 0]
    assert torch.equal(angles.cos(), cosine[0]) and torch.equal(angles.sin(), sine[0])


def test_the_model_uses_them(tmp_path: Path, one_process: Groups) -> None:
    model = build_model(make_checkpoint(tmp_path, tied=True), one_process)
    assert isinstance(model.language_model.rotary_pos_emb, MultimodalAngles)
    assert model.bfloat16().language_model.rotary_pos_emb.inv_freq.dtype == torch.float32
    with torch.device("meta"):
        assert MultimodalAngles(128, 1e6)(POSITIONS.cpu(), SECTION).device.type == "cpu"


@pytest.mark.parametrize("grid", [(1, 2, 400), (3, 300, 8)])
def test_angles_of_the_tower_are_no_matrix_product(tmp_path: Path, one_process: Groups, grid: Any) -> None:
    model = build_model(make_checkpoint(tmp_path, tied=True), one_process)
    assert model.vision_model is not None
    plan = plan_windows([grid], model.shape.vision)
    with NoProducts():
        angles = model.vision_model._rotary_frequencies(plan, torch.device("cpu"))[:, 0, 0]
    quarter = angles.shape[-1] // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    exact = torch.cat((plan.rows_L[:, None] * frequencies, plan.columns_L[:, None] * frequencies), dim=1)
    torch.testing.assert_close(angles[:, : 2 * quarter].double(), exact, rtol=5e-7, atol=1e-30)
