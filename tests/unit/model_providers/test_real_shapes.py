"""The published sizes of both families, built without memory: every parameter and every name as transformers has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_apo.parallel.groups import Groups
from model_providers.qwen_vl.loading import global_parameters, model_rows
from model_providers.qwen_vl.megatron_config import BuildSettings
from model_providers.qwen_vl.model import QwenVLModel
from model_providers.qwen_vl.shape import read_shape
from model_providers.qwen_vl.weight_map import WeightRow, hf_names, published_name, to_hf, to_megatron

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
    return on_meta(name, one_process)


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
    """By shape, on one and on eight (or four) tensor ranks; the export cuts what they pad."""
    parameters = dict(global_parameters(ours))
    heads = ours.shape.heads
    for row in distinct_rows(ours):
        tensors = [torch.empty(shape, device="meta") for shape in row.shapes]
        assert to_megatron(row, tensors, 0, 1).shape == parameters[row.megatron].shape, row.megatron
        for ranks in (1, 8 if heads % 8 == 0 else 4):
            shards = [to_megatron(row, tensors, rank, ranks) for rank in range(ranks)]
            assert len({shard.shape for shard in shards}) == 1, row.megatron
            back = to_hf(row, shards)
            assert [(key, tuple(tensor.shape)) for key, tensor in back] == list(zip(row.hf, row.shapes, strict=True))


def distinct_rows(model: QwenVLModel) -> list[WeightRow]:
    """The rows of one layer of each tower, and those outside: all layers are alike."""
    rows = [row for row in model_rows(model).values() if row.exported]
    return [row for row in rows if ".layers." not in row.megatron or ".layers.0." in row.megatron]


def test_eight_tensor_ranks_pad_what_does_not_divide(one_process: Groups) -> None:
    """3420 is no multiple of 16, which FP8 asks for: 3424; the published shape remains."""
    model = on_meta("qwen2_5_vl_3b", one_process, vision_ffn_multiple=16)
    assert model.vision_model is not None
    assert model.vision_model.layers[0].mlp.linear_fc2.weight.shape == (1280, 3424)
    assert model.vision_model.layers[0].mlp.linear_fc1.weight.shape == (2 * 3424, 1280)
    row = model_rows(model)["vision_model.layers.0.mlp.linear_fc1.weight"]
    gate, up = torch.randn(3420, 1280), torch.randn(3420, 1280)
    shards = [to_megatron(row, [gate, up], rank, 8) for rank in range(8)]
    assert shards[0].shape == (2 * 428, 1280)
    for (_, back), tensor in zip(to_hf(row, shards), (gate, up), strict=True):
        assert torch.equal(back, tensor)
