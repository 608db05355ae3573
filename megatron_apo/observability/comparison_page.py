"""``report --compare``: several runs side by side on one page that opens offline."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from megatron_apo.observability.curves import VALIDATION_ACCURACY
from megatron_apo.observability.report_charts import Series, line_chart, nice_ticks
from megatron_apo.observability.report_style import SCRIPT, STYLE
from megatron_apo.observability.run_comparison import (
    MEASURES,
    Arm,
    Difference,
    Measure,
    arms_of,
    differences,
    differing_settings,
    mean_curve,
    mean_interval,
    read_run,
    same_seeds,
    values_of,
)

CURVES: tuple[tuple[str, str], ...] = (
    ("Validation accuracy", VALIDATION_ACCURACY),
    ("Reward", "reward/total"),
    ("Accuracy in training", "reward/accuracy"),
    ("Entropy", "policy/entropy"),
    ("Length of wrong responses", "rollout/response_length_wrong"),
    ("Response length", "rollout/response_length"),
    ("KL divergence", "kl/raw"),
    ("Clip fraction", "policy/clip_fraction"),
)
PALETTE = 12
ROW, NAME, WIDTH, RIGHT = 26, 160, 600, 175  # of a dot plot, in its own units


def write_comparison(run_dirs: Sequence[str | Path], output: str | Path) -> Path:
    """Writes one HTML file that sets the runs side by side, and returns ``output``.

    Runs whose settings differ in the seed alone are one arm; the first directory's arm is what the others are compared
    with. Raises ValueError for fewer than two runs, a run given twice, and a directory that is not a run's.
    """
    if len(run_dirs) < 2:
        raise ValueError(f"--compare {' '.join(map(str, run_dirs))}: give two run directories or more")
    runs = [read_run(run_dir) for run_dir in run_dirs]
    arms = arms_of(runs)
    body = [
        "<h1>Comparison of runs</h1>",
        f'<p class="soft">{_said_of(arms)}</p>',
        _unfinished(arms),
        "<h2>What differs</h2>",
        _verdicts(arms),
        "<h2>Side by side</h2>",
        f'<p class="soft">A dot is a seed; the bar its arm\'s mean with the 95 % t-interval over seeds. '
        f"Differences are from {html.escape(arms[0].name)}, with 95 % intervals that hold for all arms together "
        f"(Dunnett{', seed by seed' if same_seeds(arms) else ''}), those of accuracies in points.</p>",
        f'<div class="charts">{"".join(_dot_plot(arms, measure) for measure in MEASURES)}</div>',
        _categories(arms),
        "<h2>Over the steps</h2>",
        '<p class="soft">The mean over an arm\'s seeds.</p>',
        f'<div class="charts">{"".join(_curves(arms, title, metric) for title, metric in CURVES)}</div>',
        _settings(arms),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>comparison of runs</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main><script>{SCRIPT}</script></body></html>\n"
    )
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _said_of(arms: Sequence[Arm]) -> str:
    counts = sorted({len(arm.runs) for arm in arms})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{len(arms)} arms, {seeds} seed{'s' if counts[-1] > 1 else ''} each: runs alike in all but the seed."


def _unfinished(arms: Sequence[Arm]) -> str:
    short = [
        f"{run.directory.name} ({run.metrics[-1]['step']} of {wanted})"
        for arm in arms
        for run in arm.runs
        if isinstance(wanted := run.settings.get("run.steps"), int) and run.metrics[-1]["step"] < wanted
    ]
    return f"<p><b>Not finished:</b> {html.escape(', '.join(short))}</p>" if short else ""


def _verdicts(arms: Sequence[Arm]) -> str:
    """For each measure a sentence: which arms differ from the first by more than their seeds explain."""
    items = []
    for measure in MEASURES:
        values = [values_of(arm, measure) for arm in arms]
        if sum(1 for one in values if one) < 2:
            continue
        items.append(
            f"<li><b>{measure.title}</b>: {_verdict(arms, measure, differences(values, blocks=same_seeds(arms)))}</li>"
        )
    return f"<ul>{''.join(items)}</ul>" if items else "<p>Nothing that two of them have was measured.</p>"


def _verdict(arms: Sequence[Arm], measure: Measure, found: Sequence[Difference | None]) -> str:
    first = html.escape(arms[0].name)
    measured = [one for one in found if one is not None]
    if not measured:
        return f"{first} has none, so there is nothing to compare with"
    if all(one.interval is None for one in measured):
        return "one seed each: no difference can be told from chance; run more seeds"
    differ = [
        f"{html.escape(arm.name)} {_difference(one, measure)}"
        for arm, one in zip(arms[1:], found, strict=True)
        if one is not None and one.shown
    ]
    if not differ:
        return f"no arm differs from {first} by more than its seeds explain"
    others = len(measured) - len(differ)
    rest = f"; the other {others} do{'es' if others == 1 else ''} not" if others else ""
    return f"differ from {first}: {', '.join(differ)}{rest}"


def _dot_plot(arms: Sequence[Arm], measure: Measure) -> str:
    """A row for each arm: seeds as dots, mean and interval, and in words the difference from the first."""
    values = [values_of(arm, measure) for arm in arms]
    if not any(values):
        return ""
    intervals = [mean_interval(one) for one in values]
    ticks = nice_ticks(*_extent(values))
    left, right, height = NAME, WIDTH - RIGHT, ROW * len(arms) + 30

    def x(value: float) -> float:
        share = (value - ticks[0]) / (ticks[-1] - ticks[0])
        return left + min(1.0, max(0.0, share)) * (right - left)

    marks = [
        f'<path class="grid" d="M{x(tick):.1f} 4V{height - 24}"/>'
        f'<text class="tick" x="{x(tick):.1f}" y="{height - 8}" text-anchor="middle">{_number(tick, measure)}</text>'
        for tick in ticks
    ]
    compared: list[Difference | None] = [None, *differences(values, blocks=same_seeds(arms))]
    for row, (arm, found, interval, gap) in enumerate(zip(arms, values, intervals, compared, strict=True)):
        y = 4 + ROW * (row + 0.5)
        name = arm.name if len(arm.name) <= 24 else arm.name[:23] + "…"
        marks.append(f'<text class="tick" x="0" y="{y + 4:.1f}">{html.escape(name)}</text>')
        if not found:
            marks.append(f'<text class="tick" x="{left}" y="{y + 4:.1f}">not measured</text>')
            continue
        colour = f"c{row % PALETTE + 1}"
        if interval:
            marks.append(f'<path class="line {colour}" d="M{x(interval[0]):.1f} {y:.1f}H{x(interval[1]):.1f}"/>')
        marks.append(f'<path class="line {colour}" d="M{x(fmean(found)):.1f} {y - 8:.1f}V{y + 8:.1f}"/>')
        marks += [f'<circle class="dot {colour}" cx="{x(one):.1f}" cy="{y:.1f}" r="3.5"/>' for one in found]
        told = _number(fmean(found), measure) if gap is None else _difference(gap, measure)
        weight = ' font-weight="700"' if gap is not None and gap.shown else ""
        marks.append(f'<text class="tick" x="{right + 12}" y="{y + 4:.1f}"{weight}>{told}</text>')
    return (
        f'<figure class="chart"><figcaption>{measure.title}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{measure.title}">{"".join(marks)}</svg>'
        f'<p class="note">{measure.note}</p></figure>'
    )


def _extent(values: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The dots, with some room: an interval of few seeds may be far wider, and is cut at the edge."""
    low, high = min(map(min, filter(None, values))), max(map(max, filter(None, values)))
    room = 0.35 * (high - low)
    return low - (room if low > room else 0), high + room


