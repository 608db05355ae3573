"""The published sizes of both families, built without memory: every parameter and every name as transformers has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_apo.config import ModelConfig
from megatron_apo.parallel.groups import Groups
from model_providers.qwen_vl.layout import VISION_FFN_MULTIPLE
from model_providers.qwen_vl.loading import global_parameters, model_rows
from model_providers.qwen_vl.megatron_config import BuildSettings
from model_providers.qwen_vl.model import QwenVLModel
from model_providers.qwen_vl.shape import read_shape
from model_providers.qwen_vl.weight_map import WeightRow, hf_names, published_name, to_hf, to_megatron, weight_map

PUBLISHED = Path(__file__).resolve().parents[2] / "fixtures" / "published"
MODELS = sorted(path.name for path in PUBLISHED.iterdir())


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def of_transformers(name: str) -> dict[str, torch.Size]:
    """Shapes of transformers' own parameters, by the names in memory."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(PUBLISHED / name / "flat")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    return {key: parameter.shape for key, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def ours(name: str, one_process: Groups) -> QwenVLModel:
    """As published: nothing padded."""
    return on_meta(name, one_process, vision_ffn_multiple=1)


def on_meta(name: str, groups: Groups, **settings: Any) -> QwenVLModel:
    with torch.device("meta"):
        return QwenVLModel(
            read_shape(PUBLISHED / name / "flat"),
            BuildSettings(dtype=torch.bfloat16, default_device=True, **settings),
            pg_collection=groups.collection,
        )


def test_both_generations_of_the_config_give_one_shape(name: str) -> None:
    assert read_shape(PUBLISHED / name / "flat") == read_shape(PUBLISHED / name / "nested")


def test_parameter_count(name: str, of_transformers: dict[str, torch.Size], ours: QwenVLModel) -> None:
    assert all(parameter.is_meta for parameter in ours.parameters())
    count = sum(parameter.numel() for parameter in ours.parameters())
    print(f"\n{name}: {count:,} parameters")
    assert count == sum(shape.numel() for shape in of_transformers.values())


def test_names_of_both_generations(name: str, of_transformers: dict[str, torch.Size], ours: QwenVLModel) -> None:
    """In memory: model.visual., model.language_model.; published: visual., model.; one set, each with its shape."""
    expected = {published_name(key): tuple(shape) for key, shape in of_transformers.items()}
    assert len(expected) == len(of_transformers)
    assert {published_name(key) for key in expected} == set(expected)  # a published name stays as it is
    rows = [row for row in model_rows(ours).values() if row.exported]
    assert {key: shape for row in rows for key, shape in zip(row.hf, row.shapes, strict=True)} == expected
    assert ("lm_head.weight" in hf_names(ours.shape)) is not ours.shape.tied
    assert {key for key, _ in global_parameters(ours)} == {row.megatron for row in rows}
    tops = {key.split(".")[0] + "." + key.split(".")[1] for key in expected if key != "lm_head.weight"}
    assert tops == {"model.embed_tokens", "model.layers", "model.norm", "visual.patch_embed", "visual.blocks",
                    "visual.merger"}  # fmt: skip


def test_every_tensor_goes_there_and_back(ours: QwenVLModel) -> None:
    """By shape, on one and on eight tensor ranks with the vision FFN padded; the export cuts the padding."""
    padded = {row.megatron: row for row in weight_map(ours.shape)}
    parameters = dict(global_parameters(ours))
    heads = ours.shape.heads
    for row in distinct_rows(ours):
        tensors = [torch.empty(shape, device="meta") for shape in row.shapes]
        assert to_megatron(row, tensors, 0, 1).shape == parameters[row.megatron].shape, row.megatron
        for ranks in (1, 8 if heads % 8 == 0 else 4):
            shards = [to_megatron(padded[row.megatron], tensors, rank, ranks) for rank in range(ranks)]
            assert len({shard.shape for shard in shards}) == 1, row.megatron
            back = to_hf(padded[row.megatron], shards)
            assert [(key, tuple(tensor.shape)) for key, tensor in back] == list(zip(row.hf, row.shapes, strict=True))


def distinct_rows(model: QwenVLModel) -> list[WeightRow]:
    """The rows of one layer of each tower, and those outside: all layers are alike."""
    rows = [row for row in model_rows(model).values() if row.exported]
    return [row for row in rows if ".layers." not in row.megatron or ".layers.0." in row.megatron]


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_every_layout_has_one_width_and_columns_for_fp8(name: str, ours: QwenVLModel, ranks: int) -> None:
    """FP8 asks for a multiple of 16 on each rank; 3420 becomes 3456 everywhere, 3456 and 5120 stay."""
    ffn = ours.shape.vision.ffn
    width = 3456 if ffn == 3420 else ffn
    rows = {row.megatron: row for row in weight_map(ours.shape)}
    for module in ("linear_fc1.weight", "linear_fc1.bias", "linear_fc2.weight"):
        row = rows[f"vision_model.layers.0.mlp.{module}"]
        tensors = [torch.randn(shape) for shape in row.shapes]
        shards = [to_megatron(row, tensors, rank, ranks) for rank in range(ranks)]
        parts = len(tensors) if row.cut == 0 else 1
        assert {shard.shape[row.cut] for shard in shards} == {parts * width // ranks}
        assert width // ranks % 16 == 0
        for (_, back), tensor in zip(to_hf(row, shards), tensors, strict=True):
            assert torch.equal(back, tensor)


def test_the_model_is_built_with_the_padded_width(name: str, ours: QwenVLModel, one_process: Groups) -> None:
    """Nothing but the vision FFN differs from what is published."""
    built = dict(on_meta(name, one_process).named_parameters())
    rows = {row.megatron: row for row in weight_map(ours.shape)}
    for key, parameter in ours.named_parameters():
        row, shape = rows[key], list(parameter.shape)
        if row.padded_to and row.cut is not None:
            shape[row.cut] += (len(row.hf) if row.cut == 0 else 1) * (-ours.shape.vision.ffn % row.padded_to)
        assert list(built[key].shape) == shape, key


def test_the_settings_say_the_same_width() -> None:
    """The settings know nothing of the providers, and so repeat the number."""
    assert ModelConfig().vision_ffn_multiple == BuildSettings().vision_ffn_multiple == VISION_FFN_MULTIPLE
