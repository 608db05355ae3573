"""Curves of one or several runs, read from their metrics, and a picture of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_apo.evaluation.tables import read_evaluations
from megatron_apo.observability.figure import COLOURS, INK, new_figure, style
from megatron_apo.observability.report_charts import moving_average
from megatron_apo.observability.writers import read_metrics

# The accuracy measured now and then on data.validation.
VALIDATION_ACCURACY = "evaluation/accuracy"

Points = tuple[tuple[float, float], ...]


def curve(metrics: Sequence[Mapping[str, Any]], name: str) -> Points:
    """(step, value) of each line that has a finite value for ``name``."""
    return tuple((row["step"], float(row[name])) for row in metrics if isinstance(row.get(name), int | float))


def write_curves_png(run_dirs: Sequence[str | Path], path: str | Path, *, title: str = "") -> Path:
    """Draws accuracy and reward over steps, one colour per run directory, and returns ``path``.

    Left: validation accuracy (accuracy in training where there is none), with the held-out accuracy before and after
    as diamonds. Right: the mean reward, as measured and smoothed. Raises ValueError for a run without metrics, or
    when matplotlib is not installed.
    """
    runs = {Path(run_dir).resolve(): read_metrics(run_dir) for run_dir in run_dirs}
    if not runs:
        raise ValueError("run_dirs=[]: give at least one run directory")
    for run_dir, metrics in runs.items():
        if not metrics:
            raise ValueError(f"{run_dir}: no metrics.jsonl to draw; give a run's directory")
    figure = new_figure(11, 4.1)
    left, right = figure.subplots(1, 2)
    validated = False
    for index, (run_dir, metrics) in enumerate(runs.items()):
        colour = COLOURS[index % len(COLOURS)]
        points = curve(metrics, VALIDATION_ACCURACY)
        validated = validated or bool(points)
        if points:
            left.plot(*_columns(points), color=colour, marker="o", markersize=3.5, linewidth=2, label=run_dir.name)
        else:
            _draw_smoothed(left, curve(metrics, "reward/accuracy"), colour, run_dir.name)
        _draw_held_out(left, run_dir, metrics[-1]["step"], colour)
        _draw_smoothed(right, curve(metrics, "reward/total"), colour, run_dir.name)
    left.set_ylim(0, 1.02)
    heading = {"loc": "left", "color": INK, "fontweight": "bold", "fontsize": 12}
    left.set_title("Validation accuracy" if validated else "Accuracy in training", **heading)
    right.set_title("Mean reward in training", **heading)
    right.set_ylim(bottom=min(0.0, right.get_ylim()[0]))
    for axes in (left, right):
        style(axes, "step")
    left.legend(frameon=False, labelcolor=INK, fontsize=9, loc="lower right")
    if title:
        figure.suptitle(title, x=0.01, ha="left", color=INK, fontweight="bold")
    figure.savefig(path)
    return Path(path)


def _draw_smoothed(axes: Any, points: Points, colour: str, label: str) -> None:
    axes.plot(*_columns(points), color=colour, linewidth=0.8, alpha=0.25)
    axes.plot(*_columns(moving_average(points)), color=colour, linewidth=2, label=label)


def _draw_held_out(axes: Any, run_dir: Path, last_step: int, colour: str) -> None:
    evaluations = read_evaluations(run_dir)
    for label, step in (("before", 0), ("after", last_step)):
        if label in evaluations:
            one = evaluations[label]
            low, high = one.accuracy_interval
            spread = [[max(0.0, one.accuracy - low)], [max(0.0, high - one.accuracy)]]
            axes.errorbar([step], [one.accuracy], yerr=spread, color=colour, fmt="D", markersize=5, capsize=3, zorder=5)


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [step for step, _ in points], [value for _, value in points]
