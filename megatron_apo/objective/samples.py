"""From scored groups to training samples: what the objective makes of each response, and its weight in the batch.

Shape suffixes: P prompts, G responses per prompt, S responses of one update.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from megatron_apo.config import ObjectiveConfig
from megatron_apo.objective.objective import ShapedGroups, shape_groups
from megatron_apo.objective.reductions import token_weights
from megatron_apo.records import RolloutGroup, TrainingSample


@dataclass(frozen=True)
class ShapedStep:
    """A step's samples. ``updates`` lists, per optimizer update, indices into ``samples``; none where none is left.

    ``shaping`` holds, per group and response, what the log and the report show: raw advantage, advantage after STCR,
    STCR multiplier and DADS weight. ``metrics`` are means over the judged responses.
    """

    samples: tuple[TrainingSample, ...]
    updates: tuple[tuple[int, ...], ...]
    shaping: tuple[tuple[dict[str, float], ...], ...]
    metrics: dict[str, float]


def _shape(
    groups: Sequence[RolloutGroup],
    settings: ObjectiveConfig,
    possible_PG: Sequence[Sequence[bool]],
    penalties_PG: Sequence[Sequence[float]] = (),
) -> tuple[ShapedGroups, torch.Tensor]:
    rewards = torch.tensor([[score.total for score in group.scores] for group in groups], dtype=torch.float64)
    if penalties_PG:
        rewards = rewards - torch.tensor(penalties_PG, dtype=torch.float64)
    correct = torch.tensor([[score.correct for score in group.scores] for group in groups])
    valid = torch.tensor(
        [
            [
                score.valid and rollout.finish_reason != "abort" and possible
                for rollout, score, possible in zip(group.rollouts, group.scores, possible_G, strict=True)
            ]
            for group, possible_G in zip(groups, possible_PG, strict=True)
        ]
    )
    lengths = torch.tensor([[len(rollout.token_ids) for rollout in group.rollouts] for group in groups])
    return shape_groups(rewards, correct, lengths, settings=settings, valid_PG=valid), valid


def _metrics(shaped: ShapedGroups, valid: torch.Tensor) -> dict[str, float]:
    def mean(values: torch.Tensor, where: torch.Tensor) -> float | None:
        return float(values[where].double().mean()) if bool(where.any()) else None

    positive = valid & (shaped.advantages_PG > 0)
    negative = valid & (shaped.advantages_PG < 0)
    # A share of groups without any contrast learns nothing but its KL; an all-zero step is worth seeing.
    varied = (shaped.advantages_PG != 0).any(dim=1)
    found = {
        "apo/dads_weight": mean(shaped.kl_weights_PG, positive),
        "apo/stcr_weight": mean(shaped.stcr_PG, negative),
        "apo/zero_variance_groups": float((~varied).double().mean()),
    }
    return {name: value for name, value in found.items() if value is not None}


def _possible(groups: Sequence[RolloutGroup], forbidden_token_ids: Collection[int]) -> list[list[bool]]:
    forbidden = frozenset(forbidden_token_ids)
    return [[forbidden.isdisjoint(rollout.token_ids) for rollout in group.rollouts] for group in groups]


def have_contrast(
    groups: Sequence[RolloutGroup], settings: ObjectiveConfig, *, forbidden_token_ids: Collection[int] = ()
) -> list[bool]:
    """Whether each scored group has a response to train on whose advantage is not 0: what dynamic sampling asks."""
    shaped, valid = _shape(groups, settings, _possible(groups, forbidden_token_ids))
    return [_has_contrast(shaped, p, members) for p, members in enumerate(_included(groups, settings, valid))]


def _has_contrast(shaped: ShapedGroups, row: int, members: Collection[int]) -> bool:
    return any(bool(shaped.advantages_PG[row, g] != 0) for g in members)


def _included(groups: Sequence[RolloutGroup], settings: ObjectiveConfig, valid_PG: torch.Tensor) -> list[list[int]]:
    """The responses of each group that may be trained on: the valid ones that the policy "mask" does not leave out."""
    masked = settings.overlong.policy == "mask"
    return [
        [
            g
            for g, rollout in enumerate(group.rollouts)
            if valid_G[g] and not (masked and rollout.finish_reason == "length")
        ]
        for group, valid_G in zip(groups, valid_PG.tolist(), strict=True)
    ]


def _trainable(
    groups: Sequence[RolloutGroup], settings: ObjectiveConfig, shaped: ShapedGroups, valid_PG: torch.Tensor
) -> list[list[tuple[int, int]]]:
    """(group, response) of what is trained on, of each group that has any."""
    return [
        [(p, g) for g in members]
        for p, members in enumerate(_included(groups, settings, valid_PG))
        if members and not groups[p].dropped and (not settings.drop_zero_variance or _has_contrast(shaped, p, members))
    ]


def shape_step(
    groups: Sequence[RolloutGroup],
    settings: ObjectiveConfig,
    *,
    max_tokens: int = 0,
    updates: int = 1,
    epochs: int = 1,
    forbidden_token_ids: Collection[int] = (),
    penalties: Sequence[Sequence[float]] = (),
) -> ShapedStep:
    """Shapes scored groups and cuts them, whole prompts together, into ``updates`` batches, ``epochs`` times over.

    The groups that have something to train on are dealt evenly over the updates, in their order; with fewer of them
    than updates some updates are empty. The reduction's weights are those of each update's own batch. Responses that
    the grader could not judge, that were aborted, or that ``overlong.policy`` "mask" leaves out are no samples; the
    last count in their group all the same (DAPO masks their loss alone: arXiv:2503.14476, section 3.4). Nor is a
    response with a token of ``forbidden_token_ids``: the policy gives it probability 0, so it was drawn from another
    one (a recording made elsewhere); such responses are counted in ``rollout/forbidden_tokens``.
    ``drop_zero_variance`` leaves out groups without contrast, as ``have_contrast`` finds it (DAPO, arXiv:2503.14476,
    section 3.2). Groups that dynamic sampling marked as dropped are shaped, for the log, but are no samples.
    ``penalties``, by group and response, are taken off the rewards (a KL placed there); ``max_tokens`` is the longest
    response that could be drawn, for the reduction "constant". Raises ValueError when there are fewer prompts than
    updates.
    """
    if len(groups) < updates:
        raise ValueError(
            f"training.updates_per_rollout={updates}: more than the {len(groups)} prompts of a rollout; lower it or "
            "raise rollout.prompts_per_step"
        )
    possible_PG = _possible(groups, forbidden_token_ids)
    shaped, valid = _shape(groups, settings, possible_PG, penalties)
    trainable = _trainable(groups, settings, shaped, valid)
    shaping = _shaping(shaped)
    samples: list[TrainingSample] = []
    batches: list[tuple[int, ...]] = []
    for update in range(updates):
        first, last = len(trainable) * update // updates, len(trainable) * (update + 1) // updates
        chosen = [place for members in trainable[first:last] for place in members]
        if not chosen:
            batches.append(())
            continue
        start = len(samples)
        samples += _batch(groups, chosen, shaping, settings, max_tokens)
        batches.append(tuple(range(start, len(samples))))
    metrics = _metrics(shaped, valid)
    if penalties:  # which give nearly every group some variance: those whose answers earned the same are named too
        earned, _ = _shape(groups, settings, possible_PG)
        metrics["apo/equal_reward_groups"] = float((earned.raw_advantages_PG == 0).all(dim=1).double().mean())
    if forbidden_token_ids:
        metrics["rollout/forbidden_tokens"] = float(sum(possible_G.count(False) for possible_G in possible_PG))
    return ShapedStep(tuple(samples), tuple(batches * epochs), shaping, metrics)


def _batch(
    groups: Sequence[RolloutGroup],
    chosen: Sequence[tuple[int, int]],
    shaping: Sequence[Sequence[dict[str, float]]],
    settings: ObjectiveConfig,
    max_tokens: int,
) -> list[TrainingSample]:
    """The samples of one update: ``chosen`` are (group, response); their reductions' weights are of these alone."""
    lengths = torch.tensor([len(groups[p].rollouts[g].token_ids) for p, g in chosen])
    everyone = torch.ones(len(chosen), dtype=torch.bool)
    policy = token_weights(
        lengths,
        everyone,
        kind=settings.reduction,
        constant_length=max_tokens,
        microbatch_sequences=settings.microbatch_sequences,
    )
    kl = token_weights(lengths, everyone, kind=settings.kl.reduction)
    return [
        _sample(groups[p], g, shaping[p][g], policy_weight, kl_token_weight)
        for (p, g), policy_weight, kl_token_weight in zip(chosen, policy.tolist(), kl.tolist(), strict=True)
    ]


