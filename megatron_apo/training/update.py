"""Scores and updates on one replica's work, through Megatron's pipeline schedule.

Shape suffixes: T packed tokens, R response tokens of a microbatch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from megatron_apo.config import ObjectiveConfig
from megatron_apo.objective.kl import kl_divergence
from megatron_apo.parallel.groups import Groups
from megatron_apo.parallel.reduction import reduce_metrics, share_text, sum_over_ranks
from megatron_apo.parallel.sequences import response_sequences, sequence_sums
from megatron_apo.parallel.status import phase
from megatron_apo.records import Microbatch, PromptImage, ReplicaWork, TrainingSample
from megatron_apo.training.forward_step import HeadSettings, LossSettings, agreement_sums, training_step
from megatron_apo.training.microbatches import pack_microbatch, response_places, run_schedule, score_microbatches
from megatron_apo.training.setup import TrainingState

BeforeStep = Callable[[dict[str, float], Callable[[], str]], None]
_MAXIMA = ("gate/max",)
_PLACES = ("gate/row",)  # where a microbatch's maximum lies: read for a message, never summed


class NonFiniteError(RuntimeError):
    """Loss or gradient norm is NaN or infinite."""


@dataclass(frozen=True)
class TrainerSettings:
    """What a trainer needs to know besides its state. ``supervised``: imitate the responses, no old or reference."""

    objective: ObjectiveConfig
    head: HeadSettings
    supervised: bool = False


def _sum_over_microbatches(collected: Sequence[dict[str, torch.Tensor]]) -> dict[str, float]:
    if not collected:
        return {}
    totals: dict[str, float] = {}
    for name in collected[0].keys() - set(_PLACES):
        stacked = torch.stack([item[name].double() for item in collected])
        totals[name] = float(stacked.max() if name in _MAXIMA else stacked.sum())
    return totals


def _describe_token(batch: Microbatch, samples: Sequence[TrainingSample], row: int) -> str:
    """Prompt and response position of response row ``row`` of a packed microbatch."""
    indices, positions = response_places(batch, samples)
    sample, token = samples[int(indices[row])], int(positions[row])
    return f"prompt {sample.prompt_id!r}, response token {token} (id {sample.response_ids[token]})"


class Trainer:
    """Runs the updates of a step. All ranks call ``step`` together, each with its replica's work."""

    def __init__(
        self,
        state: TrainingState,
        groups: Groups,
        settings: TrainerSettings,
        *,
        pixel_values: Callable[[PromptImage], torch.Tensor],
    ) -> None:
        self.state = state
        self.groups = groups
        self.settings = settings
        self._pixel_values = pixel_values

    def _microbatch(self, samples: Sequence[TrainingSample], indices: Sequence[int]) -> Microbatch:
        return pack_microbatch(
            samples, indices, self.state.shape, self.state.settings, self.groups, pixel_values=self._pixel_values
        )

    def score(self, model: list[Any], batches: Sequence[Microbatch]) -> list[torch.Tensor] | None:
        """Log-probabilities [T] of each microbatch, 0 outside responses; None on stages before the last."""
        return score_microbatches(model, batches, self.settings.head, self.groups)

    def step(
        self, work: ReplicaWork, before_step: BeforeStep = lambda metrics, worst_token: None
    ) -> list[dict[str, float]]:
        """All optimizer updates of ``work``; one dictionary of metrics per update, the same on every rank.

        ``before_step`` sees the metrics before the optimizer moves, on every rank alike, and may raise to stop it; its
        second argument, which all ranks call or none, says which token engine and trainer differ most about.
        Raises NonFiniteError when the loss is NaN or infinite; parameters and optimizer are then untouched.
        """
        with phase(self.groups, "microbatches"):  # an image may be missing on one machine only
            updates = [[self._microbatch(work.samples, indices) for indices in update] for update in work.updates]
        if self.state.reference is not None and self.settings.objective.kl.placement == "loss":
            updates = self._attach(updates, "ref_logprobs_T", self.state.reference)
        old = "engine" if self.settings.objective.old_logprobs == "engine" else "current"
        if len(updates) > 1 and not self.settings.supervised:
            # Later updates see moved weights: agreement and pi_old are taken for all of them before the first.
            updates = self._attach(updates, "old_logprobs_T", self.state.model)
            self._check_agreement(updates, work.samples, before_step)
            old = "stored" if old == "current" else old
        results = []
        for index, batches in enumerate(updates):
            loss = LossSettings(
                objective=self.settings.objective,
                kl_coefficient=work.scalars["kl_coefficient"],
                total_tokens=int(work.scalars[f"total_tokens/{index}"]),
                old_logprobs=old,
                supervised=self.settings.supervised,
            )
            gate = before_step if len(updates) == 1 else None
            results.append(self._update(batches, work.samples, loss, gate))
        return results

    def sequence_kl(self, work: ReplicaWork) -> list[float]:
        """The KL to the reference of each of the step's responses, summed over its tokens, on every rank; collective.

        ``work`` holds one update without weights. The policy's log-probabilities are its own, or the engine's where
        the settings say so.
        """
        assert self.state.reference is not None, "a KL in the reward needs a reference"
        (indices,) = work.updates
        with phase(self.groups, "microbatches"):
            batches = [self._microbatch(work.samples, chosen) for chosen in indices]
        batches = self._attach([batches], "ref_logprobs_T", self.state.reference)[0]
        if self.settings.objective.old_logprobs == "trainer":
            batches = self._attach([batches], "old_logprobs_T", self.state.model)[0]
        totals = torch.zeros(int(work.scalars["samples"]), dtype=torch.float64)
        if self.groups.last_stage and self.groups.tensor_rank == 0:
            for batch in batches:
                rows = batch.response_mask_T
                policy = batch.rollout_logprobs_T if batch.old_logprobs_T is None else batch.old_logprobs_T
                assert batch.ref_logprobs_T is not None
                kl = kl_divergence(
                    policy[rows], batch.ref_logprobs_T[rows], estimator=self.settings.objective.kl.estimator
                )
                numbers = torch.tensor([work.numbers[index] for index in batch.sample_indices], dtype=torch.int64)
                totals.index_add_(0, numbers[response_sequences(batch)[0].cpu()], kl.double().cpu())
        return sum_over_ranks(totals, self.groups).tolist()

    def _attach(self, updates: list[list[Microbatch]], field: str, model: list[Any]) -> list[list[Microbatch]]:
        flat = [batch for batches in updates for batch in batches]
        scored = self.score(model, flat)
        if scored is None:
            return updates
        values: dict[str, Any]
        filled = []
        for batch, logprobs in zip(flat, scored, strict=True):
            values = {field: logprobs}
            filled.append(replace(batch, **values))
        cut, start = [], 0
        for batches in updates:
            cut.append(filled[start : start + len(batches)])
            start += len(batches)
        return cut

    def _check_agreement(
        self, updates: list[list[Microbatch]], samples: Sequence[TrainingSample], before_step: BeforeStep
    ) -> None:
        flat = [batch for batches in updates for batch in batches]
        collected = []
        if self.groups.last_stage:
            for batch in flat:
                assert batch.old_logprobs_T is not None
                rows = batch.response_mask_T
                trainer, engine = batch.old_logprobs_T[rows], batch.rollout_logprobs_T[rows]
                sums = sequence_sums(batch, self.groups)
                collected.append(agreement_sums(trainer, engine, self.settings.objective.mismatch, sums))
        metrics = reduce_metrics(_sum_over_microbatches(collected), self.groups, maxima=_MAXIMA)
        before_step(metrics, lambda: self._worst_token(flat, collected, samples, metrics["gate/max"]))

    def _worst_token(
        self,
        batches: Sequence[Microbatch],
        collected: Sequence[dict[str, torch.Tensor]],
        samples: Sequence[TrainingSample],
        largest: float,
    ) -> str:
        """Names the token whose log-probabilities differ by ``largest`` (or are NaN), on every rank; collective."""
        found = ""
        for batch, item in zip(batches, collected, strict=False):  # stages before the last collected nothing
            difference = float(item["gate/max"])
            if not found and (difference == largest or math.isnan(difference)):
                found = _describe_token(batch, samples, int(item["gate/row"]))
        return share_text(found, self.groups)

    def _update(
        self,
        batches: Sequence[Microbatch],
        samples: Sequence[TrainingSample],
        loss: LossSettings,
        before_step: BeforeStep | None,
    ) -> dict[str, float]:
        state = self.state
        for chunk in state.model:
            chunk.train()
            chunk.zero_grad_buffer()
        state.optimizer.zero_grad()
        collected = run_schedule(state.model, training_step(self.settings.head, self.groups, loss), batches)
        metrics = reduce_metrics(_sum_over_microbatches(collected), self.groups, maxima=_MAXIMA)
        if int(metrics["count/tokens"]) != loss.total_tokens:
            raise RuntimeError(
                f"the microbatches hold {int(metrics['count/tokens'])} response tokens, the plan {loss.total_tokens}: "
                "the loss would be scaled wrongly"
            )
        if not math.isfinite(metrics["loss/total"]):
            raise NonFiniteError(f"loss is {metrics['loss/total']}; the optimizer was not stepped")
        if before_step is not None:
            before_step(metrics, lambda: self._worst_token(batches, collected, samples, metrics["gate/max"]))
        _, gradient_norm, _ = state.optimizer.step()
        # Not from the optimizer's groups: a rank whose every parameter is frozen has none.
        metrics["optimizer/learning_rate"] = float(state.scheduler.get_lr({}))
        state.scheduler.step(1)
        if gradient_norm is not None:
            metrics["optimizer/gradient_norm"] = float(gradient_norm)
            if not math.isfinite(metrics["optimizer/gradient_norm"]):
                raise NonFiniteError(f"gradient norm is {gradient_norm}; resume from the last checkpoint")
        return metrics
