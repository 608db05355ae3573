"""Layouts that cannot hold a model are refused, with every factor and every size told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from model_providers.qwen_vl.layout import (
    Divided,
    Layout,
    check_chunk,
    check_group_sizes,
    check_layout,
    stage_layers,
)

MODEL = Divided(
    layers=2,
    heads=4,
    kv_heads=2,
    head_size=32,
    ffn=184,
    vocab=301,
    vision_heads=2,
    vision_merger=256,
    vision_ffn=100,
)


def refusal(layout: Layout, model: Divided = MODEL) -> str:
    with pytest.raises(ValueError) as error:
        check_layout(layout, model)
    return str(error.value)


def test_a_possible_layout_gives_the_data_ranks() -> None:
    assert check_layout(Layout(8, tensor=2, pipeline=2), MODEL) == 2
    assert check_layout(Layout(8, tensor=2, context=2), MODEL) == 2
    four = replace(MODEL, vision_heads=4, layers=3)  # twice as many tensor ranks as key-value heads
    assert check_layout(Layout(8, tensor=4, sequence=True), four) == 2


def test_every_factor_and_every_size_is_told() -> None:
    layout = Layout(
        6,
        tensor=3,
        sequence=True,
        pipeline=2,
        virtual_pipeline=2,
        first_stage_layers=1,
        context=1,
        vision_ffn_multiple=16,
    )
    assert refusal(layout) == (
        "layout: tensor 3 × pipeline 2 × context 1 × data 1 = world 6, sequence true, virtual_pipeline 2, "
        "first_stage_layers 1, vision_ffn_multiple 16: heads 4 is not a multiple of tensor 3; ffn 184 is not a "
        "multiple of tensor 3; qkv rows 256 is not a multiple of tensor 3; vision heads 2 is not a multiple of tensor "
        "3; vision merger 256 is not a multiple of tensor 3; vision ffn 100 padded to 112 is not a multiple of tensor "
        "3; kv_heads 2 is neither a multiple of tensor 3 nor a divisor of it; a stage of 1 + 1 layers is not a "
        "multiple of virtual_pipeline 2 (divisible by tensor 3: heads 4 no, ffn 184 no, qkv rows 256 no, vision heads "
        "2 no, vision merger 256 no, vision ffn 100 padded to 112 no, kv_heads 2 no; padded until it is: vocabulary "
        "301; dealt out: layers 2); change the parallel settings or the number of processes"
    )
    for told in ("heads 4 yes, ffn 184 yes", "vision heads 2 no, vision merger 256 yes", "kv_heads 2 yes"):
        assert told in refusal(Layout(4, tensor=4))


@pytest.mark.parametrize(
    ("layout", "model", "messages"),
    [
        (
            Layout(6, tensor=2, pipeline=2),
            {"heads": 5, "kv_heads": 3, "layers": 3},
            [
                "tensor 2 × pipeline 2 × context 1 × data ? = world 6",
                "world 6 is not a multiple of tensor × pipeline × context = 4",
                "heads 5 is not a multiple of tensor 2",
                "kv_heads 3 is neither a multiple of tensor 2 nor a divisor of it",
                "layers 3 is not a multiple of pipeline 2",
            ],
        ),
        (Layout(8, tensor=2, pipeline=2), {"layers": 3}, ["data 2 = world 8", "layers 3"]),
        (Layout(6, context=4), {}, ["world 6 is not a multiple of tensor × pipeline × context = 4"]),
        (Layout(1, sequence=True), {}, ["sequence true needs tensor above 1"]),
        (Layout(0), {}, ["data 0 = world 0", "world 0 must be at least 1"]),
        (Layout(2, tensor=0, context=-1), {}, ["data ? =", "tensor 0 must be at least 1; context -1 must be"]),
        (Layout(2, vision_ffn_multiple=0), {}, ["vision_ffn_multiple 0 must be at least 1"]),
        (Layout(2, pipeline=2, first_stage_layers=-1), {}, ["first_stage_layers -1 must be at least 0"]),
    ],
)
def test_what_cannot_be_is_named(layout: Layout, model: dict[str, int], messages: list[str]) -> None:
    told = refusal(layout, replace(MODEL, **model))
    for message in messages:
        assert message in told


@pytest.mark.parametrize(
    ("settings", "layers", "stages"),
    [
        ({}, 3, [3]),
        ({"pipeline": 3}, 6, [2, 2, 2]),
        ({"pipeline": 3, "first_stage_layers": 2}, 10, [2, 4, 4]),
        ({"pipeline": 2, "virtual_pipeline": 3}, 6, [3, 3]),
        ({"pipeline": 2, "virtual_pipeline": 2, "first_stage_layers": 4}, 6, [4, 2]),
    ],
)
def test_layers_of_each_stage(settings: dict[str, int], layers: int, stages: list[int]) -> None:
    assert stage_layers(Layout(12, **settings), layers) == stages


@pytest.mark.parametrize(
    ("settings", "layers", "message"),
    [
        ({"first_stage_layers": 2}, 4, "first_stage_layers 2 needs pipeline above 1"),
        ({"virtual_pipeline": 2}, 4, "virtual_pipeline 2 needs pipeline above 1"),
        ({"pipeline": 3}, 7, "layers 7 is not a multiple of pipeline 3 and first_stage_layers is not set"),
        (
            {"pipeline": 3, "first_stage_layers": 2},
            7,
            "layers 7 less first_stage_layers 2 = 5 cannot be shared by the other 2 stages of pipeline 3",
        ),
        ({"pipeline": 2, "first_stage_layers": 4}, 4, "layers 4 less first_stage_layers 4 = 0 cannot be shared"),
        (
            {"pipeline": 2, "virtual_pipeline": 2, "first_stage_layers": 4},
            7,
            "a stage of 4 + 3 layers is not a multiple of virtual_pipeline 2",
        ),
    ],
)
def test_layers_that_cannot_be_dealt_out(settings: dict[str, int], layers: int, message: str) -> None:
    layout = Layout(settings.get("pipeline", 1), **settings)
    assert message in refusal(layout, replace(MODEL, layers=layers))


def test_groups_of_other_sizes() -> None:
    layout = Layout(4, tensor=2, context=2)
    check_group_sizes(layout, tensor=2, pipeline=1, context=2)
    with pytest.raises(ValueError) as error:
        check_group_sizes(layout, tensor=4, pipeline=1, context=1)
    assert str(layout) in str(error.value)
    assert "tensor 2 but its process group has 4; context 2 but its process group has 1" in str(error.value)


CHUNKS = [(rank, stage) for rank in range(3) for stage in range(2)]


@pytest.mark.parametrize(("rank", "stage"), CHUNKS)
def test_each_chunk_has_its_own_ends(rank: int, stage: int) -> None:
    """Three stages of two chunks: the first has the front, the last the end, the four between neither."""
    layout, place = Layout(3, pipeline=3, virtual_pipeline=2), CHUNKS.index((rank, stage))
    true = {"pre_process": place == 0, "post_process": (rank, stage) == (2, 1)}
    check_chunk(layout, pipeline_rank=rank, vp_stage=stage, **true)
    for name in true:
        with pytest.raises(ValueError, match=f"{name}={not true[name]}: must be {true[name]} on pipeline rank {rank}"):
            check_chunk(layout, pipeline_rank=rank, vp_stage=stage, **(true | {name: not true[name]}))


@pytest.mark.parametrize(
    ("chunks", "stage", "message"),
    [
        (2, None, "vp_stage=None: must be 0 to 1 with virtual_pipeline 2"),
        (2, 2, "vp_stage=2: must be 0 to 1 with virtual_pipeline 2"),
        (2, -1, "vp_stage=-1: must be 0 to 1"),
        (1, 1, "vp_stage=1: must be 0 to 0 with virtual_pipeline 1"),
    ],
)
def test_a_chunk_that_is_not_there(chunks: int, stage: int | None, message: str) -> None:
    ends: dict[str, Any] = {"pre_process": True, "post_process": False}
    with pytest.raises(ValueError, match=message):
        check_chunk(Layout(2, pipeline=2, virtual_pipeline=chunks), pipeline_rank=0, vp_stage=stage, **ends)
