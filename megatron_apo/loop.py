"""The reinforcement-learning loop: generate, score, shape, pack, update, sync.

Every rank runs this file. Rank 0 is the controller: it alone draws, scores and plans; each replica gets its part of
the plan, all ranks update together, and the weights go back to the engine before the next step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from megatron_apo.config import Config
from megatron_apo.data.costs import CostModel
from megatron_apo.data.distribution import distribute
from megatron_apo.data.order import PromptStream
from megatron_apo.data.pixels import PixelSource, images_of
from megatron_apo.dynamic_sampling import mark_dropped, refill_metrics, refill_size
from megatron_apo.objective.mismatch import mismatch_metrics
from megatron_apo.objective.objective import kl_coefficient, needs_reference
from megatron_apo.objective.samples import ShapedStep, have_contrast, scoring_samples, shape_step
from megatron_apo.observability.console import say
from megatron_apo.observability.metrics import rollout_metrics
from megatron_apo.observability.timers import PhaseTimer
from megatron_apo.parallel.groups import Groups
from megatron_apo.parallel.reduction import share_text
from megatron_apo.parallel.scatter import scatter_work, share_images
from megatron_apo.parallel.status import phase
from megatron_apo.records import Prompt, ReplicaWork, RolloutGroup, TrainingSample
from megatron_apo.rollout.engine import RolloutEngine, SamplingSettings
from megatron_apo.training.update import Trainer
from megatron_apo.weight_sync.verify import check_logprob_agreement

_SEEDS_APART = 2**40  # beyond every step's seed


class RolloutSource(Protocol):
    """Where a step's responses come from: a live engine, or recorded ones."""

    def rollouts(self, step: int, prompts: Sequence[Prompt], number: int = 0) -> list[RolloutGroup]:
        """Unscored groups of the step's draw ``number`` for ``prompts`` (a replay brings its own), in order."""
        ...


class Grader(Protocol):
    """Scores groups; see ``rewards.pool.Scorer``."""

    def score(self, groups: Sequence[RolloutGroup], earlier: Sequence[RolloutGroup] = ()) -> list[RolloutGroup]: ...


class StepLog(Protocol):
    """Receives what a step measured and drew; on the controller only. Says why the run must stop, or nothing."""

    def record(
        self, step: int, metrics: dict[str, float], groups: Sequence[RolloutGroup], shaped: ShapedStep, version: int
    ) -> str: ...


class Save(Protocol):
    """Writes a checkpoint; collective. ``keep_all``: none of the older ones is removed."""

    def __call__(self, step: int, version: int, *, keep_all: bool = False) -> None: ...


@dataclass(frozen=True)
class Controller:
    """What only rank 0 holds."""

    prompts: Sequence[Prompt]
    stream: PromptStream
    source: RolloutSource
    grader: Grader
    log: StepLog


@dataclass
class LoopParts:
    """Everything the loop runs on; ``controller`` is None on every rank but 0.

    ``sync(version)`` sends the trainer's weights to the engine and returns its metrics; ``evaluate(step)`` returns the
    metrics of the validation rows. Both are collective, as ``save`` is. ``costs``: what sequences and images cost, so
    that the ranks' work is even. ``pixels``: where the trainer's come from, when it can be told what is needed next.
    """

    config: Config
    groups: Groups
    trainer: Trainer
    controller: Controller | None
    sync: Callable[[int], dict[str, float]]
    save: Save
    evaluate: Callable[[int], dict[str, float]]
    enforce_gate: bool = True
    costs: CostModel = field(default_factory=CostModel)
    pixels: PixelSource | None = None


def step_sampling(config: Config, step: int, number: int = 0) -> SamplingSettings:
    """How draw ``number`` of step ``step`` draws its responses; from the settings, the step and the number alone, so a
    resumed run draws the same. No two draws of a run share a seed."""
    settings = config.sampling
    return SamplingSettings(
        group_size=settings.group_size,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=config.run.seed * 1_000_003 + step + number * _SEEDS_APART,
    )


class LiveRollouts:
    """Responses drawn from an engine."""

    def __init__(self, engine: RolloutEngine, config: Config) -> None:
        self._engine = engine
        self._config = config

    def rollouts(self, step: int, prompts: Sequence[Prompt], number: int = 0) -> list[RolloutGroup]:
        if not prompts:
            return []
        drawn = self._engine.generate(prompts, step_sampling(self._config, step, number))
        return [
            RolloutGroup(prompt, tuple(rollouts), round=number) for prompt, rollouts in zip(prompts, drawn, strict=True)
        ]


