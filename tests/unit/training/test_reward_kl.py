"""A KL in the reward is that of the tokens that are trained on; a response that is not trained on has no part in it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_apo.config import Config
from megatron_apo.loop import LoopParts, _plan, _reward_penalties
from megatron_apo.objective.samples import shape_step
from megatron_apo.observability.timers import PhaseTimer
from megatron_apo.parallel.groups import Groups
from megatron_apo.records import Prompt, Rollout, RolloutGroup, Score, TrainingSample
from megatron_apo.training.finite import NonFiniteError
from megatron_apo.training.microbatches import score_microbatches
from megatron_apo.training.setup import TrainingState
from megatron_apo.training.update import Trainer
from tests.distributed.finite import differences, make_rl_trainer, snapshot
from tests.unit.model_providers.reference import make_checkpoint, pack
from tests.unit.training.jobs import PATCH_VALUES, job_config, samples_of

COEFFICIENT, FORBIDDEN = 0.1, 3
RLOO = [
    "--objective.name=rloo",
    "--objective.stcr.enabled=false",
    "--training.tokens_per_microbatch=40",
    f"--objective.kl.coefficient={COEFFICIENT}",
]
ABORTED, IMPOSSIBLE, UNJUDGED = (0, 2), (1, 1), (1, 3)
LEFT_OUT = (ABORTED, IMPOSSIBLE, UNJUDGED)
Place = tuple[int, int]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_checkpoint(tmp_path_factory.mktemp("policy"), tied=True))


def _response(place: Place) -> tuple[int, ...]:
    """3 to 7 tokens, different ones in each response, none of them of images."""
    p, g = place
    return tuple(20 + (7 * p + 3 * g + t) % 40 for t in range(3 + (p + 2 * g) % 5))


def _group(p: int, prompt: TrainingSample) -> RolloutGroup:
    """Four responses with rewards 1, 0, 0, 1, one of them aborted, or one impossible and one unjudged."""
    rollouts, scores = [], []
    for g in range(4):
        ids, place = _response((p, g)), (p, g)
        logprobs = tuple(-4.0 - 0.1 * t - 0.2 * g for t in range(len(ids)))
        if place in (IMPOSSIBLE, UNJUDGED):  # not a number may come of them
            logprobs = (math.nan, -math.inf, *logprobs[2:])
        if place == IMPOSSIBLE:
            ids = (*ids[:-1], FORBIDDEN)
        rollouts.append(Rollout(str(p), g, ids, logprobs, "", "abort" if place == ABORTED else "stop", 0))
        outcome = "grader_error" if place == UNJUDGED else "correct" if g in (0, 3) else "wrong"
        scores.append(Score(float(g in (0, 3)), {}, outcome))  # type: ignore[arg-type]
    asked = Prompt(str(p), prompt.prompt_ids, prompt.prompt_ids, prompt.images, "?", "7")
    return RolloutGroup(asked, tuple(rollouts), tuple(scores))


class Job:
    """A policy that has moved away from its reference, and three groups of responses."""

    def __init__(self, checkpoint: str, groups: Groups, old: str) -> None:
        overrides = [*RLOO, f"--objective.old_logprobs={old}"]
        self.config: Config = job_config(checkpoint, *overrides)  # type: ignore[arg-type]
        self.trainer: Trainer
        self.state: TrainingState
        self.trainer, self.state = make_rl_trainer(checkpoint, groups, overrides)
        settings = self.trainer.settings
        self.trainer.settings = replace(settings, head=replace(settings.head, forbidden_token_ids=(FORBIDDEN,)))
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.state.model[0].parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        prompts = samples_of(pack(PATCH_VALUES))
        self.groups = [_group(p, prompts[p]) for p in range(3)]
        nothing: Any = None
        controller: Any = object()
        self.parts = LoopParts(self.config, groups, self.trainer, controller, nothing, nothing, nothing)

    def penalties(self, groups: list[RolloutGroup]) -> tuple[list[list[float]], dict[str, float]]:
        return _reward_penalties(self.parts, groups, 1, PhaseTimer())

    def divergence(self, group: RolloutGroup, g: int) -> float:
        """k1 of one response alone in a microbatch, in float64: log policy - log reference, summed over its tokens."""
        rollout, prompt, head = group.rollouts[g], group.prompt, self.trainer.settings.head
        sample = TrainingSample(prompt.token_ids, rollout.token_ids, prompt.images)
        batch = self.trainer._microbatch([sample], [0])
        rows = batch.response_mask_T
        assert self.state.reference is not None
        with self.state.reference.scoring() as model:
            (reference,) = score_microbatches(model, [batch], head, self.parts.groups) or []
        (policy,) = score_microbatches(self.state.model, [batch], head, self.parts.groups) or []
        own = policy[rows].double()
        if self.config.objective.old_logprobs == "engine":
            own = torch.tensor(rollout.logprobs, dtype=torch.float64)
        return float((own - reference[rows].double()).sum())


@pytest.mark.parametrize("old", ["trainer", "engine"])
def test_the_penalty_is_the_kl_of_the_trained_tokens(old: str, checkpoint: str, one_process: Groups) -> None:
    """Under the trainer's or the engine's policy; what is left out is neither scored nor punished."""
    job = Job(checkpoint, one_process, old)
    penalties, metrics = job.penalties(job.groups)
    found, tokens = [], 0
    for p, group in enumerate(job.groups):
        for g, rollout in enumerate(group.rollouts):
            if (p, g) in LEFT_OUT:
                assert penalties[p][g] == 0.0
                continue
            found.append(job.divergence(group, g))
            tokens += len(rollout.token_ids)
            assert penalties[p][g] == pytest.approx(COEFFICIENT * found[-1], rel=1e-5, abs=1e-6)
    assert len(found) == 9 and min(map(abs, found)) > 1e-3 and len({round(one, 3) for one in found}) == 9
    assert metrics == pytest.approx(
        {
            "kl/coefficient": COEFFICIENT,
            "kl/raw": sum(found) / tokens,
            "kl/penalty": COEFFICIENT * sum(found) / len(found),
        },
        rel=1e-5,
    )


@pytest.mark.parametrize("old", ["trainer", "engine"])
def test_a_response_that_is_left_out_does_not_spoil_its_group(old: str, checkpoint: str, one_process: Groups) -> None:
    """Every advantage is finite, and that of its group without it: reward - KL, less the mean of the others'."""
    job = Job(checkpoint, one_process, old)
    penalties, _ = job.penalties(job.groups)
    step = shape_step(job.groups, job.config.objective, penalties=penalties, forbidden_token_ids=(FORBIDDEN,))
    samples = iter(step.samples)
    for p, group in enumerate(job.groups):
        kept = [g for g in range(4) if (p, g) not in LEFT_OUT]
        rewards = [float(g in (0, 3)) - COEFFICIENT * job.divergence(group, g) for g in kept]
        for g, reward in zip(kept, rewards, strict=True):
            sample = next(samples)
            assert sample.response_ids == group.rollouts[g].token_ids
            others = (sum(rewards) - reward) / (len(rewards) - 1)
            assert sample.advantage == pytest.approx(reward - others, rel=1e-5, abs=1e-5)
    assert next(samples, None) is None


