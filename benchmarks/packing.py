"""Plans 1,024 responses with images: useful tokens, images encoded, how evenly ranks are loaded, seconds.

python benchmarks/packing.py [--model DIRECTORY] [--seeds 3]

Lengths and pictures are log-normal, so a few are many times the median. Costs are those of Qwen2.5-VL-3B unless a
checkpoint's directory is given. Beside each plan stands one that knows tokens alone (no costs, no images), weighed with
the same costs. Useful is the share of tokens in the room of all microbatches; ranks that take equally many can leave
room however well it is used, so the least number of microbatches stands beside it. (A microbatch that is not full is
not padded: what is computed is its tokens.) It exits with status 1 when a limit below is missed.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_apo.config import ModelConfig
from megatron_apo.data.balancing import fewest_microbatches, plan_microbatches
from megatron_apo.data.costs import CostModel, image_costs
from megatron_apo.planning.work import training_costs
from megatron_apo.platform.torchvision_cpu import register_missing_operators
from megatron_apo.records import PromptImage, TrainingSample

QWEN_3B = Path(__file__).parents[1] / "tests/fixtures/published/qwen2_5_vl_3b/flat"
USEFUL, SPREAD, SECONDS = 0.97, 0.03, 0.5
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
    """What a plan amounts to. ``slowest``: cost of the costliest rank; ``encoded``: image encodings."""

    def __init__(self, plan: Sequence[Sequence[Sequence[int]]], samples: Sequence[TrainingSample], costs: CostModel):
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
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    register_missing_operators()
    from model_providers.qwen_vl.shape import read_shape

    costs = training_costs(read_shape(options.model), ModelConfig(), extra_forward=1)
    missed = False
    print("ranks budget  stages seed | microbatches (least)  useful  spread  largest/mean  images encoded      time"
          " | by tokens alone: spread  images   its time/ours")  # fmt: skip
    for ranks, budget, stages in CASES:
        for seed in range(options.seeds):
            samples = heavy_tailed(128, 8, seed)
            lengths = [sample.length for sample in samples]
            words = {"tokens_per_microbatch": budget, "data_parallel": ranks, "microbatch_multiple": stages}
            work = [costs.sequence(len(sample.prompt_ids), len(sample.response_ids)) for sample in samples]
            start = time.perf_counter()
            plan = plan_microbatches(lengths, **words, costs=work, images=image_costs(samples, costs), pipeline=stages)
            seconds = time.perf_counter() - start
            ours, plain = Weighed(plan, samples, costs), Weighed(plan_microbatches(lengths, **words), samples, costs)
            least = fewest_microbatches(lengths, budget, ranks, stages)
            useful = sum(lengths) / (ours.microbatches * ranks * budget)
            pictures = sum(len(sample.images) for sample in samples)
            missed |= useful < USEFUL and ours.microbatches > least
            missed |= ours.spread > SPREAD or seconds > SECONDS
            print(
                f"{ranks:5} {budget:6} {stages:7} {seed:4} | {ours.microbatches:12} ({least:3}) {useful:10.1%} "
                f"{ours.spread:7.2%} {ours.unevenness:12.2f} {ours.encoded:9} of {pictures} {seconds * 1e3:7.0f} ms"
                f" | {plain.spread:23.2%} {plain.encoded:7} {plain.slowest / ours.slowest:12.2f}"
            )
    if missed:
        raise SystemExit(f"a limit is missed: {USEFUL:.0%} useful, {SPREAD:.0%} spread, {SECONDS} s")


if __name__ == "__main__":
    main()
