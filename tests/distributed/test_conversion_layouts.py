"""Hugging Face -> Megatron -> Hugging Face is bit-exact, whatever layout writes and whatever layout reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model_providers.qwen_vl.shape import read_shape
from model_providers.qwen_vl.weight_map import hf_names, published_name
from tests.distributed.launcher import Case, run_cases
from tests.unit.model_providers.reference import make_checkpoint

COMMAND = "tests.distributed.conversions:command"
# (tied, dtype, writer's tensor and pipeline ranks, reader's)
WAYS = [
    (False, "float32", (1, 1), (2, 1)),
    (True, "bfloat16", (2, 1), (1, 2)),
    (False, "bfloat16", (1, 2), (2, 2)),
    (True, "float32", (2, 2), (1, 1)),
]


def name_of(way: tuple[bool, str, tuple[int, int], tuple[int, int]]) -> str:
    tied, dtype, writer, reader = way
    return f"{'tied' if tied else 'untied'}-{dtype}-tp{writer[0]}pp{writer[1]}-tp{reader[0]}pp{reader[1]}"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("conversions")
    cases = []
    for way in WAYS:
        tied, dtype, writer, reader = way
        place = root / name_of(way)
        (place / "source").mkdir(parents=True)
        source = make_checkpoint(place / "source", tied=tied, dtype=getattr(torch, dtype))
        layouts = [["--tensor", str(tensor), "--pipeline", str(pipeline)] for tensor, pipeline in (writer, reader)]
        write = ["hf-to-megatron", str(source), str(place / "megatron"), *layouts[0]]
        check = ["verify", str(source), str(place / "megatron"), *layouts[1]]
        back = ["megatron-to-hf", str(place / "megatron"), str(place / "back"), *layouts[1], "--shard-size", "0.001"]
        for arguments, (tensor, pipeline) in ((write, writer), (check, reader), (back, reader)):
            cases.append(Case(COMMAND, tensor * pipeline, str(place), {"arguments": arguments}))
    run_cases(cases)
    return root


@pytest.mark.parametrize("way", WAYS, ids=name_of)
def test_round_trip_is_bit_exact(converted: Path, way: tuple[bool, str, tuple[int, int], tuple[int, int]]) -> None:
    place = converted / name_of(way)
    source = {published_name(name): tensor for name, tensor in load_file(place / "source/model.safetensors").items()}
    shards = sorted((place / "back").glob("model-*-of-*.safetensors"))
    back = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert len(shards) > 1
    assert set(back) == set(source) == set(hf_names(read_shape(place / "back")))
    for name, tensor in source.items():
        assert back[name].dtype == getattr(torch, way[1])
        assert torch.equal(back[name], tensor), name
    assert not list(place.glob(".*"))
