"""Two processes, each with half of the vocabulary, equal one process with all of it: values and gradients."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron_apo.parallel.logprobs import vocab_parallel_logprobs

SHARD, HIDDEN, TOKENS = 12, 6, 11
OPTIONS: dict[str, Any] = {"temperature": 0.7, "forbidden_token_ids": (3, 15), "vocab_size": 20}


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=torch.float64)
    weight = torch.randn(2 * SHARD, HIDDEN, generator=generator, dtype=torch.float64)
    # both halves, forbidden ids of both (3, 15) and padding (22)
    labels = torch.tensor([0, 11, 12, 19, 3, 15, 22, 5, 7, 13, 18])
    return hidden, weight, labels


def _run(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, group: dist.ProcessGroup | None, chunk: int
) -> tuple[torch.Tensor | None, ...]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logprobs, entropy = vocab_parallel_logprobs(hidden, weight, labels, tp_group=group, chunk_tokens=chunk, **OPTIONS)
    upstream = torch.linspace(-1.0, 2.0, len(labels), dtype=torch.float64)
    (logprobs.masked_fill(logprobs == -torch.inf, 0.0) * upstream).sum().backward()
    return logprobs.detach(), entropy, hidden.grad, weight.grad


def _worker(rank: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    hidden, weight, labels = _inputs()
    own = slice(rank * SHARD, (rank + 1) * SHARD)
    for tokens, chunk in ((TOKENS, 4), (TOKENS, 1024), (0, 4)):
        part = hidden[:tokens], weight, labels[:tokens]
        expected = _run(*part, None, chunk)
        actual = _run(part[0], weight[own], part[2], dist.group.WORLD, chunk)
        assert actual[0] is not None and expected[3] is not None
        assert int((actual[0] == -torch.inf).sum()) == (3 if tokens else 0)
        for value, wanted in zip(actual, (*expected[:3], expected[3][own]), strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-11, atol=1e-12)
    dist.destroy_process_group()


def test_two_tensor_ranks_equal_one_process(tmp_path: Path) -> None:
    context = mp.spawn(_worker, args=(str(tmp_path / "rendezvous"),), nprocs=2, join=False)
    deadline = time.monotonic() + 90
    try:
        while not context.join(timeout=5):
            if time.monotonic() > deadline:
                pytest.fail("two ranks did not finish within 90 s")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