def draw(
    controller: Controller, config: Config, step: int, timer: PhaseTimer, forbidden_token_ids: Collection[int] = ()
) -> list[RolloutGroup]:
    """The scored groups of a step. With ``rollout.refill_rounds`` further prompts are drawn in place of those whose
    group has no contrast; all of them are returned, marked where they are not trained on."""

    def drawn(indices: Sequence[int], number: int, earlier: Sequence[RolloutGroup]) -> list[RolloutGroup]:
        with timer.phase("rollout"):
            unscored = controller.source.rollouts(step, [controller.prompts[index] for index in indices], number)
        with timer.phase("score"):
            return controller.grader.score(unscored, earlier)

    groups = drawn(controller.stream.indices(step - 1), 0, ())
    if not config.rollout.refill_rounds:
        return groups
    spare, wanted = controller.stream.spare(step - 1), config.rollout.prompts_per_step
    contrast = have_contrast(groups, config.objective, forbidden_token_ids=forbidden_token_ids)
    for number in range(1, config.rollout.refill_rounds + 1):
        size = refill_size(contrast, wanted)
        more = drawn(list(islice(spare, size)), number, groups) if size else []
        if not more:
            break  # enough, or no prompt left (of a recording: no further round)
        groups = [*groups, *more]
        contrast += have_contrast(more, config.objective, forbidden_token_ids=forbidden_token_ids)
    return mark_dropped(groups, contrast, wanted=wanted)


def _announce_images(parts: LoopParts, step: int) -> None:
    """Every rank hears of the step's images, and cuts them while the engine answers; collective.

    Of all of them, whatever the number of replicas: which rank's a response becomes, its length will decide.
    """
    if parts.pixels is None or not parts.config.data.pixel_workers:
        return
    images = None
    with phase(parts.groups, "images"):
        if parts.controller is not None:
            prompts, stream = parts.controller.prompts, parts.controller.stream
            images = [image for index in stream.indices(step - 1) for image in prompts[index].images]
    parts.pixels.ahead(share_images(images, parts.groups))


def _plan(parts: LoopParts, shaped: ShapedStep, step: int) -> list[ReplicaWork]:
    in_reward = parts.config.objective.kl.placement == "reward"
    scalars = {"kl_coefficient": 0.0 if in_reward else _kl_coefficient(parts.config, step)}
    return _dealt(parts, shaped.samples, shaped.updates, scalars)


def _dealt(
    parts: LoopParts, samples: Sequence[TrainingSample], updates: Sequence[Sequence[int]], scalars: dict[str, float]
) -> list[ReplicaWork]:
    """``distribute`` as this run's settings and layout have it."""
    config = parts.config
    return distribute(
        samples,
        updates,
        tokens_per_microbatch=config.training.tokens_per_microbatch,
        data_parallel=parts.groups.data_size,
        sequence_multiple=config.parallel.sequence_multiple,
        microbatch_multiple=config.parallel.microbatch_multiple,
        pipeline=config.parallel.pipeline,
        costs=parts.costs,
        scalars=scalars,
    )


def _kl_coefficient(config: Config, step: int) -> float:
    """Of step 1 ... run.steps: a schedule's own s, so that the last step has the schedule's end."""
    return kl_coefficient(config.objective, step, config.run.steps)


def _reward_penalties(
    parts: LoopParts, drawn: Sequence[RolloutGroup], step: int, timer: PhaseTimer
) -> tuple[list[list[float]], dict[str, float]]:
    """What a KL in the reward takes off each response's, by group, and its metrics; collective.

    A response whose KL is not finite keeps its reward: nothing is learned from it, as the step's updates are skipped
    for the same log-probability (of the reference: ``Trainer.sequence_kl``).
    """
    config, works = parts.config, None
    samples: list[TrainingSample] = []
    places: list[tuple[int, int]] = []
    with phase(parts.groups, "reference plan"):
        if parts.controller is not None:
            samples, places = scoring_samples(drawn, parts.trainer.settings.head.forbidden_token_ids)
            works = _dealt(parts, samples, [range(len(samples))], {"samples": float(len(samples))})
    with timer.phase("reference"):
        divergences = parts.trainer.sequence_kl(scatter_work(works, parts.groups))
    coefficient = _kl_coefficient(config, step)
    penalties = [[0.0] * len(group.rollouts) for group in drawn]
    tokens, total, count = 0, 0.0, 0
    for (p, g), sample, divergence in zip(places, samples, divergences, strict=False):  # no places beside rank 0
        if math.isfinite(divergence):
            penalties[p][g] = coefficient * divergence
            tokens, total, count = tokens + len(sample.response_ids), total + divergence, count + 1
    metrics = {"kl/coefficient": coefficient}
    if count:
        metrics |= {"kl/raw": total / max(tokens, 1), "kl/penalty": coefficient * total / count}
    return penalties, metrics


def _gate(parts: LoopParts, metrics: dict[str, float], worst_token: Callable[[], str], seen: dict[str, float]) -> None:
    """Before an optimizer step: do engine and trainer give the sampled tokens the same probability?"""
    mean = metrics["gate/sum"] / max(metrics["gate/count"], 1.0)
    seen["sync/logprob_difference_mean"] = mean
    seen["sync/logprob_difference_max"] = metrics["gate/max"]
    seen |= mismatch_metrics(metrics)
    if parts.enforce_gate:
        check_logprob_agreement(mean, metrics["gate/max"], worst_token, parts.config.sync.logprob_gate)


