"""From scored groups to samples: advantages worked out by hand, weights of each update's own batch."""

from __future__ import annotations

from dataclasses import replace
from math import e, exp, sqrt

import pytest

from megatron_apo.config import AdvantageConfig, DadsConfig, KlConfig, ObjectiveConfig, OverlongConfig, StcrConfig
from megatron_apo.objective.samples import have_contrast, scoring_samples, shape_step
from megatron_apo.records import FinishReason, Outcome, Prompt, PromptImage, Rollout, RolloutGroup, Score

PLAIN = ObjectiveConfig(name="grpo", stcr=StcrConfig(enabled=False), dads=DadsConfig(enabled=False))
MASKED = replace(PLAIN, overlong=OverlongConfig(policy="mask"))
Response = tuple[int, float, FinishReason, Outcome]  # tokens, reward, finish reason, outcome


def group(name: str, *responses: Response) -> RolloutGroup:
    prompt = Prompt(name, (1, 2, 3), (1, 3), (PromptImage(f"{name}.png", "00", (1, 2, 2)),), "?", "7")
    rollouts = tuple(
        Rollout(name, index, tuple(range(10, 10 + tokens)), (-1.0,) * tokens, "", finish, 0)
        for index, (tokens, _, finish, _) in enumerate(responses)
    )
    scores = tuple(Score(reward, {"accuracy": reward}, outcome) for _, reward, _, outcome in responses)
    return RolloutGroup(prompt, rollouts, scores)


RIGHT: Response = (2, 1.0, "stop", "correct")
WRONG: Response = (4, 0.0, "stop", "wrong")
CUT: Response = (6, 0.0, "length", "no_answer")
ABORTED: Response = (1, 0.0, "abort", "no_answer")
UNJUDGED: Response = (3, 0.0, "stop", "grader_error")


def test_advantages_by_hand() -> None:
    """Rewards 1, 0, 0, 0: mean 1/4, unbiased standard deviation 1/2: advantages 3/2 and three times -1/2."""
    step = shape_step([group("a", RIGHT, WRONG, WRONG, WRONG)], PLAIN)
    assert [sample.advantage for sample in step.samples] == pytest.approx([1.5, -0.5, -0.5, -0.5])
    assert step.updates == ((0, 1, 2, 3),)
    first = step.samples[0]
    assert (first.prompt_ids, first.response_ids) == ((1, 2, 3), (10, 11))
    assert first.images[0].path == "a.png" and first.rollout_logprobs == (-1.0, -1.0)


def test_token_mean_weights_sum_to_one_over_tokens() -> None:
    """2 + 4 + 4 = 10 response tokens, each with a tenth."""
    step = shape_step([group("a", RIGHT, WRONG), group("b", WRONG, UNJUDGED)], PLAIN)
    assert [sample.policy_weight for sample in step.samples] == pytest.approx([0.1, 0.1, 0.1])


def test_the_kl_has_a_reduction_of_its_own() -> None:
    """Sequence mean of three responses of 2, 4, 4 tokens: 1 / (3 * tokens) a token."""
    settings = replace(PLAIN, kl=KlConfig(coefficient=0.1, reduction="sequence_mean"))
    step = shape_step([group("a", RIGHT, WRONG), group("b", WRONG, ABORTED)], settings)
    assert [sample.kl_token_weight for sample in step.samples] == pytest.approx([1 / 6, 1 / 12, 1 / 12])


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("updates", [1, 2, 3])
def test_weights_sum_to_one_in_every_update(reduction: str, updates: int) -> None:
    groups = [group(str(n), RIGHT, (n + 1, 0.0, "stop", "wrong"), CUT) for n in range(7)]
    step = shape_step(groups, replace(PLAIN, reduction=reduction), updates=updates)
    for batch in step.updates:
        weights = [step.samples[i].policy_weight * len(step.samples[i].response_ids) for i in batch]
        assert sum(weights) == pytest.approx(1.0)


def test_updates_partition_whole_prompts() -> None:
    """Seven prompts in three updates: 2, 2 and 3, every response once."""
    groups = [group(str(n), RIGHT, WRONG) for n in range(7)]
    step = shape_step(groups, PLAIN, updates=3)
    prompts = [{step.samples[i].images[0].path for i in batch} for batch in step.updates]
    assert prompts == [{"0.png", "1.png"}, {"2.png", "3.png"}, {"4.png", "5.png", "6.png"}]
    assert sorted(i for batch in step.updates for i in batch) == list(range(14))


