"""What an evaluation says, as pure functions of scored groups."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from megatron_apo.records import RolloutGroup
from megatron_apo.rewards.accuracy import extract_answer


@dataclass(frozen=True)
class Evaluation:
    """One model on one set of rows. Shares are in [0, 1], lengths in response tokens (end-of-sequence included).

    ``accuracy_interval`` is the 95 % bootstrap interval over rows. A response that could not be graded counts as
    not correct; ``grader_errors`` says how many there were. ``pass_at_k`` is by k, ``by_category`` accuracy by
    category (empty when the rows have none).
    """

    accuracy: float
    accuracy_interval: tuple[float, float]
    format: float
    rows: int
    responses: int
    mean_length: float
    majority: float
    grader_errors: int = 0
    pass_at_k: dict[int, float] = field(default_factory=dict)
    by_category: dict[str, float] = field(default_factory=dict)


def evaluate_groups(groups: Sequence[RolloutGroup], *, seed: int = 0, resamples: int = 2000) -> Evaluation:
    """Everything ``Evaluation`` holds, of scored groups; ValueError when there are none or they carry no scores."""
    if not groups:
        raise ValueError("groups=[]: nothing to evaluate; check evaluation.limit and the data file")
    for group in groups:
        if not group.rollouts or len(group.scores) != len(group.rollouts):
            raise ValueError(
                f"row {group.prompt.id!r}: {len(group.scores)} scores for {len(group.rollouts)} responses; "
                "score the groups first"
            )
    correct_counts = [sum(score.correct for score in group.scores) for group in groups]
    row_accuracy = [count / len(group.rollouts) for count, group in zip(correct_counts, groups, strict=True)]
    scores = [score for group in groups for score in group.scores]
    lengths = [len(rollout.token_ids) for group in groups for rollout in group.rollouts]
    smallest = min(len(group.rollouts) for group in groups)
    return Evaluation(
        accuracy=sum(row_accuracy) / len(groups),
        accuracy_interval=bootstrap_interval(row_accuracy, seed=seed, resamples=resamples),
        format=sum(score.parts.get("format", 0.0) for score in scores) / len(scores),
        rows=len(groups),
        responses=len(scores),
        mean_length=sum(lengths) / len(lengths),
        majority=sum(majority_correct(group) for group in groups) / len(groups),
        grader_errors=sum(not score.valid for score in scores),
        pass_at_k={
            k: sum(
                pass_at_k(len(group.rollouts), count, k) for group, count in zip(groups, correct_counts, strict=True)
            )
            / len(groups)
            for k in (2**exponent for exponent in range(smallest.bit_length()))
        },
        by_category=accuracy_by_category(groups),
    )


def bootstrap_interval(
    values: Sequence[float], *, seed: int = 0, resamples: int = 2000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values``: resampled with replacement, the same for one seed."""
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("values=[]: the interval of a mean needs at least one value")
    generator = np.random.default_rng(seed)
    # One resample at a time: [resamples, values] of a large benchmark would be gigabytes.
    means = [data[generator.integers(0, data.size, size=data.size)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased chance that at least one of k responses, drawn from the ``samples``, is correct (arXiv:2107.03374).

    1 - C(samples - correct, k) / C(samples, k).
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k={k}: must be between 1 and the {samples} responses sampled per row")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def majority_correct(group: RolloutGroup) -> float:
    """1 when the most frequent answer is correct, 0 when it is not; a tie shares the vote between its answers.

    Correct answers are one answer however they are written, wrong ones are told apart by their text; a response
    without an answer does not vote.
    """
    votes: Counter[tuple[bool, str]] = Counter()
    for rollout, score in zip(group.rollouts, group.scores, strict=True):
        answer = extract_answer(rollout.text)
        if answer is not None:
            votes[score.correct, "" if score.correct else answer] += 1
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [correct for (correct, _), count in votes.items() if count == most]
    return sum(winners) / len(winners)


def accuracy_by_category(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Accuracy of the rows of each category, in alphabetical order; rows without one are left out."""
    by_category: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        if group.prompt.category:
            share = sum(score.correct for score in group.scores) / len(group.scores)
            by_category[group.prompt.category].append(share)
    return {category: sum(shares) / len(shares) for category, shares in sorted(by_category.items())}
