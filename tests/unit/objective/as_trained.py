"""The product's way from drawn answers to a loss and its gradient: scored, shaped, dealt over data ranks, packed,
through the adapter of Megatron's schedule; only the model is left out, whose log-probabilities are given.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from megatron_apo.config import Config
from megatron_apo.data import distribution
from megatron_apo.data.packing import build_microbatch
from megatron_apo.objective.kl import kl_divergence
from megatron_apo.objective.objective import kl_coefficient, needs_reference
from megatron_apo.objective.samples import shape_step
from megatron_apo.records import FinishReason, Microbatch, Prompt, Rollout, RolloutGroup, TrainingSample
from megatron_apo.rewards.overlong import overlong_punishment
from megatron_apo.rewards.pool import Scorer
from megatron_apo.training.forward_step import LossSettings, objective_loss
from tests.unit.objective.transcription import Answer

GOLD = "7"
# Equal texts are equal answers: what math-verify makes of others has tests of its own, and takes seconds to load.
_GRADER = [
    sys.executable,
    "-c",
    """
import json, sys
print('{"ready": true}', flush=True)
for asked in map(json.loads, sys.stdin):
    print(json.dumps({"outcome": ("wrong", "correct")[asked["answer"] == asked["gold"]], "detail": ""}), flush=True)
""",
]
RANKS, TOKENS_PER_MICROBATCH = 3, 40
Gradients = dict[tuple[int, int], torch.Tensor]  # [tokens] of (prompt, response)


@dataclass(frozen=True)
class Update:
    """One optimizer update's loss and gradient with respect to the log-probabilities."""

    loss: float
    gradients: Gradients


def _text(answer: Answer) -> str:
    if not answer.ended:
        return "<think>and on and on"
    told = f"<answer>{GOLD if answer.right else 8}</answer>"
    return f"<think>so</think>{told}" if answer.well_formed else told


def rollout_groups(prompts: Sequence[Sequence[Answer]]) -> list[RolloutGroup]:
    """Unscored groups; response g of prompt p starts with token 1000 p + g."""
    groups = []
    for p, answers in enumerate(prompts):
        prompt = Prompt(str(p), tuple(range(1, 3 + p % 4)), (1,), (), "?", GOLD)
        rollouts = []
        for g, answer in enumerate(answers):
            reason: FinishReason = "abort" if not answer.kept else "stop" if answer.ended else "length"
            ids = (1000 * p + g, *(5,) * (len(answer.old) - 1))
            rollouts.append(Rollout(prompt.id, g, ids, answer.old, _text(answer), reason, 0))
        groups.append(RolloutGroup(prompt, tuple(rollouts)))
    return groups


def packed_batch(samples: Sequence[TrainingSample], indices: Sequence[int]) -> Microbatch:
    """``indices`` of imageless ``samples``, packed on one rank."""
    return build_microbatch(
        samples,
        indices,
        position_ids=lambda sample: torch.arange(sample.length).expand(3, -1),
        pixel_values=lambda image: torch.zeros(0),
        vision_token_ids=(),
        spatial_merge_size=1,
    )


def _spread(batch: Microbatch, values: Sequence[torch.Tensor]) -> torch.Tensor:
    spread = torch.zeros(len(batch.labels_T), dtype=torch.float64)
    if values:
        spread[batch.response_mask_T] = torch.cat(list(values))
    return spread


def _penalties(prompts: Sequence[Sequence[Answer]], config: Config, step: int) -> list[list[float]]:
    if config.objective.kl.placement != "reward":
        return []
    times, estimator = kl_coefficient(config.objective, step, config.run.steps), config.objective.kl.estimator
    return [
        [times * float(kl_divergence(_f64(a.old), _f64(a.reference), estimator=estimator).sum()) for a in answers]
        for answers in prompts
    ]


def _f64(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def train(prompts: Sequence[Sequence[Answer]], config: Config, *, updates: int, step: int) -> list[Update]:
    """Loss and gradients of each update of a rollout step."""
    settings = config.objective
    with Scorer(config.rewards, overlong=overlong_punishment(config), grader_command=_GRADER) as scorer:
        groups = scorer.score(rollout_groups(prompts))
    shaped = shape_step(
        groups,
        settings,
        max_tokens=config.sampling.max_tokens,
        updates=updates,
        penalties=_penalties(prompts, config, step),
    )
    works = distribution.distribute(
        shaped.samples,
        shaped.updates,
        tokens_per_microbatch=TOKENS_PER_MICROBATCH,
        data_parallel=RANKS,
        scalars={},
    )
    in_loss = settings.kl.placement == "loss" and needs_reference(settings)
    found = []
    for number in range(updates):
        total_tokens = int(works[0].scalars[f"total_tokens/{number}"])
        loss = LossSettings(
            objective=settings,
            kl_coefficient=kl_coefficient(settings, step, config.run.steps) if in_loss else 0.0,
            total_tokens=total_tokens,
            old_logprobs="stored",
        )
        total, counted = torch.zeros((), dtype=torch.float64), 0
        leaves: Gradients = {}
        for work in works:  # what Megatron's schedule and its DDP add up
            for indices in work.updates[number]:
                batch = packed_batch(work.samples, indices)
                places = [(int(s.prompt_id), s.response_ids[0] % 1000) for s in (work.samples[i] for i in indices)]
                answers = [prompts[p][g] for p, g in places]
                own = {place: _f64(a.policy).requires_grad_() for place, a in zip(places, answers, strict=True)}
                batch = replace(
                    batch,
                    old_logprobs_T=_spread(batch, [_f64(a.old) for a in answers]),
                    ref_logprobs_T=_spread(batch, [_f64(a.reference) for a in answers]) if in_loss else None,
                )
                logprobs = torch.cat([_f64(()), *own.values()])
                part, count, _ = objective_loss(logprobs, torch.zeros_like(logprobs), batch, loss)
                total, counted, leaves = total + part, counted + int(count), leaves | own
        (total / counted).backward()
        gradients = {
            place: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for place, leaf in leaves.items()
        }
        found.append(Update(float(total.detach()) / counted, gradients))
    return found