def _shaping(shaped: ShapedGroups) -> tuple[tuple[dict[str, float], ...], ...]:
    # Whole tensors as lists: reading their elements one by one takes longer than the objective itself.
    columns = {
        "raw_advantage": shaped.raw_advantages_PG.tolist(),
        "advantage": shaped.advantages_PG.tolist(),
        "stcr": shaped.stcr_PG.tolist(),
        "kl_weight": shaped.kl_weights_PG.tolist(),
    }
    prompts, group_size = shaped.advantages_PG.shape
    return tuple(
        tuple({name: values[p][g] for name, values in columns.items()} for g in range(group_size))
        for p in range(prompts)
    )


def _engine_logprobs(group: RolloutGroup, index: int) -> tuple[float, ...]:
    """ValueError unless there is one for each token: training compares all of them with the trainer's."""
    rollout = group.rollouts[index]
    if len(rollout.logprobs) != len(rollout.token_ids):
        raise ValueError(
            f"prompt {group.prompt.id!r}, response {index}: has {len(rollout.logprobs)} log-probabilities of the "
            f"engine for {len(rollout.token_ids)} tokens; training needs each one (agreement with the trainer, and "
            "objective.old_logprobs=engine): record the rollouts again with them"
        )
    return rollout.logprobs


def _sample(
    group: RolloutGroup, index: int, shaping: dict[str, float], policy_weight: float, kl_token_weight: float
) -> TrainingSample:
    rollout = group.rollouts[index]
    return TrainingSample(
        prompt_ids=group.prompt.token_ids,
        response_ids=rollout.token_ids,
        images=group.prompt.images,
        advantage=shaping["advantage"],
        kl_weight=shaping["kl_weight"],
        policy_weight=policy_weight,
        kl_token_weight=kl_token_weight,
        rollout_logprobs=_engine_logprobs(group, index),
        prompt_id=group.prompt.id,
    )


def scoring_samples(
    groups: Sequence[RolloutGroup], forbidden_token_ids: Collection[int] = ()
) -> tuple[list[TrainingSample], list[tuple[int, int]]]:
    """The responses that can be trained on, as samples without weights for forward passes, and (group, response) of
    each: neither aborted nor unjudged ones, nor those with a forbidden token, nor groups that were dropped."""
    possible_PG = _possible(groups, forbidden_token_ids)
    places = [
        (p, g)
        for p, group in enumerate(groups)
        for g, (rollout, score) in enumerate(zip(group.rollouts, group.scores, strict=True))
        if not group.dropped and possible_PG[p][g] and score.valid and rollout.finish_reason != "abort"
    ]
    samples = []
    for p, g in places:
        prompt, rollout = groups[p].prompt, groups[p].rollouts[g]
        samples.append(
            TrainingSample(
                prompt_ids=prompt.token_ids,
                response_ids=rollout.token_ids,
                images=prompt.images,
                rollout_logprobs=_engine_logprobs(groups[p], g),
                prompt_id=prompt.id,
            )
        )
    return samples, places