def test_groups_without_contrast_are_dropped_when_asked() -> None:
    """Of 2 + 4 tokens each weighs a sixth; the all-wrong group and the all-right one are left out."""
    groups = [group("a", WRONG, WRONG), group("b", RIGHT, WRONG), group("c", RIGHT, RIGHT)]
    kept = shape_step(groups, replace(PLAIN, drop_zero_variance=True))
    assert {sample.prompt_id for sample in kept.samples} == {"b"}
    assert [sample.policy_weight for sample in kept.samples] == pytest.approx([1 / 6, 1 / 6])
    assert len(kept.shaping) == 3 and kept.metrics["apo/zero_variance_groups"] == pytest.approx(2 / 3)
    assert len(shape_step(groups, PLAIN).samples) == 6
    equal = shape_step([groups[0], groups[2]], replace(PLAIN, drop_zero_variance=True))
    assert equal.samples == () and equal.updates == ((),) and len(equal.shaping) == 2


def test_epochs_repeat_the_updates() -> None:
    groups = [group(str(n), RIGHT, WRONG) for n in range(4)]
    step = shape_step(groups, PLAIN, updates=2, epochs=3)
    assert step.updates == ((0, 1, 2, 3), (4, 5, 6, 7)) * 3
    assert len(step.samples) == 8


def test_truncated_responses_are_masked_on_request() -> None:
    """Left out of the batch and its weights, but not of their group: the advantages stay."""
    groups = [group("a", RIGHT, CUT, WRONG)]
    kept = shape_step(groups, PLAIN)
    masked = shape_step(groups, MASKED)
    assert [len(sample.response_ids) for sample in kept.samples] == [2, 6, 4]
    assert [len(sample.response_ids) for sample in masked.samples] == [2, 4]
    assert masked.samples[0].advantage == kept.samples[0].advantage
    assert [sample.policy_weight for sample in masked.samples] == pytest.approx([1 / 6, 1 / 6])


def test_a_masked_response_still_counts_in_its_group() -> None:
    """Right answers of 2 and, cut, 6 tokens: mean 4, so 8 wrong ones have an excess of 4; 2 of 4 are wrong."""
    cut_but_right: Response = (6, 1.0, "length", "correct")
    groups = [group("a", RIGHT, cut_but_right, (8, 0.0, "stop", "wrong"), WRONG)]
    settings = replace(MASKED, stcr=StcrConfig(enabled=True, base=2.0), dads=DadsConfig(enabled=True))
    step = shape_step(groups, replace(settings, kl=KlConfig(coefficient=0.1)))
    assert [len(sample.response_ids) for sample in step.samples] == [2, 8, 4]
    deviation = sqrt(1 / 3)
    assert step.samples[0].advantage == pytest.approx(0.5 / deviation)
    assert step.samples[1].advantage == pytest.approx(-0.5 / deviation * (2 - 2**-4))
    assert step.samples[0].kl_weight == pytest.approx(1 - exp(-e * 0.5))
    assert have_contrast(groups, settings) == [True]
    only_cut = [group("a", CUT, cut_but_right)]
    assert have_contrast(only_cut, settings) == [False] and have_contrast(only_cut, PLAIN) == [True]


