"""Charts as inline SVG: lines and stacked areas, styled by the page's CSS variables, readable in light and dark."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 34
MAX_POINTS = 400


@dataclass(frozen=True)
class Series:
    """One line: (step, value) points in order of step; ``colour`` indexes the page's palette (1 to 12).

    ``markers`` draws the points themselves, for values measured now and then; such a line is not smoothed.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    colour: int
    markers: bool = False


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    low: float | None = None,
    high: float | None = None,
    smoothed_alone: bool = False,
) -> str:
    """A titled figure of ``series`` over steps; empty string when there is no point to draw.

    Each line is drawn as measured, pale, with its moving average on top, or ``smoothed_alone`` where many lines would
    cover one another. ``low`` and ``high`` are values that the axis must include.
    """
    series = [_thin(one) for one in series if one.points]
    if not series:
        return ""
    values = [value for one in series for _, value in one.points]
    ticks = nice_ticks(min([*values, *_given(low)]), max([*values, *_given(high)]))
    plot = _Plot(_steps(series), ticks)
    marks = []
    for one in series:
        if one.markers:
            marks.append(f'<path class="line c{one.colour}" d="{plot.path(one.points)}"/>')
            marks += [
                f'<circle class="dot c{one.colour}" cx="{plot.x(s):.1f}" cy="{plot.y(v):.1f}" r="3"/>'
                for s, v in one.points
            ]
            continue
        smooth = moving_average(one.points)
        if smooth != one.points and not smoothed_alone:
            marks.append(f'<path class="raw c{one.colour}" d="{plot.path(one.points)}"/>')
        marks.append(f'<path class="line c{one.colour}" d="{plot.path(smooth)}"/>')
    return _figure(title, note, plot, "".join(marks), series)


def stacked_chart(title: str, series: Sequence[Series], *, note: str = "") -> str:
    """A titled figure of ``series`` stacked on one another; a step that a series lacks counts 0 for it."""
    series = [_thin(one) for one in series if one.points]
    if not series:
        return ""
    steps = _steps(series)
    base = dict.fromkeys(steps, 0.0)
    layers = []
    for one in series:
        values = dict(moving_average(one.points))
        top = {step: base[step] + values.get(step, 0.0) for step in steps}
        layers.append((one, base, top))
        base = top
    plot = _Plot(steps, nice_ticks(0.0, max(base.values())))
    marks = []
    for one, lower, upper in layers:
        outline = [(step, upper[step]) for step in steps] + [(step, lower[step]) for step in reversed(steps)]
        marks.append(f'<path class="area c{one.colour}" d="{plot.path(outline)}Z"/>')
    return _figure(title, note, plot, "".join(marks), series)


def interval_bar(value: float, low: float, high: float) -> str:
    """Accuracy on a scale from 0 to 1 as a bar, with its interval as a whisker."""
    x = [4 + 292 * share for share in (value, low, high)]
    return (
        '<svg class="c1" viewBox="0 0 300 22" role="img" aria-hidden="true">'
        '<path d="M4 11H296" stroke="var(--line)" stroke-width="8" stroke-linecap="round"/>'
        f'<path d="M4 11H{x[0]:.1f}" stroke="var(--c)" stroke-width="8" stroke-linecap="round"/>'
        f'<path d="M{x[1]:.1f} 3V19M{x[1]:.1f} 11H{x[2]:.1f}M{x[2]:.1f} 3V19" stroke="var(--text)" stroke-width="1.5"/>'
        "</svg>"
    )


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers (1, 2, 2.5 or 5 times a power of ten apart) that enclose [low, high]."""
    if high - low <= 1e-12 * max(1.0, abs(low), abs(high)):
        margin = abs(low) or 0.5
        low, high = (0.0, 2 * margin) if low >= 0 else (low - margin, high + margin)
    rough = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= rough * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def moving_average(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Centred mean over about a twentieth of the points (an odd number of them); short series stay as they are."""
    half = len(points) // 40
    if half == 0:
        return tuple(points)
    values = [value for _, value in points]
    return tuple(
        (step, fmean(values[max(0, index - half) : index + half + 1])) for index, (step, _) in enumerate(points)
    )


class _Plot:
    """Maps steps and values to SVG coordinates, with the axes."""

    def __init__(self, steps: Sequence[float], ticks: Sequence[float]):
        self.first, self.last = steps[0], steps[-1]
        self.ticks = list(ticks)

    def x(self, step: float) -> float:
        span = self.last - self.first
        share = (step - self.first) / span if span else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{self.x(step):.1f} {self.y(value):.1f}" for step, value in points)

    def axes(self) -> str:
        parts = []
        for tick in self.ticks:
            y = self.y(tick)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_label(tick)}</text>')
        steps = [tick for tick in nice_ticks(self.first, self.last, 6) if self.first <= tick <= self.last]
        for tick in steps if self.last > self.first else [self.first]:
            if tick == round(tick):
                parts.append(
                    f'<text class="tick" x="{self.x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
                    f"{_label(tick)}</text>"
                )
        parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">step</text>')
        return "".join(parts)


def _figure(title: str, note: str, plot: _Plot, marks: str, series: Sequence[Series]) -> str:
    legend = "".join(f'<span class="key"><i class="c{one.colour}"></i>{html.escape(one.name)}</span>' for one in series)
    data = {
        "first": plot.first,
        "last": plot.last,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "series": [{"name": one.name, "points": [[s, float(f"{v:.5g}")] for s, v in one.points]} for one in series],
    }
    caption = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return (
        f'<figure class="chart" data-chart="{html.escape(json.dumps(data, separators=(",", ":")))}">'
        f'<figcaption>{html.escape(title)}</figcaption><div class="legend">{legend}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">'
        f'{plot.axes()}{marks}<path class="cursor" d=""/></svg><div class="tip" hidden></div>{caption}</figure>'
    )


def _thin(series: Series) -> Series:
    """At most ``MAX_POINTS`` points: neighbours are averaged, so that a long run stays a small file."""
    size = math.ceil(len(series.points) / MAX_POINTS)
    if size <= 1:
        return series
    chunks = [series.points[start : start + size] for start in range(0, len(series.points), size)]
    points = tuple((chunk[-1][0], fmean(value for _, value in chunk)) for chunk in chunks)
    return Series(series.name, points, series.colour, series.markers)


def _steps(series: Sequence[Series]) -> list[float]:
    return sorted({step for one in series for step, _ in one.points})


def _given(value: float | None) -> list[float]:
    return [] if value is None else [value]


def _label(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.6g}"
    mantissa, exponent = f"{value:.3g}".split("e") if "e" in f"{value:.3g}" else (f"{value:.3g}", "")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa
