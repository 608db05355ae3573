"""Shaping 1,024 responses (advantages, STCR, DADS, reduction weights) on one thread: at most 5 ms.

Beside it, without a limit, the whole of a step's shaping: from scored groups to the samples of 16 updates, most of
which is the search for tokens that the policy cannot have drawn.

python benchmarks/objective.py [--prompts 128] [--group-size 8]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from megatron_apo.config_loading import load_config
from megatron_apo.objective.objective import shape_groups
from megatron_apo.objective.reductions import token_weights
from megatron_apo.objective.samples import shape_step
from megatron_apo.records import Prompt, Rollout, RolloutGroup, Score

LIMIT_MS = 5.0


def scored_groups(rewards: torch.Tensor, correct: torch.Tensor, lengths: torch.Tensor) -> list[RolloutGroup]:
    """What sampling and grading hand over; [prompts, group size] each."""
    groups = []
    for number, row in enumerate(zip(rewards.tolist(), correct.tolist(), lengths.tolist(), strict=True)):
        name, responses = str(number), list(zip(*row, strict=True))
        rollouts = [
            Rollout(name, index, (5,) * tokens, (-1.0,) * tokens, "", "stop", 0)
            for index, (_, _, tokens) in enumerate(responses)
        ]
        scores = [Score(reward, {}, "correct" if right else "wrong") for reward, right, _ in responses]
        groups.append(RolloutGroup(Prompt(name, (1, 2), (1, 2), (), "", ""), tuple(rollouts), tuple(scores)))
    return groups


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median of the thread's own time, after one call that does not count: the first loads kernels."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        work()
        times.append((time.process_time() - start) * 1000)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = (options.prompts, options.group_size)
    correct = torch.rand(shape) < 0.5
    rewards = correct.float() + 0.5 * (torch.rand(shape) < 0.9)
    lengths = torch.randint(50, 4096, shape)
    settings = load_config(None, ["--objective.name=apo"]).objective
    included = torch.ones(shape, dtype=torch.bool).flatten()

    def arithmetic() -> None:
        shape_groups(rewards, correct, lengths, settings=settings)
        token_weights(lengths.flatten(), included, kind="token_mean")
        token_weights(lengths.flatten(), included, kind="sequence_mean")

    groups = scored_groups(rewards, correct, lengths)
    updates = min(16, options.prompts)
    median = milliseconds(arithmetic, options.repeats)
    forbidden = (151652, 151653, 151655, 151656)  # as many as Qwen2.5-VL's; every token is held against them
    words: dict[str, Any] = {"max_tokens": 4096, "updates": updates, "forbidden_token_ids": forbidden}
    whole = milliseconds(lambda: shape_step(groups, settings, **words), options.repeats)
    print(f"{updates} updates' samples of them: median {whole:.2f} ms")
    print(
        f"{shape[0] * shape[1]} responses: median {median:.2f} ms, {median / LIMIT_MS:.2f} of the {LIMIT_MS} ms limit"
    )
    if median > LIMIT_MS:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
