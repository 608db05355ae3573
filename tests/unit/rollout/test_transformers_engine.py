"""The parts of the transformers engine that need no model."""

from __future__ import annotations

import math

import torch

from megatron_apo.rollout.transformers_engine import _in_memory_name, sample


def test_sampling_inverts_the_distribution_function() -> None:
    # probabilities 0, 1/4, 0, 1/2, 1/4, 0: the draws below each threshold fall to tokens 1, 3 and 4
    probabilities = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    draws = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    chosen = sample(probabilities.log().expand(6, -1), draws)
    assert chosen.tolist() == [1, 1, 3, 3, 4, 4]


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logprobs = torch.full((2000, 3), math.log(0.5))
    logprobs[:, 1] = -math.inf
    draws = torch.rand(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = sample(logprobs, draws).bincount(minlength=3).tolist()
    assert counts[1] == 0
    assert abs(counts[0] - 1000) < 150  # 6.7 standard deviations


def test_published_names_become_those_in_memory() -> None:
    assert _in_memory_name("model.layers.0.mlp.up_proj.weight") == "model.language_model.layers.0.mlp.up_proj.weight"
    assert _in_memory_name("visual.blocks.1.attn.qkv.bias") == "model.visual.blocks.1.attn.qkv.bias"
    assert _in_memory_name("lm_head.weight") == "lm_head.weight"
    assert _in_memory_name("model.visual.merger.ln_q.weight") == "model.visual.merger.ln_q.weight"
