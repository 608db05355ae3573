"""Runs beside one another: those that differ in nothing but their seed are one arm, and what seeds do not explain.

An arm's values are compared with those of the first arm by Dunnett's test (C. W. Dunnett, A multiple comparison
procedure for comparing several treatments with a control, JASA 50, 1955), as scipy has it: 95 % intervals that hold for
all arms together, from the spread of the seeds pooled over all arms. Where all arms have the same seeds, a seed is a
block: its runs were asked the same questions in the same order, and what a seed does to all arms alike is no spread.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from megatron_apo.evaluation.scoring import Evaluation
from megatron_apo.evaluation.tables import read_evaluations
from megatron_apo.observability.curves import VALIDATION_ACCURACY, curve
from megatron_apo.observability.writers import read_metrics

CONFIDENCE = 0.95
LAST_SHARE = 0.1  # of the steps: what a run ends at is their mean
# Settings that make no difference to what a run learns.
_ASIDE = (
    *("run.directory", "run.seed", "run.save_every", "run.keep_checkpoints", "run.evaluate_every", "run.threads"),
    *("evaluation.batch", "logging."),
)


@dataclass(frozen=True)
class Run:
    """A run directory's content."""

    directory: Path
    settings: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluations: dict[str, Evaluation]

    @property
    def seed(self) -> Any:
        return self.settings.get("run.seed")

    def end_of(self, metric: str) -> float | None:
        """Mean over the last tenth of the steps that have it; None when none has."""
        points = curve(self.metrics, metric)
        first = self.metrics[-1]["step"] * (1 - LAST_SHARE)
        last = [value for step, value in points if step > first] or [value for _, value in points[-1:]]
        return fmean(last) if last else None

    def held_out(self) -> float | None:
        return self.evaluations["after"].accuracy if "after" in self.evaluations else None


@dataclass(frozen=True)
class Arm:
    """Runs of the same settings and different seeds."""

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Measure:
    """A number of a run. ``source``: "held out" or the metric whose end is taken."""

    title: str
    source: str
    note: str
    share: bool = False  # shown in percent

    def of(self, run: Run) -> float | None:
        if self.source == "held out":
            return run.held_out()
        if self.source == VALIDATION_ACCURACY:
            points = curve(run.metrics, VALIDATION_ACCURACY)
            return points[-1][1] if points else None
        return run.end_of(self.source)


MEASURES: tuple[Measure, ...] = (
    Measure("Held-out accuracy", "held out", "On the rows of data.test, after training.", share=True),
    Measure("Validation accuracy", VALIDATION_ACCURACY, "The last one measured during training.", share=True),
    Measure("Reward", "reward/total", "Mean of a response, over the last tenth of the steps."),
    Measure("Entropy", "policy/entropy", "Nats a token, over the last tenth of the steps."),
    Measure("Length of wrong responses", "rollout/response_length_wrong", "Tokens, over the last tenth of the steps."),
    Measure("KL divergence", "kl/raw", "Against the initial policy, nats a token, over the last tenth of the steps."),
)


