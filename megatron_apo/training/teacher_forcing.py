"""How well the policy predicts given responses: a forward pass without gradients over the trainer's microbatches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from megatron_apo.parallel.greedy import vocab_parallel_argmax
from megatron_apo.parallel.groups import Groups
from megatron_apo.records import Microbatch
from megatron_apo.training.forward_step import HeadSettings, LossFunction, response_logprobs, run_model, unwrap
from megatron_apo.training.microbatches import run_schedule


def _sums(
    output: torch.Tensor, *, model: Any, batch: Microbatch, head: HeadSettings, groups: Groups
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    logprobs, _ = response_logprobs(output, model, batch, head, groups)
    rows, weight = batch.response_mask_T, unwrap(model).output_weight()
    likeliest = vocab_parallel_argmax(
        output.squeeze(1)[rows].to(weight.dtype),
        weight,
        vocab_size=head.vocab,
        tp_group=groups.tp if groups.tensor_size > 1 else None,
        forbidden_token_ids=head.forbidden_token_ids,
        chunk_tokens=head.chunk_tokens,
    )
    sums = {
        "logprob": logprobs.double().sum(),
        "right": (likeliest == batch.labels_T[rows]).sum(),
        "tokens": torch.tensor(len(logprobs)),
    }
    return output.new_zeros(()), torch.tensor(0, dtype=torch.int, device=output.device), sums


def teacher_forced_sums(
    model: list[Any], batches: Sequence[Microbatch], head: HeadSettings, groups: Groups
) -> dict[str, float]:
    """``logprob``, ``right`` (the likeliest token is the given one) and ``tokens`` over this rank's response tokens.

    Empty on stages before the last. Nothing of the model changes, its mode neither.
    """

    def forward_step(iterator: Iterator[Microbatch], chunk: Any) -> tuple[torch.Tensor, LossFunction]:
        batch = next(iterator)
        return run_model(chunk, batch, groups), partial(_sums, model=chunk, batch=batch, head=head, groups=groups)

    training = [module for chunk in model for module in chunk.modules() if module.training]
    try:
        for chunk in model:
            chunk.eval()
        with torch.no_grad():
            collected = run_schedule(model, forward_step, batches, forward_only=True)
    finally:
        for module in training:
            module.training = True
    return {name: sum(float(item[name]) for item in collected) for name in (collected[0] if collected else ())}


def teacher_forced_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """``evaluation/loss`` (nats a token), ``…/perplexity`` and ``…/token_accuracy`` of sums over all ranks."""
    loss = -sums["logprob"] / sums["tokens"]
    return {
        "evaluation/loss": loss,
        "evaluation/perplexity": math.exp(loss) if loss < 700 else math.inf,
        "evaluation/token_accuracy": sums["right"] / sums["tokens"],
    }
