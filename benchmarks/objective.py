"""Shaping 1,024 responses (advantages, STCR, DADS, reduction weights) on one thread: at most 5 ms.

python benchmarks/objective.py [--prompts 128] [--group-size 8]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from megatron_apo.config_loading import load_config
from megatron_apo.objective.objective import shape_groups
from megatron_apo.objective.reductions import token_weights

LIMIT_MS = 5.0


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
    times = []
    for _ in range(options.repeats + 1):
        start = time.perf_counter()
        shape_groups(rewards, correct, lengths, settings=settings)
        token_weights(lengths.flatten(), included, kind="token_mean")
        token_weights(lengths.flatten(), included, kind="sequence_mean")
        times.append((time.perf_counter() - start) * 1000)
    median = statistics.median(times[1:])  # the first call loads kernels
    print(
        f"{shape[0] * shape[1]} responses: median {median:.2f} ms, {median / LIMIT_MS:.2f} of the {LIMIT_MS} ms limit"
    )
    if median > LIMIT_MS:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