def test_contrast_is_that_of_the_responses_that_are_trained_on() -> None:
    """Rewards 1 (cut), 1/2 and 0 (cut): the one response left has an advantage of exactly 0; kept, it would only make
    the token mean smaller. What is dropped is what a refill replaces."""
    cut_but_right: Response = (5, 1.0, "length", "correct")
    half: Response = (3, 0.5, "stop", "wrong")
    groups = [group("a", cut_but_right, half, CUT), group("b", RIGHT, WRONG, WRONG)]
    dropping = replace(MASKED, drop_zero_variance=True)
    assert have_contrast(groups, dropping) == [False, True]
    step = shape_step(groups, dropping)
    assert [(sample.prompt_id, sample.policy_weight) for sample in step.samples] == [("b", 1 / 10)] * 3
    kept = shape_step(groups, MASKED)
    assert [sample.advantage for sample in kept.samples if sample.prompt_id == "a"] == [0.0]
    unmasked = shape_step(groups, replace(PLAIN, drop_zero_variance=True))
    assert len(unmasked.samples) == 6 and have_contrast(groups, PLAIN) == [True, True]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_microbatch_of_the_reduction_has_as_many_responses_as_the_settings_say(size: int) -> None:
    """Seven responses of 2 and 4 tokens, one left out: in threes 8, 10 and 2 tokens, each a third of the mean."""
    settings = replace(PLAIN, reduction="microbatch_token_mean", microbatch_sequences=size)
    groups = [group("a", RIGHT, WRONG, RIGHT, ABORTED), group("b", WRONG, RIGHT, WRONG, RIGHT)]
    lengths = [2, 4, 2, 4, 2, 4, 2]
    step = shape_step(groups, settings)
    assert [len(sample.response_ids) for sample in step.samples] == lengths
    parts = [lengths[start : start + size] for start in range(0, 7, size)]
    expected = [1 / (sum(part) * len(parts)) for part in parts for _ in part]
    assert [sample.policy_weight for sample in step.samples] == pytest.approx(expected)
    if size == 3:
        assert step.samples[0].policy_weight == pytest.approx(1 / 24)
        assert step.samples[6].policy_weight == pytest.approx(1 / 6)


def test_aborted_and_unjudged_leave_their_group() -> None:
    """Rewards 1 and 0 remain: mean 1/2, unbiased deviation 1 / sqrt(2)."""
    step = shape_step([group("a", RIGHT, ABORTED, WRONG, UNJUDGED)], PLAIN)
    assert [sample.advantage for sample in step.samples] == pytest.approx([1 / sqrt(2), -1 / sqrt(2)])
    assert len(step.shaping[0]) == 4  # the log shows all four


def test_equal_rewards_teach_nothing() -> None:
    step = shape_step([group("a", WRONG, WRONG), group("b", RIGHT, WRONG)], PLAIN)
    assert [sample.advantage for sample in step.samples[:2]] == [0.0, 0.0]
    assert step.metrics["apo/zero_variance_groups"] == 0.5


def test_stcr_lengthens_a_wrong_responses_advantage() -> None:
    """What the log shows: the advantage before and after, and their ratio is the multiplier."""
    settings = replace(PLAIN, stcr=StcrConfig(enabled=True, base=1.5))
    step = shape_step([group("a", RIGHT, WRONG, (8, 0.0, "stop", "wrong"))], settings)
    for sample, shown in zip(step.samples, step.shaping[0], strict=True):
        assert sample.advantage == shown["advantage"]
        assert shown["advantage"] == pytest.approx(shown["raw_advantage"] * shown["stcr"])
    assert step.shaping[0][0]["stcr"] == 1.0 < step.shaping[0][2]["stcr"]
    assert step.metrics["apo/stcr_weight"] == pytest.approx(sum(one["stcr"] for one in step.shaping[0][1:]) / 2)


def test_too_many_updates_are_refused() -> None:
    with pytest.raises(ValueError, match=r"training\.updates_per_rollout=3: more than the 2 prompts"):
        shape_step([group("a", RIGHT, WRONG)] * 2, PLAIN, updates=3)


def test_trainable_groups_are_dealt_evenly_over_the_updates() -> None:
    """Of eight groups in the order drawn four are trained on: two in each of two updates, wherever they came."""
    nothing = [group("cut", CUT, CUT), group("gone", ABORTED, ABORTED), group("odd", UNJUDGED, ABORTED)]
    groups = [
        *nothing,
        *(group(str(n), RIGHT, WRONG) for n in range(4)),
        replace(group("x", RIGHT, WRONG), dropped="surplus"),
    ]
    step = shape_step(groups, MASKED, updates=2)
    prompts = [[step.samples[i].prompt_id for i in batch] for batch in step.updates]
    assert prompts == [["0", "0", "1", "1"], ["2", "2", "3", "3"]]
    for batch in step.updates:
        weights = [step.samples[i].policy_weight * len(step.samples[i].response_ids) for i in batch]
        assert sum(weights) == pytest.approx(1.0)
    dropping = replace(PLAIN, drop_zero_variance=True)
    equal = [group(str(n), *(RIGHT, WRONG if n in (0, 1, 2) else RIGHT)) for n in range(6)]
    assert [len(batch) for batch in shape_step(equal, dropping, updates=3).updates] == [2, 2, 2]


