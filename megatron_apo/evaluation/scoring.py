"""What an evaluation says, as pure functions of graded responses."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

import numpy as np

from megatron_apo.evaluation.responses import AnsweredRow, Response
from megatron_apo.rewards.pool import REWARDS

Interval = tuple[float, float]


@dataclass(frozen=True)
class Evaluation:
    """One model on one set of rows. Shares are in [0, 1], lengths in response tokens (end-of-sequence included).

    Intervals are 95 % bootstrap intervals over rows (``bootstrap_interval``). A response that could not be graded
    counts as not correct; ``grader_errors`` says how many there were. ``no_answer`` and ``truncated`` (cut off at
    ``sampling.max_tokens``) are shares of the responses. ``majority``: accuracy of the most frequent answer of each
    row. ``further_rewards``: the mean of each part beside accuracy and format (the user's, overlong), over the
    responses that have it. ``pass_at_k`` is by k, ``by_category`` accuracy by category (empty when the rows have none).
    A mean length of no response is None.
    """

    accuracy: float
    accuracy_interval: Interval
    format: float
    rows: int
    responses: int
    mean_length: float
    majority: float
    grader_errors: int = 0
    pass_at_k: dict[int, float] = field(default_factory=dict)
    by_category: dict[str, float] = field(default_factory=dict)
    no_answer: float = 0.0
    truncated: float = 0.0
    majority_interval: Interval | None = None
    pass_at_k_intervals: dict[int, Interval] = field(default_factory=dict)
    category_intervals: dict[str, Interval] = field(default_factory=dict)
    category_rows: dict[str, int] = field(default_factory=dict)
    median_length: float | None = None
    length_95: float | None = None  # 95 % of the responses are at most so long
    mean_length_correct: float | None = None
    mean_length_wrong: float | None = None  # of all that are not correct
    further_rewards: dict[str, float] = field(default_factory=dict)


def evaluate_rows(rows: Sequence[AnsweredRow], *, seed: int = 0, resamples: int = 2000) -> Evaluation:
    """Everything ``Evaluation`` holds; ValueError when there are no rows."""
    if not rows:
        raise ValueError("rows=[]: nothing to evaluate; check evaluation.limit and the data file")

    def interval(values: Sequence[float]) -> Interval:
        return bootstrap_interval(values, seed=seed, resamples=resamples)

    responses = [response for row in rows for response in row.responses]
    lengths = [response.tokens for response in responses]
    by_row = [row.accuracy for row in rows]
    voted = [majority_correct(row) for row in rows]
    smallest = min(len(row.responses) for row in rows)
    passed = {
        k: [pass_at_k(len(row.responses), row.correct, k) for row in rows]
        for k in (2**exponent for exponent in range(smallest.bit_length()))
    }
    categories = accuracies_by_category(rows)
    return Evaluation(
        accuracy=fmean(by_row),
        accuracy_interval=interval(by_row),
        format=fmean(response.parts.get("format", 0.0) for response in responses),
        rows=len(rows),
        responses=len(responses),
        mean_length=fmean(lengths),
        majority=fmean(voted),
        grader_errors=sum(response.outcome == "grader_error" for response in responses),
        pass_at_k={k: fmean(shares) for k, shares in passed.items()},
        by_category={category: fmean(shares) for category, shares in categories.items()},
        no_answer=fmean(response.outcome == "no_answer" for response in responses),
        truncated=fmean(response.finish_reason == "length" for response in responses),
        majority_interval=interval(voted),
        pass_at_k_intervals={k: interval(shares) for k, shares in passed.items()},
        category_intervals={category: interval(shares) for category, shares in categories.items()},
        category_rows={category: len(shares) for category, shares in categories.items()},
        median_length=float(median(lengths)),
        length_95=float(np.quantile(lengths, 0.95, method="inverted_cdf")),
        mean_length_correct=_mean_or_none([one.tokens for one in responses if one.correct]),
        mean_length_wrong=_mean_or_none([one.tokens for one in responses if not one.correct]),
        further_rewards=_further_rewards(responses),
    )


def bootstrap_interval(
    values: Sequence[float], *, seed: int = 0, resamples: int = 2000, confidence: float = 0.95
) -> Interval:
    """Percentile bootstrap interval of the mean of ``values``: resampled with replacement, the same for one seed.

    Values that are all alike give an interval of no width, however few they are: it tells what other rows of the same
    kind would have changed, and these say nothing of that.
    """
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
        raise ValueError(f"k={k}: must lie between 1 and the {samples} samples of a row")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def majority_correct(row: AnsweredRow) -> float:
    """1 when the most frequent answer is correct, 0 when it is not; a tie shares the vote between its answers.

    Correct answers are one answer however they are written, wrong ones are told apart by their text; a response
    without an answer does not vote.
    """
    votes: Counter[tuple[bool, str]] = Counter()
    for response in row.responses:
        if response.answer is not None:
            votes[response.correct, "" if response.correct else response.answer] += 1
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [correct for (correct, _), count in votes.items() if count == most]
    return sum(winners) / len(winners)


def accuracies_by_category(rows: Sequence[AnsweredRow]) -> dict[str, list[float]]:
    """The accuracy of each row of each category, in alphabetical order; rows without a category are left out."""
    by_category: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.category:
            by_category[row.category].append(row.accuracy)
    return dict(sorted(by_category.items()))


def _further_rewards(responses: Sequence[Response]) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for response in responses:
        for name, value in response.parts.items():
            if name not in REWARDS:
                values[name].append(value)
    return {name: fmean(found) for name, found in values.items()}


def _mean_or_none(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
