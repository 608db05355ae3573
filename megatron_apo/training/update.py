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
from megatron_apo.observability.console import say
from megatron_apo.parallel.groups import Groups
from megatron_apo.parallel.reduction import reduce_metrics, share_text, sum_over_ranks
from megatron_apo.parallel.sequences import response_sequences, sequence_sums
from megatron_apo.parallel.status import phase
from megatron_apo.records import Microbatch, PromptImage, ReplicaWork, TrainingSample
from megatron_apo.training.finite import (
    NOT_FINITE_REFERENCE,
    NOT_FINITE_ROW,
    Fault,
    NonFiniteError,
    describe_faults,
    find_faults,
)
from megatron_apo.training.forward_step import HeadSettings, LossSettings, agreement_sums, training_step
from megatron_apo.training.microbatches import pack_microbatch, response_places, run_schedule, score_microbatches
from megatron_apo.training.setup import TrainingState
from megatron_apo.training.teacher_forcing import teacher_forced_metrics, teacher_forced_sums

BeforeStep = Callable[[dict[str, float], Callable[[], str]], None]
_EVALUATED_AT_ONCE = 8  # microbatches of each pipeline stage
_MAXIMA = ("gate/max",)
_PLACES = ("gate/row", NOT_FINITE_ROW)  # rows of a microbatch: read for a message, never summed