@dataclass(frozen=True)
class StepOutcome:
    """What a step leaves for the log; ``shaped`` is None on every rank but the controller's."""

    metrics: dict[str, float]
    drawn: list[RolloutGroup]
    shaped: ShapedStep | None


def run_step(parts: LoopParts, step: int, version: int, timer: PhaseTimer) -> StepOutcome:
    """One step on every rank: rollouts by weights ``version``, the update, and the sync of ``version`` + 1."""
    controller, groups, work = parts.controller, parts.groups, None
    drawn: list[RolloutGroup] = []
    shaped: ShapedStep | None = None
    works: list[ReplicaWork] | None = None
    penalties: list[list[float]] = []
    penalised: dict[str, float] = {}
    training, forbidden = parts.config.training, parts.trainer.settings.head.forbidden_token_ids
    _announce_images(parts, step)
    with phase(groups, "rollout"):
        if controller is not None:
            drawn = draw(controller, parts.config, step, timer, forbidden)
    if parts.config.objective.kl.placement == "reward" and needs_reference(parts.config.objective):
        penalties, penalised = _reward_penalties(parts, drawn, step, timer)
    with phase(groups, "shape"):
        if controller is not None:
            with timer.phase("shape"):
                shaped = shape_step(
                    drawn,
                    parts.config.objective,
                    max_tokens=parts.config.sampling.max_tokens,
                    penalties=penalties,
                    updates=training.updates_per_rollout,
                    epochs=training.epochs_per_rollout,
                    forbidden_token_ids=forbidden,
                )
                works = _plan(parts, shaped, step)
    with timer.phase("scatter"):
        work = scatter_work(works, groups)
    if parts.pixels is not None:
        parts.pixels.ahead(images_of(work))
    agreement: dict[str, float] = {}
    with timer.phase("update"):
        updates = parts.trainer.step(work, lambda metrics, worst_token: _gate(parts, metrics, worst_token, agreement))
    with timer.phase("sync"):
        synced = parts.sync(version + 1)
    metrics = _over_updates(updates) | agreement | synced
    if shaped is not None:
        if not shaped.samples:
            say(
                f"step {step}: none of the {sum(len(group.rollouts) for group in drawn)} responses can be trained on, "
                "parameters and optimizer stay as they are; apo/zero_variance_groups, rollout/truncated and "
                "reward/grader_error say why"
            )
        metrics |= rollout_metrics(drawn) | shaped.metrics | {"kl/coefficient": work.scalars["kl_coefficient"]}
        metrics |= penalised
        if parts.config.rollout.refill_rounds:
            metrics |= refill_metrics(drawn)
        metrics |= _throughput(drawn, timer.collect())
        if parts.pixels is not None:
            metrics["time/pixels"] = parts.pixels.take_seconds()
    return StepOutcome(metrics, drawn, shaped)


def _over_updates(updates: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the updates that were made, and how many were skipped or had nothing to train on."""
    internal, counted = ("gate/", "count/"), ("optimizer/skipped_updates", "optimizer/empty_updates")
    names = {name: None for update in updates for name in update if not name.startswith(internal)}
    found = {name: [update[name] for update in updates if name in update] for name in names}
    means = {name: sum(values) / len(values) for name, values in found.items()}
    return means | {name: sum(update.get(name, 0.0) for update in updates) for name in counted}


def _throughput(drawn: Sequence[RolloutGroup], seconds: dict[str, float]) -> dict[str, float]:
    tokens = sum(len(group.prompt.token_ids) + len(rollout.token_ids) for group in drawn for rollout in group.rollouts)
    return seconds | {"throughput/tokens_per_second": tokens / max(seconds["time/step"], 1e-9)}


def run_loop(parts: LoopParts, *, first_step: int, version: int) -> str:
    """Steps ``first_step`` to ``run.steps`` (from 1), the engine at weight version ``version`` when it starts.

    Returns why it stopped before its end, the same on every rank, and nothing when it did not. The state it stopped in
    is saved, and no older checkpoint removed for it: whoever goes on may want to do so from before it went wrong.
    """
    run = parts.config.run
    timer = PhaseTimer()
    for step in range(first_step, run.steps + 1):
        timer.collect()
        outcome = run_step(parts, step, version, timer)
        metrics, stop = outcome.metrics, ""
        if run.evaluate_every and step % run.evaluate_every == 0:
            metrics |= parts.evaluate(step)
        with phase(parts.groups, "log"):  # a full disk on the controller must not leave the others waiting
            if parts.controller is not None and outcome.shaped is not None:
                stop = parts.controller.log.record(step, metrics, outcome.drawn, outcome.shaped, version)
        stop = share_text(stop, parts.groups)
        version += 1
        if stop or step == run.steps or (run.save_every and step % run.save_every == 0):
            parts.save(step, version, keep_all=bool(stop))
        if stop:
            return stop
    return ""
