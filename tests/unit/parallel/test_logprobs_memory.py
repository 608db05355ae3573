"""The head's memory where its goal is set, [4,096 tokens, 152,064 ids], hidden 2,048: on tensors without data."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_apo.config import TrainingConfig
from megatron_apo.parallel import logprobs as module

TOKENS, VOCABULARY, HIDDEN = 4096, 152064, 2048


class Added(TorchDispatchMode):
    """``peak``: most bytes that operations' results held at once; meta tensors are told apart by their storage."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: set[int] = set()

    def _gone(self, identity: int, size: int) -> None:
        self.alive.discard(identity)
        self.now -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        made = [out] if isinstance(out, torch.Tensor) else out if isinstance(out, tuple | list) else []
        given = {each.untyped_storage()._cdata for each in args if _dense(each)}
        for storage in [each.untyped_storage() for each in made if _dense(each)]:
            if storage._cdata not in self.alive | given and storage.nbytes():
                self.alive.add(storage._cdata)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return out


def _dense(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided


def added(way: str, dtype: torch.dtype) -> int:
    """Bytes that forward and backward add to inputs, the gradient of the hidden states and DDP's buffer."""
    hidden = torch.empty(TOKENS, HIDDEN, device="meta", dtype=dtype, requires_grad=True)
    weight = torch.nn.Parameter(torch.empty(VOCABULARY, HIDDEN, device="meta", dtype=dtype))
    labels = torch.empty(TOKENS, device="meta", dtype=torch.int64)
    hidden.grad, buffer = torch.empty_like(hidden), torch.empty_like(weight, dtype=torch.float32)
    weight.main_grad, weight.grad_added_to_main_grad = buffer, False

    def take(parameter: torch.Tensor) -> None:  # what DDP's hook does
        assert parameter.grad is not None
        if _dense(parameter.grad):
            buffer.add_(parameter.grad)
        parameter.grad = None

    weight.register_post_accumulate_grad_hook(take)
    with Added() as counted:
        if way == "plain":
            log_p = (hidden @ weight.t()).float().log_softmax(dim=-1)
            logprobs = log_p.gather(1, labels[:, None])[:, 0]
            del log_p
        else:
            head = module._Head(0, VOCABULARY, (), 1.0, TrainingConfig().logits_chunk_tokens, None, True)
            logprobs, _ = module._VocabParallelLogprobs.apply(hidden, weight, labels, head)
        logprobs.sum().backward()
    return counted.peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_an_eighth_of_the_plain_paths_memory_is_enough(dtype: torch.dtype) -> None:
    plain = added("plain", dtype)
    assert plain > 2 * TOKENS * VOCABULARY * 4  # log-probabilities and their gradient, in float32
    assert added("chunked", dtype) <= plain / 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_one_chunk_of_logits_is_held_at_a_time(dtype: torch.dtype) -> None:
    """In float32, with its copy in the model's own precision; the rest is the hidden states' gradient and columns."""
    copy = dtype.itemsize if dtype != torch.float32 else 0
    chunk = TrainingConfig().logits_chunk_tokens * VOCABULARY * (4 + copy)
    assert chunk <= added("chunked", dtype) < 1.25 * chunk