@dataclass(frozen=True)
class TrainerSettings:
    """What a trainer needs to know besides its state. ``supervised``: imitate the responses, no old or reference.

    ``max_skipped_in_a_row``: so many updates in a row with a NaN or an infinity stop the run.
    """

    objective: ObjectiveConfig
    head: HeadSettings
    supervised: bool = False
    max_skipped_in_a_row: int = 1


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
        self.skipped_in_a_row = 0  # updates up to now; a checkpoint carries it over a resume
        # Of the step's KL in the reward, on this rank: tokens without a finite one, and the first of them.
        self._kl_faults, self._kl_fault_token = 0, ""

    def _microbatch(self, samples: Sequence[TrainingSample], indices: Sequence[int]) -> Microbatch:
        return pack_microbatch(
            samples, indices, self.state.shape, self.state.settings, self.groups, pixel_values=self._pixel_values
        )

    def score(self, model: list[Any], batches: Sequence[Microbatch]) -> list[torch.Tensor] | None:
        """Log-probabilities [T] of each microbatch, 0 outside responses; None on stages before the last."""
        return score_microbatches(model, batches, self.settings.head, self.groups)

    def evaluate(self, work: ReplicaWork) -> dict[str, float]:
        """Mean loss, perplexity and token accuracy of all replicas' responses; moves nothing, the same on every rank.

        ``work`` is one update's worth of samples. A few microbatches at a time, so that few images are in memory.
        """
        totals: dict[str, float] = {}
        portion = _EVALUATED_AT_ONCE * self.groups.pipeline_size
        for start in range(0, len(work.updates[0]), portion):
            with phase(self.groups, "validation microbatches"):
                cut = work.updates[0][start : start + portion]
                batches = [self._microbatch(work.samples, indices) for indices in cut]
            sums = teacher_forced_sums(self.state.model, batches, self.settings.head, self.groups)
            totals = {name: value + totals.get(name, 0.0) for name, value in sums.items()}
        return teacher_forced_metrics(reduce_metrics(totals, self.groups))

    def step(
        self, work: ReplicaWork, before_step: BeforeStep = lambda metrics, worst_token: None
    ) -> list[dict[str, float]]:
        """All optimizer updates of ``work``; one dictionary of metrics per update, the same on every rank.

        Updates of equal microbatches (the epochs of a rollout) share them, and what is scored of them.
        ``before_step`` is called once, before the optimizer moves, on every rank alike, with how engine and trainer
        agree, and may raise to stop it; its second argument, which all ranks call or none, says which token they differ
        most about. Measured are the tokens of all updates where the trainer scores them first (several updates, pi_old
        the trainer's), and otherwise those of the first update, in its own forward pass: later weights have moved.
        An update with a NaN or an infinity in loss, gradients or log-probabilities is skipped on every rank:
        parameters, optimizer and schedule stay as they are, and its one metric is ``optimizer/skipped_updates``, 1.
        Raises NonFiniteError when too many in a row are. An update without microbatches moves nothing either; its one
        metric is ``optimizer/empty_updates``, 1.
        """
        made = [index for index, update in enumerate(work.updates) if update]
        # Every epoch has the same microbatches: they are packed and scored once.
        distinct = list(dict.fromkeys(work.updates[index] for index in made))
        with phase(self.groups, "microbatches"):  # an image may be missing on one machine only
            updates = [[self._microbatch(work.samples, indices) for indices in update] for update in distinct]
        if made and self.state.reference is not None and self.settings.objective.kl.placement == "loss":
            with self.state.reference.scoring() as reference:
                updates = self._attach(updates, "ref_logprobs_T", reference)
        old = "engine" if self.settings.objective.old_logprobs == "engine" else "current"
        gated = made[:1]
        if len(made) > 1 and old == "current" and not self.settings.supervised:
            # Later updates see moved weights: pi_old is taken for all of them before the first.
            updates = self._attach(updates, "old_logprobs_T", self.state.model)
            self._check_agreement(updates, work.samples, before_step)
            old, gated = "stored", []
        batches_of = dict(zip(distinct, updates, strict=True))
        results = []
        for index, update in enumerate(work.updates):
            if not update:
                results.append({"optimizer/empty_updates": 1.0})
                continue
            loss = LossSettings(
                objective=self.settings.objective,
                kl_coefficient=work.scalars["kl_coefficient"],
                total_tokens=int(work.scalars[f"total_tokens/{index}"]),
                old_logprobs=old,
                supervised=self.settings.supervised,
            )
            gate = before_step if index in gated else None
            results.append(self._update(batches_of[update], work.samples, loss, gate))
        return results

    def sequence_kl(self, work: ReplicaWork) -> list[float]:
        """The KL to the reference of each of the step's responses, summed over its tokens, on every rank; collective.

        ``work`` holds one update without weights. The policy's log-probabilities are its own, or the engine's where
        the settings say so. Where the reference's are not finite, or so far from the policy's that the KL is not, there
        is no penalty to be had: the updates of the next ``step`` are skipped.
        """
        assert self.state.reference is not None, "a KL in the reward needs a reference"
        self._kl_faults, self._kl_fault_token = 0, ""
        (indices,) = work.updates
        if not indices:
            return [0.0] * int(work.scalars["samples"])
        with phase(self.groups, "microbatches"):
            batches = [self._microbatch(work.samples, chosen) for chosen in indices]
        with self.state.reference.scoring() as reference:
            batches = self._attach([batches], "ref_logprobs_T", reference)[0]
        if self.settings.objective.old_logprobs == "trainer":
            batches = self._attach([batches], "old_logprobs_T", self.state.model)[0]
        totals = torch.zeros(int(work.scalars["samples"]), dtype=torch.float64)
        if self.groups.last_stage and self.groups.tensor_rank == 0:
            for batch in batches:
                rows = batch.response_mask_T
                policy = batch.rollout_logprobs_T if batch.old_logprobs_T is None else batch.old_logprobs_T
                assert batch.ref_logprobs_T is not None
                # In float64: exp of a difference above 88 is no float32, and such a response would go unpunished.
                own, reference_own = policy[rows].double(), batch.ref_logprobs_T[rows].double()
                kl = kl_divergence(own, reference_own, estimator=self.settings.objective.kl.estimator)
                # The policy's own faults are the update's to find, in the tokens that are trained on.
                faulty = own.isfinite() & ~kl.isfinite()
                if bool(faulty.any()):
                    self._kl_faults += int(faulty.sum())
                    first = int(faulty.int().argmax())
                    self._kl_fault_token = self._kl_fault_token or _describe_token(batch, work.samples, first)
                numbers = torch.tensor([work.numbers[index] for index in batch.sample_indices], dtype=torch.int64)
                totals.index_add_(0, numbers[response_sequences(batch)[0].cpu()], kl.cpu())
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
                sums = sequence_sums(batch, self.groups.cp)
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
        sums = _sum_over_microbatches(collected)
        metrics = reduce_metrics(sums, self.groups, maxima=_MAXIMA)
        if int(metrics["count/tokens"]) != loss.total_tokens:
            raise RuntimeError(
                f"the microbatches hold {int(metrics['count/tokens'])} response tokens, the plan {loss.total_tokens}: "
                "the loss would be scaled wrongly"
            )
        if before_step is not None:
            before_step(metrics, lambda: self._worst_token(batches, collected, samples, metrics["gate/max"]))
        if self._kl_faults:
            sums = sums | {NOT_FINITE_REFERENCE: float(self._kl_faults)}
        if faults := find_faults(state.model, sums, self.groups):
            return self._skip(faults, batches, collected, samples)
        self.skipped_in_a_row = 0
        metrics["optimizer/skipped_updates"] = 0.0
        _, gradient_norm, _ = state.optimizer.step()
        # Not from the optimizer's groups: a rank whose every parameter is frozen has none.
        metrics["optimizer/learning_rate"] = float(state.scheduler.get_lr({}))
        state.scheduler.step(1)
        if gradient_norm is not None:
            metrics["optimizer/gradient_norm"] = float(gradient_norm)
        return metrics

    def _skip(
        self,
        faults: Sequence[Fault],
        batches: Sequence[Microbatch],
        collected: Sequence[dict[str, torch.Tensor]],
        samples: Sequence[TrainingSample],
    ) -> dict[str, float]:
        """Leaves parameters, optimizer and schedule alone and says why; collective, as ``faults`` are every rank's."""
        self.skipped_in_a_row += 1
        token = ""
        for batch, item in zip(batches, collected, strict=False):  # stages before the last collected nothing
            row = int(item.get(NOT_FINITE_ROW, -1))
            if not token and row >= 0:
                token = _describe_token(batch, samples, row)
        found = describe_faults(faults, share_text(token or self._kl_fault_token, self.groups))
        limit = self.settings.max_skipped_in_a_row
        if self.skipped_in_a_row >= limit:
            raise NonFiniteError(
                f"{found}: {self.skipped_in_a_row} update(s) skipped in a row, as many as "
                f"training.max_skipped_in_a_row={limit} allows. Parameters and optimizer are as they were before them; "
                "lower optimizer.learning_rate or set optimizer.clip_gradient if the policy diverged, look at the "
                "responses of the step, and go on with --resume from the last checkpoint"
            )
        if self.groups.is_controller:
            say(
                f"update skipped ({self.skipped_in_a_row} in a row, the run stops at {limit}): {found}; parameters and "
                "optimizer stay as they are"
            )
        return {"optimizer/skipped_updates": 1.0}