def _number(value: float, measure: Measure) -> str:
    return f"{100 * value:.1f} %" if measure.share else f"{value:.3g}"


def _difference(one: Difference, measure: Measure) -> str:
    scale, form = (100, "+.1f") if measure.share else (1, "+.2g")
    told = f"{scale * one.value:{form}}"
    if one.interval is not None:
        told += f" [{scale * one.interval[0]:{form}}, {scale * one.interval[1]:{form}}]"
    return told


def _categories(arms: Sequence[Arm]) -> str:
    """Held-out accuracy by the rows' category, mean over seeds; nothing when no run has categories."""
    by_arm = []
    for arm in arms:
        found = [run.evaluations["after"].by_category for run in arm.runs if "after" in run.evaluations]
        by_arm.append({key: [one[key] for one in found if key in one] for one in found for key in one})
    names = list(dict.fromkeys(name for found in by_arm for name in found))
    if not names:
        return ""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    rows = []
    for arm, measured in zip(arms, by_arm, strict=True):
        shares = (f"{100 * fmean(measured[name]):.1f} %" if name in measured else "–" for name in names)
        cells = "".join(f"<td>{share}</td>" for share in shares)
        rows.append(f"<tr><td><b>{html.escape(arm.name)}</b></td>{cells}</tr>")
    return (
        '<h2>By category</h2><p class="soft">Held-out accuracy, mean over seeds.</p>'
        f'<div class="panel"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
    )


def _curves(arms: Sequence[Arm], title: str, metric: str) -> str:
    few = metric == VALIDATION_ACCURACY
    series = [
        Series(arm.name, mean_curve(arm, metric), index % PALETTE + 1, markers=few) for index, arm in enumerate(arms)
    ]
    return line_chart(title, [one for one in series if one.points], smoothed_alone=True)


def _settings(arms: Sequence[Arm]) -> str:
    """What the arms' settings differ in."""
    first = [arm.runs[0].settings for arm in arms]
    keys = differing_settings(first)
    if not keys:
        return ""
    head = "".join(f"<th>{html.escape(arm.name)}</th>" for arm in arms)
    rows = []
    for key in keys:
        cells = "".join(f"<td>{html.escape(_value(one.get(key)))}</td>" for one in first)
        rows.append(f"<tr><td>{html.escape(key)}</td>{cells}</tr>")
    seeds = "".join(f"<td>{html.escape(', '.join(str(run.seed) for run in arm.runs))}</td>" for arm in arms)
    return (
        '<h2>Settings that differ</h2><div class="panel"><table>'
        f"<tr><th></th>{head}</tr>{''.join(rows)}<tr><td>run.seed</td>{seeds}</tr></table></div>"
    )


def _value(value: object) -> str:
    return "–" if value is None else str(value)
