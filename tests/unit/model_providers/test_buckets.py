"""How sequences of different lengths are batched: every token in its place, little padding, few buckets."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn import functional

from megatron_apo.parallel.groups import Groups
from model_providers.qwen_vl.buckets import bucket_members, bucketed
from model_providers.qwen_vl.layers import PackedAttention, packed_layout


def boundaries(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def test_buckets_by_hand() -> None:
    """Above 0.7 of the longest share its bucket; those of 64 tokens and fewer share one whatever they are."""
    assert bucket_members([100, 1000, 64, 701, 3, 700, 90]) == [[1, 3], [5], [0, 6], [2, 4]]
    assert bucket_members([5, 64, 1]) == [[0, 1, 2]]
    assert bucket_members([2000] * 3) == [[0, 1, 2]]


@pytest.mark.parametrize("lengths", [[5], [3, 3, 3], [70, 200, 3, 90, 1, 64], [300, 300], [1, 1000, 2]])
def test_every_token_comes_back_to_its_place(lengths: list[int]) -> None:
    found, starts = bucketed(boundaries(lengths)), boundaries(lengths).tolist()
    tokens = torch.arange(sum(lengths))
    cells = torch.cat([tokens[bucket.pad_index_NS].reshape(-1) for bucket in found.buckets])
    assert (cells if found.unpad_index_T is None else cells[found.unpad_index_T]).tolist() == tokens.tolist()
    for bucket in found.buckets:
        real = torch.ones_like(bucket.pad_index_NS, dtype=torch.bool)
        real = real if bucket.key_mask_NS is None else bucket.key_mask_NS
        for row, inside in zip(bucket.pad_index_NS, real, strict=True):
            first = int(row[0])
            assert row[inside].tolist() == list(range(first, first + lengths[starts.index(first)]))


def test_a_heavy_tail_costs_little_more_than_its_own_squares() -> None:
    """Twice at most for each sequence above 64 tokens, whatever the mix, and the buckets grow with a logarithm."""
    dice = random.Random(0)
    for _ in range(50):
        lengths = [max(1, int(dice.lognormvariate(5.5, 1.3))) for _ in range(dice.randint(1, 200))]
        found = bucketed(boundaries(lengths))
        cells = sum(bucket.pad_index_NS.shape[0] * bucket.pad_index_NS.shape[1] ** 2 for bucket in found.buckets)
        assert cells <= 2.05 * sum(max(length, 64) ** 2 for length in lengths)
        assert len(found.buckets) <= 2 + math.log(max(max(lengths), 64) / 64) / math.log(1 / 0.7)


# Padded to their longest, the four shorter of the last take as many cells as there are tokens: 4 x 32 = 128.
@pytest.mark.parametrize("lengths", [[6], [4, 4], [90, 3, 200, 64], [72, 32, 8, 8, 8]])
@pytest.mark.parametrize("mask", [AttnMaskType.causal, AttnMaskType.no_mask])
def test_attention_of_each_sequence_by_itself(lengths: list[int], mask: AttnMaskType, one_process: Groups) -> None:
    """Four query heads on two of keys and values, against SDPA on every sequence alone."""
    config: Any = TransformerConfig(num_layers=1, hidden_size=32, num_attention_heads=4)
    attention = PackedAttention(config, 1, mask, "self", pg_collection=SimpleNamespace(cp=None))
    total, generator = sum(lengths), torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(total, 1, heads, 8, generator=generator) for heads in (4, 2, 2))
    found = attention(query, key, value, packed_seq_params=packed_layout(boundaries(lengths), max(lengths)))
    expected = [
        functional.scaled_dot_product_attention(
            *(tensor.squeeze(1).transpose(0, 1)[None] for tensor in parts),
            is_causal=mask == AttnMaskType.causal,
            enable_gqa=True,
        )[0]
        .transpose(0, 1)
        .flatten(1)
        for parts in zip(*(tensor.split(lengths) for tensor in (query, key, value)), strict=True)
    ]
    torch.testing.assert_close(found.squeeze(1), torch.cat(expected), atol=1e-6, rtol=1e-5)
