"""A response with a token that the policy gives probability 0 was not drawn from it: worked out by hand."""

from __future__ import annotations

import pytest

from megatron_apo.config import ObjectiveConfig
from megatron_apo.objective.samples import shape_step
from megatron_apo.records import Prompt, Rollout, RolloutGroup, Score

VISION = 9


def group(rewards: list[float], token_ids: list[tuple[int, ...]]) -> RolloutGroup:
    rollouts = tuple(Rollout("p", index, ids, (-1.0,) * len(ids), "", "stop", 0) for index, ids in enumerate(token_ids))
    scores = tuple(Score(reward, {}, "correct" if reward else "wrong") for reward in rewards)
    return RolloutGroup(Prompt("p", (1,), (1,), (), "", ""), rollouts, scores)


def test_a_response_that_cannot_have_been_drawn_is_no_sample_and_leaves_its_group() -> None:
    drawn = group([1.0, 0.0, 1.0, 0.0], [(2,), (3, 4, 5), (6, VISION), (7, 8)])
    shaped = shape_step([drawn], ObjectiveConfig(), forbidden_token_ids=(VISION, 99))
    assert shaped.metrics["rollout/forbidden_tokens"] == 1
    assert [sample.response_ids for sample in shaped.samples] == [(2,), (3, 4, 5), (7, 8)]
    # Rewards 1, 0, 0: mean 1/3, standard deviation 1/sqrt(3) (n - 1); with the third they would be +- 0.866.
    expected = [2 / 3 * 3**0.5, -1 / 3 * 3**0.5, -1 / 3 * 3**0.5]
    assert [sample.advantage for sample in shaped.samples] == pytest.approx(expected)
    assert [sample.policy_weight for sample in shaped.samples] == pytest.approx([1 / 6] * 3)  # token mean of 6 tokens


def test_nothing_is_forbidden_unless_said() -> None:
    shaped = shape_step([group([1.0, 0.0], [(VISION,), (3,)])], ObjectiveConfig())
    assert len(shaped.samples) == 2 and "rollout/forbidden_tokens" not in shaped.metrics


def test_a_step_without_a_possible_response_has_no_sample() -> None:
    drawn = group([1.0, 0.0], [(VISION,), (VISION, 1)])
    shaped = shape_step([drawn], ObjectiveConfig(), forbidden_token_ids=(VISION,))
    assert shaped.samples == () and shaped.updates == ((),)
    assert shaped.metrics["rollout/forbidden_tokens"] == 2
