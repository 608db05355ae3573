"""The slices that a rank reads are what the map says that it holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model_providers.qwen_vl.loading import CheckpointReader, fill
from model_providers.qwen_vl.shape import read_shape
from model_providers.qwen_vl.slices import Slice, rank_slices
from model_providers.qwen_vl.weight_map import WeightRow, to_megatron, weight_map
from tests.unit.model_providers.reference import make_checkpoint


@pytest.mark.parametrize("ranks", [1, 2])
def test_equals_the_map(tmp_path: Path, ranks: int) -> None:
    directory = make_checkpoint(tmp_path, tied=False)
    reader = CheckpointReader(directory)
    for row in weight_map(read_shape(directory)):
        for rank in range(ranks):
            expected = to_megatron(row, [reader.read(name) for name in row.hf], rank, ranks)
            found = torch.full_like(expected, torch.nan)
            fill(found, row, reader, rank_slices(row, tuple(expected.shape), rank, ranks))
            assert torch.equal(found, expected), row.megatron


def test_groups_may_be_cut_within() -> None:
    """Two groups q q k v on four ranks: rank 1 holds the first group's key and value."""
    row = WeightRow("m", ("q", "k", "v"), ((4,), (2,), (2,)), "qkv", 0, 2)
    assert rank_slices(row, (2,), 0, 4) == [Slice(0, 0, 0, 2, 0)]
    assert rank_slices(row, (2,), 1, 4) == [Slice(1, 0, 0, 1, 0), Slice(2, 0, 0, 1, 1)]
    assert rank_slices(row, (2,), 3, 4) == [Slice(1, 0, 1, 2, 0), Slice(2, 0, 1, 2, 1)]


def test_padding_belongs_to_the_last_ranks() -> None:
    """Five rows on two ranks of four: three are padding; both halves of a gated layer likewise."""
    row = WeightRow("m", ("gate", "up"), ((5,), (5,)), "gate_up", 0)
    assert rank_slices(row, (8,), 1, 2) == [Slice(0, 0, 4, 5, 0), Slice(1, 0, 4, 5, 4)]
    table = WeightRow("m", ("t",), ((5, 2),), cut=0, vocabulary=True)
    assert rank_slices(table, (3, 2), 1, 2) == [Slice(0, 0, 3, 5, 0)]
