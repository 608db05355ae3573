"""Hugging Face -> Megatron -> Hugging Face is bit-exact, whatever layout writes and whatever layout reads.

A few layouts always; tensor and pipeline 1, 2, 4 of every form of the model with

    python -m pytest -m sweep tests/distributed/test_conversion_layouts.py
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model_providers.qwen_vl.shape import read_shape
from model_providers.qwen_vl.weight_map import hf_names, published_name
from tests.distributed.launcher import Case, run_cases
from tests.unit.conversion.random_checkpoint import random_checkpoint

COMMAND = "tests.distributed.conversions:command"
LOADING, CONVERTING = (f"tests.distributed.conversions:{name}_memory" for name in ("loading", "converting"))
MIB = 2**20
SIZES = (1, 2, 4)
RANKS = (1, 2)  # of which memory is measured


@dataclass(frozen=True)
class Way:
    """``writer`` and ``reader``: tensor and pipeline ranks. Four tensor ranks share two key-value heads."""

    family: str
    tied: bool
    dtype: str
    writer: tuple[int, int]
    reader: tuple[int, int]

    def __str__(self) -> str:
        tied = "tied" if self.tied else "untied"
        return "-".join((self.family, tied, self.dtype, *(f"tp{tp}pp{pp}" for tp, pp in (self.writer, self.reader))))


WAYS = [
    Way("qwen2_5_vl", False, "float32", (1, 1), (2, 1)),
    Way("qwen2_5_vl", True, "bfloat16", (2, 1), (1, 2)),
    Way("qwen2_vl", False, "bfloat16", (1, 2), (4, 1)),
    Way("qwen2_5_vl", True, "float32", (2, 2), (1, 1)),
    Way("qwen2_5_vl", False, "bfloat16", (4, 1), (1, 4)),
    Way("qwen2_vl", True, "float32", (1, 4), (2, 2)),
]
SWEEP = [
    Way(family, tied, dtype, (tensor, pipeline), (pipeline, tensor))
    for tensor, pipeline, (family, tied, dtype) in product(
        SIZES, SIZES, product(("qwen2_5_vl", "qwen2_vl"), (False, True), ("float32", "bfloat16"))
    )
]


def conversions(root: Path, ways: list[Way]) -> list[Case]:
    """There, compared in the reader's layout, and back, for each way in a directory of its name."""
    cases = []
    for way in ways:
        place = root / str(way)
        source = random_checkpoint(place / "source", tied=way.tied, family=way.family, dtype=getattr(torch, way.dtype))
        layouts = [
            ["--tensor", str(tensor), "--pipeline", str(pipeline)] for tensor, pipeline in (way.writer, way.reader)
        ]
        write = ["hf-to-megatron", str(source), str(place / "megatron"), *layouts[0]]
        check = ["verify", str(source), str(place / "megatron"), *layouts[1]]
        back = ["megatron-to-hf", str(place / "megatron"), str(place / "back"), "--shard-size", "0.0005"]
        for arguments, (tensor, pipeline) in ((write, way.writer), (check, way.reader), (back, (way.tied + 1, 1))):
            cases.append(Case(COMMAND, tensor * pipeline, str(place), {"arguments": arguments}))
    return cases


def check(place: Path, way: Way) -> None:
    source = {published_name(name): tensor for name, tensor in load_file(place / "source/model.safetensors").items()}
    shards = sorted((place / "back").glob("model-*-of-*.safetensors"))
    back = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert len(shards) > 2
    assert set(back) == set(source) == set(hf_names(read_shape(place / "back")))
    for name, tensor in source.items():
        assert back[name].dtype == getattr(torch, way.dtype)
        assert torch.equal(back[name], tensor), name
    assert not list(place.glob(".*"))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, larger: Path) -> Path:
    """All ways, and what loading and converting ``larger`` takes on so many ranks: one start for everything."""
    root = tmp_path_factory.mktemp("conversions")
    memory = [
        Case(name, tensor, str(root / f"memory{tensor}"), {"source": str(larger)})
        for tensor in RANKS
        for name in (LOADING, CONVERTING)
    ]
    run_cases([*conversions(root, WAYS), *memory])
    return root


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_round_trip_is_bit_exact(converted: Path, way: Way) -> None:
    check(converted / str(way), way)


@pytest.mark.sweep
@pytest.mark.parametrize("way", SWEEP, ids=str)
def test_every_layout(tmp_path: Path, way: Way) -> None:
    run_cases(conversions(tmp_path, [way]))
    check(tmp_path / str(way), way)


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(
        tmp_path_factory.mktemp("larger") / "source",
        dtype=torch.bfloat16,
        text={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "vocab_size": 20000,
            "num_hidden_layers": 8,
            "num_attention_heads": 32,
        },
        vision={"out_hidden_size": 1024},
    )


@pytest.mark.parametrize("tensor", RANKS)
def test_memory_of_a_rank(larger: Path, converted: Path, tensor: int) -> None:
    """Anonymous memory while loading: the rank's own shard, the largest tensor and a little; converting: less.

    Weights that are held twice, or whole by each tensor rank, are beyond both bounds.
    """
    whole = (larger / "model.safetensors").stat().st_size
    largest = 20000 * 1024 * 2
    for rank in range(tensor):
        loading, converting = (
            json.loads((converted / f"memory{tensor}" / f"{name}_{rank}.json").read_text())
            for name in ("loading", "converting")
        )
        shard = loading["shard"]
        assert shard <= 1.05 * whole / tensor
        assert shard - 8 * MIB < loading["taken"] <= shard + largest + 32 * MIB
        assert converting["taken"] <= largest + 32 * MIB
    assert whole / 2 > largest + 32 * MIB  # so that the bounds say something
