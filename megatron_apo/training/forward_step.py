"""The one adapter between the objective and Megatron's pipeline schedule.

**Scaling.** The objective is one sum over all response tokens of the global batch, L = sum_t w_t l_t, with weights
computed before the batch is cut (objective/reductions.py). Megatron, with ``calculate_per_token_loss``, neither divides
a microbatch's loss by the number of microbatches nor averages gradients over data-parallel ranks: it sums both, and
``finalize_model_grads`` then divides every gradient by N, the sum of the ``num_tokens`` that the loss functions
returned. So each microbatch returns N * sum_{t in microbatch} w_t l_t and its own count of response tokens: counts add
up to N, N cancels, and the gradient is that of L however the batch was cut. N comes from the controller as a scalar;
the optimizer step is refused when the counts do not add up to it.

Context-parallel ranks change nothing of this: each holds other tokens of the same sequences, so their losses and counts
are further parts of the same two sums, and Megatron adds gradients and counts over data and context ranks alike. What a
token's keys and values owe to another rank's tokens comes back through the attention's own backward.

``objective_loss`` is all of this and knows no model: another Megatron script calls it in its own loss function
(examples/own_model). The functions around it run this project's models.

Shape suffixes: T packed tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist

from megatron_apo.config import Config, MismatchConfig, ObjectiveConfig
from megatron_apo.objective.mismatch import mismatch_sums, mismatch_weights
from megatron_apo.objective.objective import token_objective
from megatron_apo.objective.policy_loss import SequenceSums
from megatron_apo.parallel.groups import Groups
from megatron_apo.parallel.logprobs import vocab_parallel_logprobs
from megatron_apo.parallel.sequences import sequence_sums
from megatron_apo.records import Microbatch
from megatron_apo.training.finite import count_not_finite
from model_providers.qwen_vl.layers import packed_layout
from model_providers.qwen_vl.model import QwenVLModel

LossFunction = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, dict[str, Any]]]


@dataclass(frozen=True)
class HeadSettings:
    """How hidden states become log-probabilities: the same distribution the sampler drew from."""

    temperature: float
    forbidden_token_ids: tuple[int, ...]
    vocab: int
    chunk_tokens: int


@dataclass(frozen=True)
class LossSettings:
    """What the loss of one optimizer update needs beside the microbatch. ``total_tokens`` is N above.

    ``old_logprobs``: "current" (this forward's own: the update is the rollout's first and only), "stored", "engine".
    """

    objective: ObjectiveConfig
    kl_coefficient: float
    total_tokens: int
    old_logprobs: str
    supervised: bool = False


def head_settings(config: Config, forbidden_token_ids: tuple[int, ...], vocab: int) -> HeadSettings:
    """The sampling distribution: the trainer's log-probabilities are those of the policy that was sampled."""
    return HeadSettings(
        temperature=config.sampling.temperature,
        forbidden_token_ids=forbidden_token_ids,
        vocab=vocab,
        chunk_tokens=config.training.logits_chunk_tokens,
    )


def unwrap(model: Any) -> QwenVLModel:
    """The model inside Megatron's wrappers (DDP, Float16Module)."""
    while not isinstance(model, QwenVLModel):
        model = model.module
    return model


def run_model(
    model: Any, batch: Microbatch, groups: Groups, *, output: Literal["hidden", "logits"] = "hidden"
) -> torch.Tensor:
    """This stage's output for ``batch``: hidden states [T, 1, H]; of the last stage the logits [1, T, V] if asked."""
    return model(
        batch.input_ids_T[None],
        batch.position_ids_3T[:, None],
        packed_layout(
            batch.cu_seqlens, batch.max_seqlen, context_rank=groups.context_rank, context_size=groups.context_size
        ),
        pixel_values_LC=batch.pixel_values_LC,
        image_grids=batch.image_grids,
        image_positions_K=batch.image_positions_K,
        image_features_K=batch.image_features_K,
        output=output,
    )


