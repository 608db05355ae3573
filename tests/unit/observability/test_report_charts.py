"""Ticks, smoothing and the SVG of a chart."""

from __future__ import annotations

import html
import json
import re

import pytest

from megatron_apo.observability.report_charts import Series, line_chart, moving_average, nice_ticks, stacked_chart


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]),
        (0.0, 1.5, [0, 0.5, 1, 1.5]),
        (-0.9, 1.1, [-1, -0.5, 0, 0.5, 1, 1.5]),
        (0.0, 2e-4, [0, 5e-5, 1e-4, 1.5e-4, 2e-4]),
        (3.0, 3.0, [0, 2, 4, 6]),
        (0.0, 0.0, [0, 0.25, 0.5, 0.75, 1]),
        (-2.0, -2.0, [-4, -3, -2, -1, 0]),
    ],
)
def test_nice_ticks_enclose_the_range(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_moving_average() -> None:
    short = ((1.0, 5.0), (2.0, 7.0))
    assert moving_average(short) == short
    long = [(float(step), float(step % 2)) for step in range(40)]  # 40 points: one neighbour to either side
    smooth = moving_average(long)
    assert smooth[0] == (0.0, 0.5)
    assert smooth[1] == (1.0, pytest.approx(1 / 3))
    assert smooth[2] == (2.0, pytest.approx(2 / 3))


def test_a_line_runs_from_corner_to_corner() -> None:
    chart = line_chart("Reward", [Series("total", ((1, 0.0), (5, 1.0)), 1)])
    # The plot is 52..546 wide and 12..216 high.
    assert 'd="M52.0 216.0L546.0 12.0"' in chart
    data = json.loads(html.unescape(re.findall(r'data-chart="([^"]*)"', chart)[0]))
    assert data["series"] == [{"name": "total", "points": [[1, 0.0], [5, 1.0]]}]


def test_layers_are_stacked_and_a_missing_step_counts_nothing() -> None:
    chart = stacked_chart("Seconds", [Series("a", ((1, 1.0), (2, 1.0)), 1), Series("b", ((1, 3.0),), 2)])
    areas = re.findall(r'class="area c\d" d="([^"]*)"', chart)
    assert areas[0] == "M52.0 165.0L546.0 165.0L546.0 216.0L52.0 216.0Z"  # 1 of 4 is a quarter of the height
    assert areas[1] == "M52.0 12.0L546.0 165.0L546.0 165.0L52.0 165.0Z"


def test_a_long_run_stays_small_and_nothing_draws_nothing() -> None:
    points = tuple((float(step), 0.5) for step in range(100_000))
    assert len(line_chart("Loss", [Series("loss", points, 1)])) < 60_000
    assert line_chart("Loss", [Series("loss", (), 1)]) == ""
    assert stacked_chart("Seconds", []) == ""


def test_one_step_is_drawn() -> None:
    assert "299.0" in line_chart("Loss", [Series("loss", ((3, 0.5),), 1, markers=True)])