def test_a_kl_that_is_not_finite_takes_nothing_off(checkpoint: str, one_process: Groups) -> None:
    """An engine's log-probability of -inf: the reward stays, the other penalties and the metrics are as without it."""
    job = Job(checkpoint, one_process, "engine")
    expected, _ = job.penalties(job.groups)
    first = job.groups[0]
    spoilt = replace(first.rollouts[1], logprobs=(-math.inf, *first.rollouts[1].logprobs[1:]))
    groups = [replace(first, rollouts=(first.rollouts[0], spoilt, *first.rollouts[2:])), *job.groups[1:]]
    penalties, metrics = job.penalties(groups)
    assert penalties[0][1] == 0.0 != expected[0][1]
    expected[0][1] = 0.0
    assert penalties == expected
    assert all(math.isfinite(value) for value in metrics.values())
    step = shape_step(groups, job.config.objective, penalties=penalties, forbidden_token_ids=(FORBIDDEN,))
    assert all(math.isfinite(sample.advantage) for sample in step.samples)


def test_a_reference_without_a_number_skips_the_updates(checkpoint: str, one_process: Groups) -> None:
    """Its response would go unpunished otherwise, and the update say nothing: it does not look at a reference."""
    job = Job(checkpoint, one_process, "trainer")
    job.trainer.settings = replace(job.trainer.settings, max_skipped_in_a_row=3)

    def made() -> tuple[list[dict[str, float]], list[str]]:
        penalties, _ = job.penalties(job.groups)
        shaped = shape_step(job.groups, job.config.objective, penalties=penalties, forbidden_token_ids=(FORBIDDEN,))
        before = snapshot(job.state)
        results = job.trainer.step(_plan(job.parts, shaped, 1)[0])
        return results, differences(before, snapshot(job.state))

    reference = job.state.reference
    assert reference is not None
    with reference.scoring() as (model,):
        weight = next(iter(model.parameters()))
        kept = weight.detach().clone()
        weight.data.fill_(math.nan)
        for _ in range(2):
            assert made() == ([{"optimizer/skipped_updates": 1.0}], [])
        with pytest.raises(NonFiniteError, match=r"the reference's log-probabilities \(first on rank 0\), at prompt '"):
            made()
        weight.data.copy_(kept)
    results, moved = made()
    assert results[0]["optimizer/skipped_updates"] == 0.0 and moved


def test_a_large_divergence_is_still_a_number(checkpoint: str, one_process: Groups) -> None:
    """exp(96) of k3 is beyond float32: the response farthest from the reference would go without a penalty."""
    job = Job(checkpoint, one_process, "engine")
    settings = job.trainer.settings
    kl = replace(settings.objective.kl, estimator="k3")
    job.trainer.settings = replace(settings, objective=replace(settings.objective, kl=kl))
    first = job.groups[2]
    far = replace(first.rollouts[1], logprobs=(-100.0, *first.rollouts[1].logprobs[1:]))
    penalties, _ = job.penalties([replace(first, rollouts=(first.rollouts[0], far, *first.rollouts[2:]))])
    assert 1e38 < penalties[0][1] < math.inf
