"""Plans 1,024 responses with images: useful tokens, how full microbatches are, images encoded, how ranks are loaded.

python benchmarks/packing.py [--model DIRECTORY] [--seeds 8]

Lengths and pictures are log-normal, so a few are many times the median. Costs are those of Qwen2.5-VL-3B unless a
checkpoint's directory is given. Two measures that are not the same:

- ``useful``: real tokens / tokens computed. Sequences are packed, so the rest is what four context and four
  sequence-parallel tensor ranks ask for: each sequence to a multiple of 8 tokens, a microbatch to one of 16. Beside it
  stands what is left when each microbatch is padded to its longest sequence instead.
- ``full``: real tokens / the budget of all microbatches. The room left over costs nothing, it is not computed; where
  ranks that take equally many microbatches cannot fill the least number of them, no plan is fuller.

Beside each plan stands one that knows tokens alone (no costs, no images), weighed with the same costs. It exits with
status 1 when a limit below is missed, or a plan below 97 % full has more than the least number of microbatches.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_apo.config import ModelConfig
from megatron_apo.data.balancing import fewest_microbatches, plan_microbatches
from megatron_apo.data.costs import CostModel, image_costs
from megatron_apo.data.packing import packed_lengths
from megatron_apo.planning.work import training_costs
from megatron_apo.platform.torchvision_cpu import register_missing_operators
from megatron_apo.records import PromptImage, TrainingSample

QWEN_3B = Path(__file__).parents[1] / "tests/fixtures/published/qwen2_5_vl_3b/flat"
USEFUL, FULL, SPREAD, SECONDS = 0.97, 0.97, 0.03, 0.5
MULTIPLE, ALIGN = 8, 16  # tokens: of a sequence over four context ranks, of a microbatch over four tensor ranks besides
# (data-parallel ranks, tokens of a microbatch, stages of an interleaved pipeline)
CASES = ((1, 16384, 1), (4, 16384, 1), (8, 16384, 1), (16, 16384, 1), (32, 8192, 1), (8, 32768, 1), (4, 8192, 4))


def heavy_tailed(prompts: int, group: int, seed: int) -> list[TrainingSample]:
    """Responses of median 500 tokens up to 8,192 to prompts of one picture (three quarters), two, or none."""
    dice = random.Random(seed)
    samples = []
    for number in range(prompts):
        images = []
        for picture in range(dice.choices((0, 1, 2), (1, 6, 1))[0]):
            side = min(90, max(8, 2 * round(dice.lognormvariate(3.1, 0.45))))  # in patches of 14 pixels
            other = min(90, max(8, 2 * round(side / 2 * dice.uniform(0.6, 1.6))))
            images.append(PromptImage("", f"{number}/{picture}", (1, side, other)))
        shown = sum(height * width // 4 for _, height, width in (image.grid_thw for image in images))
        prompt = (0,) * (shown + dice.randint(60, 200))
        median = dice.lognormvariate(6.2, 0.5)  # of this prompt
        for _ in range(group):
            tokens = min(8192, max(20, round(median * dice.lognormvariate(0.0, 0.7))))
            samples.append(TrainingSample(prompt, (0,) * tokens, tuple(images)))
    return samples


class Weighed:
    """What a plan amounts to. ``slowest``: cost of the costliest rank; ``encoded``: image encodings.

    ``useful``: share of real tokens in what is computed; ``padded``: the same, each microbatch padded to its longest
    sequence. ``full``: share of real tokens in ``budget`` times the microbatches.
    """

    def __init__(
        self, plan: Sequence[Sequence[Sequence[int]]], samples: Sequence[TrainingSample], costs: CostModel, budget: int
    ):
        real = sum(sample.length for sample in samples)
        computed = longest = 0
        for members in (members for rank in plan for members in rank):
            lengths = np.array([samples[index].length for index in members], dtype=np.int64)
            computed += int(packed_lengths(lengths, align=ALIGN, sequence_multiple=MULTIPLE).sum())
            longest += int(lengths.max()) * len(lengths) if members else 0
        self.useful, self.padded = real / computed, real / longest
        self.full = real / (len(plan) * len(plan[0]) * budget)
        shown = image_costs(samples, costs)
        work = [costs.sequence(len(sample.prompt_ids), len(sample.response_ids)) for sample in samples]
        self.encoded = 0
        loads, singles = [], []
        for rank in plan:
            loads.append(0.0)
            for members in rank:
                images = {key: cost for index in members for key, cost in shown[index].items()}
                self.encoded += len(images)
                singles.append(sum(work[index] for index in members) + sum(images.values()))
                loads[-1] += singles[-1]
        self.slowest, mean = max(loads), sum(loads) / len(loads)
        self.spread = (max(loads) - min(loads)) / mean
        self.unevenness = max(singles) * len(singles) / sum(singles)
        self.microbatches = len(plan[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=QWEN_3B)
    parser.add_argument("--seeds", type=int, default=8)
    options = parser.parse_args()
    register_missing_operators()
    from model_providers.qwen_vl.shape import read_shape

    costs = training_costs(read_shape(options.model), ModelConfig(), extra_forward=1)
    missed, plans, partly = False, 0, 0
    print("ranks budget  stages seed | microbatches (least)    full  useful (padded)  spread  largest/mean  images "
          "encoded      time | by tokens alone: spread  images   its time/ours")  # fmt: skip
    for ranks, budget, stages in CASES:
        for seed in range(options.seeds):
            samples = heavy_tailed(128, 8, seed)
            lengths = [-(-sample.length // MULTIPLE) * MULTIPLE for sample in samples]
            words = {"tokens_per_microbatch": budget, "data_parallel": ranks, "microbatch_multiple": stages}
            work = [costs.sequence(len(sample.prompt_ids), len(sample.response_ids)) for sample in samples]
            start = time.process_time()
            plan = plan_microbatches(lengths, **words, costs=work, images=image_costs(samples, costs), pipeline=stages)
            seconds = time.process_time() - start
            ours = Weighed(plan, samples, costs, budget)
            plain = Weighed(plan_microbatches(lengths, **words), samples, costs, budget)
            least = fewest_microbatches(lengths, budget, ranks, stages)
            pictures = sum(len(sample.images) for sample in samples)
            missed |= ours.useful < USEFUL or (ours.full < FULL and ours.microbatches > least)
            missed |= ours.spread > SPREAD or seconds > SECONDS
            plans, partly = plans + 1, partly + (ours.full < FULL)
            print(
                f"{ranks:5} {budget:6} {stages:7} {seed:4} | {ours.microbatches:12} ({least:3}) {ours.full:9.1%} "
                f"{ours.useful:7.1%} {ours.padded:8.1%} {ours.spread:7.2%} {ours.unevenness:13.2f} {ours.encoded:9} of "
                f"{pictures} {seconds * 1e3:7.0f} ms | {plain.spread:23.2%} {plain.encoded:7} "
                f"{plain.slowest / ours.slowest:12.2f}"
            )
    print(f"{partly} of {plans} plans are less than {FULL:.0%} full")
    if missed:
        raise SystemExit(f"a limit is missed: {USEFUL:.0%} useful, {SPREAD:.0%} spread, {SECONDS} s")


if __name__ == "__main__":
    main()
