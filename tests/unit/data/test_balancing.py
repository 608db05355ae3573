"""Plans by hand, the budget and the partition on random sequences, and the goals on a heavy-tailed mix with images."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import pytest

from benchmarks.packing import MULTIPLE, Weighed, heavy_tailed
from megatron_apo.data.balancing import fewest_microbatches, plan_microbatches
from megatron_apo.data.costs import CostModel, image_costs
from megatron_apo.data.packing import packed_lengths

# Qwen2.5-VL-3B's order of magnitude, rounded: products, attention and patches all matter.
COSTS = CostModel(6e9, 6e8, 3e5, 1.3e9, 1.4e5, 2e4, 8)
Plan = list[list[list[int]]]


def microbatches(plan: Plan) -> list[list[int]]:
    return [members for rank in plan for members in rank]


def test_ranks_of_equal_cost_within_the_budget() -> None:
    """31 tokens need four microbatches of 10, the evenest are 9, 7, 6, 5 + 4; the ranks get 9 + 7 and 9 + 6."""
    plan = plan_microbatches([7, 9, 4, 6, 5], tokens_per_microbatch=10, data_parallel=2)
    assert plan == [[[1], [0]], [[2, 4], [3]]]


def test_costs_decide_and_long_sequences_are_alone() -> None:
    plan = plan_microbatches([3, 3, 3], tokens_per_microbatch=100, data_parallel=2, costs=[1, 5, 3])
    assert sorted(microbatches(plan)) == [[0, 2], [1]]
    assert plan_microbatches([50, 2, 2], tokens_per_microbatch=10, data_parallel=1) == [[[0], [1, 2]]]
    assert plan_microbatches([4], tokens_per_microbatch=10, data_parallel=3) == [[[0]], [[]], [[]]]
    assert plan_microbatches([], tokens_per_microbatch=10, data_parallel=2) == [[[]], [[]]]
    assert plan_microbatches([50, 60], tokens_per_microbatch=10, data_parallel=2) == [[[1]], [[0]]]
    with pytest.raises(ValueError, match="tokens_per_microbatch=0"):
        plan_microbatches([1], tokens_per_microbatch=0, data_parallel=1)


def test_sequences_of_one_image_stay_together() -> None:
    """Four tokens of each image in two microbatches of eight: by image 2 encodings; any other way has 3 or 4."""
    shown = [{"cat": 5.0}, {"dog": 5.0}, {"cat": 5.0}, {"dog": 5.0}]
    plan = plan_microbatches([4, 4, 4, 4], tokens_per_microbatch=8, data_parallel=1, images=shown)
    assert plan == [[[0, 2], [1, 3]]]
    # What does not fit beside its image goes elsewhere rather than into a further microbatch.
    plan = plan_microbatches([6, 6, 2, 2], tokens_per_microbatch=8, data_parallel=1, images=[{"cat": 9.0}] * 4)
    assert [len(members) for members in plan[0]] == [2, 2]


def test_images_count_once_in_a_microbatch() -> None:
    """Two groups of the same lengths, one with a costly image: 2 + 2 + 10 and 2 + 2, no exchange makes that evener."""
    shown: list[dict[str, float]] = [{"cat": 10.0}, {"cat": 10.0}, {}, {}]
    plan = plan_microbatches([2, 2, 2, 2], tokens_per_microbatch=4, data_parallel=2, images=shown)
    assert sorted(microbatches(plan)) == [[0, 1], [2, 3]]


def test_a_pipeline_wants_even_microbatches() -> None:
    """A group of 10 tokens and one image of cost 1: together it is encoded once; apart, twice, but 6 + 5 is evener."""
    shown = [{"cat": 1.0}, {"cat": 1.0}]
    words: dict[str, Any] = {"tokens_per_microbatch": 10, "data_parallel": 1, "microbatch_multiple": 2, "images": shown}
    assert plan_microbatches([5, 5], **words, pipeline=1) == [[[0, 1], []]]
    assert plan_microbatches([5, 5], **words, pipeline=2) == [[[0], [1]]]


def test_microbatches_in_groups() -> None:
    plan = plan_microbatches([9, 9, 9], tokens_per_microbatch=10, data_parallel=1, microbatch_multiple=2)
    assert sorted(len(members) for members in plan[0]) == [0, 1, 1, 1]
    plan = plan_microbatches([4, 4], tokens_per_microbatch=10, data_parallel=1, microbatch_multiple=2)
    assert [len(members) for members in plan[0]] == [1, 1]
    assert fewest_microbatches([9, 9, 9, 50], 10, 2, 2) == 2


@pytest.mark.parametrize("seed", range(12))
def test_every_plan_is_a_partition_within_the_budget(seed: int) -> None:
    dice = random.Random(seed)
    lengths = [dice.randint(1, 120) for _ in range(dice.choice([1, 5, 40, 97]))]
    names = [dice.choice([None, "a", "b", "c", "d"]) for _ in lengths]
    words: dict[str, Any] = {
        "tokens_per_microbatch": 100,
        "data_parallel": dice.randint(1, 5),
        "microbatch_multiple": dice.choice([1, 1, 3]),
        "costs": [length * dice.uniform(1, 2) for length in lengths],
        "images": [{} if name is None else {name: 30.0} for name in names],
        "pipeline": dice.choice([1, 4]),
    }
    plan = plan_microbatches(lengths, **words)
    assert sorted(index for members in microbatches(plan) for index in members) == list(range(len(lengths)))
    assert len(plan) == words["data_parallel"]
    (count,) = {len(rank) for rank in plan}
    assert count % words["microbatch_multiple"] == 0
    for members in microbatches(plan):
        assert len(members) <= 1 or sum(lengths[index] for index in members) <= 100
    assert plan == plan_microbatches(lengths, **words)


@pytest.mark.parametrize(
    ("ranks", "budget", "multiple"), [(1, 16384, 1), (8, 16384, 1), (16, 16384, 1), (32, 8192, 1), (4, 8192, 4)]
)
def test_a_heavy_tailed_mix_computes_few_tokens_in_vain_and_loads_ranks_alike(
    ranks: int, budget: int, multiple: int
) -> None:
    """Nearly all that is computed is real; microbatches are full, or as few as there can be."""
    for seed in range(8):
        samples = heavy_tailed(128, 8, seed)
        lengths = [-(-sample.length // MULTIPLE) * MULTIPLE for sample in samples]
        work = [COSTS.sequence(len(sample.prompt_ids), len(sample.response_ids)) for sample in samples]
        words: dict[str, Any] = {
            "tokens_per_microbatch": budget,
            "data_parallel": ranks,
            "microbatch_multiple": multiple,
            "pipeline": multiple,
        }
        start = time.process_time()
        plan = plan_microbatches(lengths, **words, costs=work, images=image_costs(samples, COSTS))
        seconds = time.process_time() - start
        found = Weighed(plan, samples, COSTS, budget)
        plain = Weighed(plan_microbatches(lengths, **words), samples, COSTS, budget)
        assert found.useful >= 0.97 and found.padded < 0.8
        assert found.full >= 0.97 or found.microbatches == fewest_microbatches(lengths, budget, ranks, multiple)
        assert found.spread < 0.03
        assert found.encoded < 0.5 * plain.encoded and found.slowest < 0.95 * plain.slowest
        assert seconds < 1.0  # 0.03 to 0.1 s on an idle core


def test_packed_lengths_by_hand() -> None:
    """5 and 9 to multiples of 8 are 8 and 16, and 8 more make 32; nothing is one piece of padding."""
    assert packed_lengths(np.array([5, 9]), align=32, sequence_multiple=8).tolist() == [8, 16, 8]
    assert packed_lengths(np.array([5, 9]), align=12, sequence_multiple=8).tolist() == [8, 16]
    assert packed_lengths(np.array([5, 9])).tolist() == [5, 9]
    assert packed_lengths(np.array([], dtype=np.int64), align=4, sequence_multiple=8).tolist() == [8]
