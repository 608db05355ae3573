"""Two models on the same rows: what the second does better or worse, and whether chance explains it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_apo.evaluation.responses import AnsweredRow
from megatron_apo.evaluation.scoring import Interval, bootstrap_interval
from megatron_apo.wording import counted


@dataclass(frozen=True)
class PairedDifference:
    """Accuracies of two models on the same rows, the difference second - first, and what it rests on.

    ``interval``: 95 % bootstrap interval of the difference, rows resampled. ``p_value``: ``sign_flip_p_value``.
    ``only_first``, ``only_second``: how many rows that model alone solves; a row is solved by at least one correct
    response. ``both`` and ``neither`` are the rest.
    """

    rows: int
    first: float
    second: float
    difference: float
    interval: Interval
    p_value: float
    both: int
    only_first: int
    only_second: int
    neither: int


def check_same_rows(names: Sequence[str], evaluations: Sequence[Sequence[AnsweredRow]]) -> None:
    """ValueError, with the first difference, unless all are evaluations of the same rows with as many responses."""
    first_name, first = names[0], evaluations[0]
    by_id = {row.id: row for row in first}
    for name, rows in zip(names[1:], evaluations[1:], strict=True):
        ids = {row.id for row in rows}
        if ids != by_id.keys():
            of_first, of_other = len(by_id.keys() - ids), len(ids - by_id.keys())
            only = [f"{counted(of_first, 'row', 'rows')} only in {first_name}", f"{of_other} only in {name}"]
            example = min(by_id.keys() ^ ids)
            raise ValueError(
                f"{first_name} and {name}: evaluations of different rows ({', '.join(only)}; for example {example!r}); "
                "evaluate both on the same data with the same evaluation.limit"
            )
        for row in rows:
            other = by_id[row.id]
            for what in ("question", "gold", "category"):
                if getattr(row, what) != getattr(other, what):
                    raise ValueError(
                        f"{first_name} and {name}: row {row.id!r} has another {what}, {getattr(other, what)!r} and "
                        f"{getattr(row, what)!r}; evaluate both on the same data"
                    )
            if [image.sha256 for image in row.images] != [image.sha256 for image in other.images]:
                raise ValueError(
                    f"{first_name} and {name}: row {row.id!r} has other pictures, by their SHA-256; evaluate both on "
                    "the same data"
                )
            if len(row.responses) != len(other.responses):
                raise ValueError(
                    f"{first_name} and {name}: row {row.id!r} has {len(other.responses)} and {len(row.responses)} "
                    "responses; evaluate both with the same evaluation.samples"
                )


def paired_difference(
    first: Sequence[AnsweredRow], second: Sequence[AnsweredRow], *, seed: int = 0, resamples: int = 2000
) -> PairedDifference:
    """The comparison of two evaluations of the same rows (``check_same_rows``), whatever their order."""
    others = {row.id: row for row in second}
    pairs = [(row, others[row.id]) for row in first]
    gains = [other.correct - row.correct for row, other in pairs]
    samples = len(pairs[0][0].responses)
    shares = [gain / samples for gain in gains]
    solved = [(row.correct > 0, other.correct > 0) for row, other in pairs]
    return PairedDifference(
        rows=len(pairs),
        first=math.fsum(row.accuracy for row, _ in pairs) / len(pairs),
        second=math.fsum(other.accuracy for _, other in pairs) / len(pairs),
        difference=math.fsum(shares) / len(pairs),
        interval=bootstrap_interval(shares, seed=seed, resamples=resamples),
        p_value=sign_flip_p_value(gains),
        both=solved.count((True, True)),
        only_first=solved.count((True, False)),
        only_second=solved.count((False, True)),
        neither=solved.count((False, False)),
    )


def differences_by_category(
    first: Sequence[AnsweredRow], second: Sequence[AnsweredRow], *, seed: int = 0
) -> dict[str, PairedDifference]:
    """``paired_difference`` of the rows of each category, in alphabetical order; without those that have none."""
    by_category: dict[str, list[AnsweredRow]] = defaultdict(list)
    for row in first:
        if row.category:
            by_category[row.category].append(row)
    return {category: paired_difference(rows, second, seed=seed) for category, rows in sorted(by_category.items())}


def sign_flip_p_value(gains: Sequence[int]) -> float:
    """Exact two-sided p-value of the paired permutation test: were both models alike, each gain could have either sign.

    ``gains``: per row, correct responses of the second model less those of the first. The distribution of their sum
    over all sign patterns is convolved exactly, with no drawing. With one response a row this is McNemar's exact test
    (Q. McNemar, Psychometrika 12, 1947).
    """
    sizes = [abs(gain) for gain in gains if gain]
    reach = sum(sizes)
    chances = np.zeros(2 * reach + 1)  # of each sum, from -reach to reach
    chances[reach] = 1.0
    for size in sizes:
        moved = np.zeros_like(chances)
        moved[size:] += 0.5 * chances[:-size]
        moved[:-size] += 0.5 * chances[size:]
        chances = moved
    sums = np.abs(np.arange(-reach, reach + 1))
    return min(1.0, float(chances[sums >= abs(sum(gains))].sum()))