@dataclass(frozen=True)
class Difference:
    """An arm's mean minus the first arm's, with its simultaneous interval; None where seeds do not allow one."""

    value: float
    interval: tuple[float, float] | None

    @property
    def shown(self) -> bool:
        """Whether seeds alone do not explain it."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def read_run(directory: str | Path) -> Run:
    """What the directory holds; ValueError when it is not a run's, or has no metrics."""
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such directory; give the run.directory of a run")
    metrics = read_metrics(directory)
    if not metrics or not (directory / "config.yaml").is_file():
        raise ValueError(f"{directory}: has no metrics.jsonl or no config.yaml; give the run.directory of a run")
    settings = _flat(yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8")) or {})
    return Run(directory, settings, metrics, read_evaluations(directory))


def arms_of(runs: Sequence[Run]) -> tuple[Arm, ...]:
    """Runs by what their settings differ in, in the order of the first run of each; ValueError for a run twice."""
    seen: dict[Path, Run] = {}
    for run in runs:
        if seen.setdefault(run.directory.resolve(), run) is not run:
            raise ValueError(f"{run.directory}: given twice; each run is compared once")
    different = differing_settings([run.settings for run in runs])
    grouped: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        grouped.setdefault(tuple(repr(run.settings.get(key)) for key in different), []).append(run)
    for members in grouped.values():
        seeds = [run.seed for run in members]
        if repeated := [seed for seed in seeds if seeds.count(seed) > 1]:
            same = [str(run.directory) for run in members if run.seed == repeated[0]]
            raise ValueError(
                f"{', '.join(same)}: the same settings and the same run.seed={repeated[0]}; give one of them"
            )
    names = _own_names(grouped.values()) or _names([members[0].settings for members in grouped.values()])
    return tuple(
        Arm(name, tuple(sorted(members, key=lambda run: str(run.seed))))
        for name, members in zip(names, grouped.values(), strict=True)
    )


def differing_settings(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys whose values are not the same in all, those aside that change nothing that is learned."""
    keys = sorted({key for one in settings for key in one if not key.startswith(_ASIDE)})
    return [key for key in keys if len({repr(one.get(key)) for one in settings}) > 1]


def _own_names(arms: Collection[Sequence[Run]]) -> list[str]:
    """What the directories are called where each is ``<name>-<seed>``, a name to an arm; none where one is not."""
    names: list[str] = []
    for members in arms:
        found = {run.directory.resolve().name.removesuffix(f"-{run.seed}") for run in members}
        if len(found) > 1 or not all(run.directory.resolve().name.endswith(f"-{run.seed}") for run in members):
            return []
        names += found
    return names if all(names) and len(set(names)) == len(names) else []


def _names(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """objective.name of each, with what tells those of the same name apart."""
    objectives = [str(one.get("objective.name", "run")) for one in settings]
    names = []
    for one, objective in zip(settings, objectives, strict=True):
        alike = [other for other, name in zip(settings, objectives, strict=True) if name == objective]
        told = [f"{key.rpartition('.')[2]}={one.get(key)}" for key in differing_settings(alike)]
        names.append(" ".join([objective, *told]))
    return names


def values_of(arm: Arm, measure: Measure) -> list[float]:
    """One number a seed, of the runs that have it."""
    return [value for run in arm.runs if (value := measure.of(run)) is not None]


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % t-interval of the mean over seeds; None of fewer than two."""
    from scipy.stats import t  # type: ignore[import-untyped]  # takes half a second to import

    if len(values) < 2:
        return None
    half = float(t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return fmean(values) - half, fmean(values) + half


def same_seeds(arms: Sequence[Arm]) -> bool:
    """Whether all arms have the same seeds, two or more."""
    seeds = {tuple(str(run.seed) for run in arm.runs) for arm in arms}
    return len(seeds) == 1 and len(next(iter(seeds))) > 1


def differences(values: Sequence[Sequence[float]], *, blocks: bool = False) -> list[Difference | None]:
    """Of each but the first, against the first; None where either has no value.

    The intervals need a seed more than there are arms; without it they are None. Values that seeds do not change at
    all differ by exactly what they differ by. ``blocks``: the n-th values of all arms belong together (``same_seeds``);
    of no effect where some arm has fewer.
    """
    first, others = values[0], values[1:]
    if not first:
        return [None for _ in others]
    gaps = [fmean(one) - fmean(first) if one else None for one in others]
    known = [one for one in others if one]
    free = len(first) + sum(map(len, known)) - len(known) - 1
    intervals: list[tuple[float, float] | None] = [None] * len(known)
    if known and blocks and len(first) > 1 and all(len(one) == len(first) for one in known):
        intervals = _dunnett_in_blocks(first, known)
    elif known and free > 0:
        intervals = _dunnett(first, known)
    found = iter(intervals)
    return [None if gap is None else Difference(gap, next(found)) for gap in gaps]


def _dunnett_in_blocks(first: Sequence[float], others: Sequence[Sequence[float]]) -> list[tuple[float, float] | None]:
    """Dunnett's intervals from a table of arms and blocks: the spread is what is left of both."""
    import numpy as np
    from scipy.optimize import brentq  # type: ignore[import-untyped]
    from scipy.stats import multivariate_t

    table = np.asarray([first, *others])
    arms, blocks = table.shape
    left = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
    free = (arms - 1) * (blocks - 1)
    # Of the differences' t-statistics, any two of which have the first arm in common.
    correlation = 0.5 + 0.5 * np.eye(arms - 1)
    joint = multivariate_t(shape=correlation, df=free, seed=0)

    def beyond(limit: float) -> float:
        box = np.full(arms - 1, limit)
        return float(joint.cdf(box, lower_limit=-box)) - CONFIDENCE

    half = brentq(beyond, 1.0, 200.0, xtol=1e-3) * float((left**2).sum() / free * 2 / blocks) ** 0.5
    gaps = (table[1:].mean(axis=1) - table[0].mean()).tolist()
    return [(gap - half, gap + half) for gap in gaps]


def _dunnett(first: Sequence[float], others: Sequence[Sequence[float]]) -> list[tuple[float, float] | None]:
    import numpy as np
    from scipy.stats import dunnett

    if all(len(set(one)) == 1 for one in (first, *others)):  # no spread: the test divides by it
        return [(one[0] - first[0], one[0] - first[0]) for one in others]
    tested = dunnett(*(np.asarray(one) for one in others), control=np.asarray(first), random_state=0)
    interval = tested.confidence_interval(CONFIDENCE)
    return [(float(low), float(high)) for low, high in zip(interval.low, interval.high, strict=True)]


def mean_curve(arm: Arm, metric: str) -> tuple[tuple[float, float], ...]:
    """The mean over the arm's runs at the steps that all of them have."""
    curves = [dict(curve(run.metrics, metric)) for run in arm.runs]
    common = set.intersection(*(set(one) for one in curves)) if curves else set()
    return tuple((step, fmean(one[step] for one in curves)) for step in sorted(common))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{name}."))
        else:
            flat[name] = value
    return flat