@pytest.mark.parametrize(("trainable", "sizes"), [(0, [0, 0, 0]), (1, [0, 0, 2]), (2, [0, 2, 2])])
def test_fewer_trainable_groups_than_updates_leave_some_empty(trainable: int, sizes: list[int]) -> None:
    groups = [group("a", CUT, ABORTED), *(group(str(n), RIGHT, WRONG) for n in range(trainable)), group("b", CUT, CUT)]
    groups.append(group("c", UNJUDGED, ABORTED))
    step = shape_step(groups, MASKED, updates=3, epochs=2)
    assert [len(batch) for batch in step.updates] == sizes * 2 and step.updates[:3] == step.updates[3:]
    assert len(step.samples) == 2 * trainable and len(step.shaping) == len(groups)


def test_a_penalty_is_part_of_the_reward() -> None:
    """Rewards 1 and 0 less 0.5 and 0.25: 0.5 and -0.25, so advantages of plus and minus 0.375 unscaled."""
    settings = replace(PLAIN, advantage=AdvantageConfig(scale=False))
    step = shape_step([group("a", RIGHT, WRONG)], settings, penalties=[[0.5, 0.25]])
    assert [sample.advantage for sample in step.samples] == pytest.approx([0.375, -0.375])


def test_equal_rewards_are_counted_before_and_after_a_penalty() -> None:
    """Three groups: two whose answers earned the same; a KL in the reward gives one of these some variance."""
    groups = [group("a", WRONG, WRONG), group("b", RIGHT, WRONG), group("c", RIGHT, RIGHT)]
    penalised = shape_step(groups, PLAIN, penalties=[[0.0, 0.25], [0.0, 0.0], [0.0, 0.0]]).metrics
    assert penalised["apo/zero_variance_groups"] == pytest.approx(1 / 3)
    assert penalised["apo/equal_reward_groups"] == pytest.approx(2 / 3)
    plain = shape_step(groups, PLAIN).metrics
    assert plain["apo/zero_variance_groups"] == pytest.approx(2 / 3) and "apo/equal_reward_groups" not in plain


@pytest.mark.parametrize("known", [0, 3])
def test_a_recording_without_log_probabilities_is_refused(known: int) -> None:
    """They would otherwise be read as 0, a probability of 1; of a response that is left out nothing is asked."""
    given = group("a", RIGHT, WRONG, ABORTED)
    rollouts = tuple(replace(rollout, logprobs=rollout.logprobs[:known]) for rollout in given.rollouts)
    short = replace(given, rollouts=(given.rollouts[0], *rollouts[1:]))
    message = f"prompt 'a', response 1: has {known} log-probabilities of the engine for 4 tokens"
    with pytest.raises(ValueError, match=message):
        shape_step([short], PLAIN)
    with pytest.raises(ValueError, match=message):
        scoring_samples([short])
    left_out = replace(given, rollouts=(*given.rollouts[:2], rollouts[2]))
    assert len(shape_step([left_out], PLAIN).samples) == len(scoring_samples([left_out])[0]) == 2


def test_a_constant_divides_by_the_longest_possible_response() -> None:
    step = shape_step([group("a", RIGHT, WRONG)], replace(PLAIN, reduction="constant"), max_tokens=50)
    assert [sample.policy_weight for sample in step.samples] == pytest.approx([1 / 100, 1 / 100])


def test_samples_for_scoring_are_those_that_can_be_trained_on() -> None:
    """Not the aborted, not the unjudged, not one with a forbidden token (15 is the sixth of the cut one's)."""
    groups = [group("a", RIGHT, ABORTED), group("b", CUT, UNJUDGED, WRONG)]
    samples, places = scoring_samples(groups)
    assert places == [(0, 0), (1, 0), (1, 2)]
    assert [(s.prompt_id, len(s.response_ids)) for s in samples] == [("a", 2), ("b", 6), ("b", 4)]
    assert {s.policy_weight for s in samples} == {0.0}
    assert scoring_samples(groups, [15])[1] == [(0, 0), (1, 2)]
    assert scoring_samples([replace(groups[0], dropped="surplus"), groups[1]])[1] == [(1, 0), (1, 2)]