def response_logprobs(
    hidden: torch.Tensor, model: Any, batch: Microbatch, head: HeadSettings, groups: Groups
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and entropy of the response tokens only, float32 [R], in the order of ``response_mask_T``."""
    rows, weight = batch.response_mask_T, unwrap(model).output_weight()
    return vocab_parallel_logprobs(
        hidden.squeeze(1)[rows].to(weight.dtype),  # Megatron's bfloat16 wrapper hands its output out as float32
        weight,
        batch.labels_T[rows],
        tp_group=groups.tp if groups.tensor_size > 1 else None,
        temperature=head.temperature,
        forbidden_token_ids=head.forbidden_token_ids,
        vocab_size=head.vocab,
        chunk_tokens=head.chunk_tokens,
    )


def _scoring_loss(
    output: torch.Tensor, *, model: Any, batch: Microbatch, head: HeadSettings, groups: Groups
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    logprobs, entropy = response_logprobs(output, model, batch, head, groups)
    count = torch.tensor(0, dtype=torch.int, device=output.device)
    return output.new_zeros(()), count, {"logprobs_R": logprobs, "entropy_R": entropy}


def scoring_step(head: HeadSettings, groups: Groups) -> Callable[[Iterator[Microbatch], Any], tuple[Any, LossFunction]]:
    """A ``forward_step_func`` for forward-only passes: the last stage collects {"logprobs_R", "entropy_R"}."""

    def forward_step(iterator: Iterator[Microbatch], model: Any) -> tuple[torch.Tensor, LossFunction]:
        batch = next(iterator)
        output = run_model(model, batch, groups)
        return output, partial(_scoring_loss, model=model, batch=batch, head=head, groups=groups)

    return forward_step


def agreement_sums(
    logprobs: torch.Tensor, rollout_logprobs: torch.Tensor, mismatch: MismatchConfig, sums: SequenceSums
) -> dict[str, torch.Tensor]:
    """Sum, count and maximum of |trainer - engine| log-probability over tokens, for the gate; ``mismatch_sums``.

    ``gate/row`` is the row of the maximum in this microbatch (0 without rows), not a sum. Where the difference is not
    finite there is nothing to compare: the update with such a token is skipped.
    """
    difference = (logprobs.detach() - rollout_logprobs).abs().double()
    finite = difference.isfinite()
    weights = mismatch_weights(
        logprobs.detach().where(finite, 0.0),
        rollout_logprobs.where(finite, 0.0),
        level=mismatch.level,
        sequence_sums=sums,
    )
    difference = difference.where(finite, 0.0)
    return {
        "gate/sum": difference.sum(),
        "gate/count": finite.sum().double(),
        "gate/max": difference.max() if difference.numel() else difference.new_zeros(()),
        "gate/row": difference.argmax().double() if difference.numel() else difference.new_zeros(()),
    } | mismatch_sums(weights, mismatch, sums)


def objective_loss(
    logprobs: torch.Tensor,
    entropy: torch.Tensor,
    batch: Microbatch,
    loss: LossSettings,
    *,
    cp_group: dist.ProcessGroup | None = None,
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """What a Megatron loss function returns of a microbatch, whatever model it was: the adapter itself.

    ``logprobs`` (differentiable) and ``entropy`` are those of the response tokens [R], in the order of
    ``batch.response_mask_T``. Returned are the loss, scaled as derived above, the count of these tokens, and sums that
    give the metrics when added over microbatches and ranks ("gate/max" is a maximum). It needs
    ``calculate_per_token_loss`` and ``finalize_model_grads`` in the model's config, as the derivation says.
    With ``cp_group``, collective over the context ranks that share the sequences.
    """
    rows = batch.response_mask_T
    count = torch.tensor(logprobs.numel(), dtype=torch.int, device=logprobs.device)
    weights = batch.policy_weights_T[rows]
    mean = 1.0 / max(loss.total_tokens, 1)
    sums: dict[str, torch.Tensor] = {"policy/entropy": entropy.detach().double().sum() * mean, "count/tokens": count}
    if loss.supervised:
        total = -(weights * logprobs).sum()
        sums["loss/total"] = total.detach()
        sums |= count_not_finite(weights != 0, policy=logprobs)
    else:
        rollout, of_sequences = batch.rollout_logprobs_T[rows], sequence_sums(batch, cp_group)
        if loss.old_logprobs == "current":
            old = logprobs.detach()
        elif loss.old_logprobs == "engine":
            old = rollout
        else:
            assert batch.old_logprobs_T is not None
            old = batch.old_logprobs_T[rows]
        reference = None if batch.ref_logprobs_T is None else batch.ref_logprobs_T[rows]
        live = (weights != 0) | (batch.kl_token_weights_T[rows] != 0)
        sums |= count_not_finite(live, policy=logprobs, old=old, reference=reference, engine=rollout)
        result = token_objective(
            logprobs,
            old,
            reference,
            advantages_T=batch.advantages_T[rows],
            policy_weights_T=weights,
            kl_token_weights_T=batch.kl_token_weights_T[rows],
            kl_weights_T=batch.kl_weights_T[rows],
            kl_coefficient=loss.kl_coefficient,
            settings=loss.objective,
            metric_weight=mean,
            engine_logprobs_T=rollout,
            sequence_sums=of_sequences,
        )
        total = result.loss
        sums |= result.metrics | agreement_sums(logprobs, rollout, loss.objective.mismatch, of_sequences)
        sums["loss/total"] = total.detach()
    return total * loss.total_tokens, count, sums


def _training_loss(
    output: torch.Tensor, *, model: Any, batch: Microbatch, head: HeadSettings, groups: Groups, loss: LossSettings
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    logprobs, entropy = response_logprobs(output, model, batch, head, groups)
    return objective_loss(logprobs, entropy, batch, loss, cp_group=groups.cp)


def training_step(
    head: HeadSettings, groups: Groups, loss: LossSettings
) -> Callable[[Iterator[Microbatch], Any], tuple[Any, LossFunction]]:
    """A ``forward_step_func`` for training; the last stage collects additive sums of every metric."""

    def forward_step(iterator: Iterator[Microbatch], model: Any) -> tuple[torch.Tensor, LossFunction]:
        batch = next(iterator)
        output = run_model(model, batch, groups)
        return output, partial(_training_loss, model=model, batch=batch, head=head, groups=groups, loss=loss)

    return forward_step
