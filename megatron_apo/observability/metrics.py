"""The numbers of one step, by the names that scripts rely on (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_apo.records import RolloutGroup


class StepMetrics:
    """Collects one step's metrics: weighted means of what is added in parts, and single values.

    A metric to which nothing was added is absent, not 0: a mean length of no wrong responses does not exist.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, name: str, value: float, weight: float = 1.0) -> None:
        """Takes ``value`` into the mean of ``name``; with weight 0 it leaves no trace."""
        if weight < 0:
            raise ValueError(f"weight={weight} of metric {name}: must not be negative")
        if weight == 0:
            return
        self._sums[name] = self._sums.get(name, 0.0) + weight * float(value)
        self._weights[name] = self._weights.get(name, 0.0) + weight

    def set(self, name: str, value: float) -> None:
        """Makes ``value`` the metric, whatever was there."""
        self._sums[name], self._weights[name] = float(value), 1.0

    def update(self, values: Mapping[str, float]) -> None:
        """``set`` for each of ``values``."""
        for name, value in values.items():
            self.set(name, value)

    def collect(self) -> dict[str, float]:
        """The means by name; starts anew."""
        values = {name: self._sums[name] / self._weights[name] for name in self._sums}
        self._sums, self._weights = {}, {}
        return values


def rollout_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Means over the responses of scored groups that the grader could judge.

    ``reward/<part>`` (unweighted, so accuracy is a share), ``reward/total``, ``rollout/response_length`` and
    ``…_wrong`` (tokens, end-of-sequence included; the latter absent when none is wrong), ``rollout/truncated`` (share
    without an end token), ``reward/grader_error`` and ``reward/no_answer`` (shares of all responses) and
    ``apo/difficulty`` (mean share of not-correct responses per group).
    """
    metrics = StepMetrics()
    for group in groups:
        judged = [(r, s) for r, s in zip(group.rollouts, group.scores, strict=True) if s.valid]
        for score in group.scores:
            metrics.add("reward/grader_error", float(not score.valid))
            metrics.add("reward/no_answer", float(score.outcome == "no_answer"))
        for rollout, score in judged:
            length = len(rollout.token_ids)
            for name, part in score.parts.items():
                metrics.add(f"reward/{name}", part)
            metrics.add("reward/total", score.total)
            metrics.add("rollout/response_length", length)
            metrics.add("rollout/response_length_wrong", length, weight=float(not score.correct))
            metrics.add("rollout/truncated", float(rollout.finish_reason == "length"))
        if judged:
            metrics.add("apo/difficulty", 1.0 - sum(score.correct for _, score in judged) / len(judged))
    return metrics.collect()
