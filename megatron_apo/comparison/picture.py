"""The picture of a comparison: for each pair, differences by position and how many there are of each size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from megatron_apo.comparison.inputs import token_places
from megatron_apo.comparison.results import Comparison
from megatron_apo.comparison.statistics import PairStatistics
from megatron_apo.observability.figure import COLOURS, INK, LINE, SOFT, new_figure, style

_BINS_PER_DECADE = 6
_SMALL_LEGEND = {"frameon": False, "fontsize": 7.5, "handlelength": 1.6, "columnspacing": 1.0}


def write_picture(comparison: Comparison, path: Path, *, limit: float | None) -> None:
    """Writes a PNG with a row per pair. Left: |difference| of every token against its position in the response, the
    largest one named; right: the number of tokens by |difference|. Logarithmic, and to the same scale in all rows.
    Equal tokens are counted in the title, not drawn.

    ValueError when matplotlib is not installed.
    """
    pairs = comparison.pairs()
    positions = np.array([position for _, position in token_places(comparison.samples)])
    distances = [(comparison.scores[p.first] - comparison.scores[p.second]).abs().double().numpy() for p in pairs]
    low, high = _decades(np.concatenate(distances), limit)
    figure = new_figure(11, 0.7 + 3.3 * len(pairs))
    rows = figure.subplots(len(pairs), 2, squeeze=False, width_ratios=(3, 2), sharex="col", sharey="col")
    for row, pair, distance, colour in zip(rows, pairs, distances, COLOURS, strict=False):
        _draw_sizes(row[1], pair, distance[_drawn(distance)], colour, np.geomspace(low, high, _bins(low, high)))
        if limit:
            row[0].axhline(limit, color=COLOURS[4], linewidth=1, linestyle="--")
            row[1].axvline(limit, color=COLOURS[4], linewidth=1, linestyle="--", label=f"limit {limit:.0e}")
        if row[1].get_legend_handles_labels()[0]:
            row[1].legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=4, labelcolor=SOFT, **_SMALL_LEGEND)
        sample, _, token = comparison.token(pair.worst)
        _draw_positions(row[0], pair, positions, distance, colour, f"{sample.id}, '{comparison.text(token)}'")
    rows[0][0].set_ylim(low, high)
    rows[0][1].set_xlim(low, high)
    figure.suptitle(", ".join(comparison.about.values()), x=0.01, ha="left", color=SOFT, fontsize=9)
    figure.savefig(path)


def _drawn(distances: np.ndarray) -> np.ndarray:
    return np.isfinite(distances) & (distances > 0)


def _decades(distances: np.ndarray, limit: float | None) -> tuple[float, float]:
    """Whole powers of ten around the distances and the limit."""
    shown = [*distances[_drawn(distances)].tolist(), *([limit] if limit else [])] or [1e-6]
    low, high = np.floor(np.log10(min(shown))), np.ceil(np.log10(max(shown)) + 0.3)
    return float(10.0**low), float(10.0 ** max(high, low + 1))


def _bins(low: float, high: float) -> int:
    return max(2, round(np.log10(high / low) * _BINS_PER_DECADE) + 1)


def _draw_positions(
    axes: Any, pair: PairStatistics, positions: np.ndarray, distances: np.ndarray, colour: str, worst: str
) -> None:
    """``worst`` names the token that the pair differs most about."""
    drawn = _drawn(distances)
    axes.set_yscale("log")
    spread = np.random.default_rng(0).uniform(-0.3, 0.3, len(positions))  # tokens of one position side by side
    size, alpha = (9, 0.5) if len(positions) < 5000 else (3, 0.3)
    places = positions + spread
    axes.scatter(places[drawn], distances[drawn], s=size, color=colour, alpha=alpha, linewidths=0, rasterized=True)
    if drawn[pair.worst]:
        line = {"arrowstyle": "-", "color": INK, "linewidth": 0.8, "shrinkB": 3}
        place = (places[pair.worst], distances[pair.worst])
        axes.annotate(worst, place, xytext=(14, 8), textcoords="offset points", color=INK, fontsize=8, arrowprops=line)
    notes = [f"{pair.tokens:,} tokens"]
    if equal := int((distances == 0).sum()):
        notes.append(f"{equal:,} equal to the last bit")
    if strange := int((~np.isfinite(distances)).sum()):
        notes.append(f"{strange:,} not a finite number")
    axes.set_title(pair.name, loc="left", color=INK, fontweight="bold", fontsize=12)
    axes.set_title(", ".join(notes), loc="right", color=SOFT, fontsize=8)
    axes.set_ylabel("|difference| of log-probability", color=SOFT)
    style(axes, "position in the response")


def _draw_sizes(axes: Any, pair: PairStatistics, distances: np.ndarray, colour: str, bins: np.ndarray) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    highest = 0.0
    if len(distances):
        counts, _, _ = axes.hist(distances, bins=bins, color=colour, alpha=0.8, edgecolor="white", linewidth=0.5)
        highest = counts.max()
    lines = (("mean", pair.mean, ":"), ("99 %", pair.percentile_99, "-."), ("max", pair.maximum, "-"))
    for label, value, line in lines:
        if np.isfinite(value) and value > 0:
            axes.axvline(value, color=INK, linewidth=1, linestyle=line, label=f"{label} {value:.1e}")
    axes.set_ylim(0.7, max(axes.get_ylim()[1], 10.0, 2 * highest))  # rows share it: it only grows
    axes.set_ylabel("tokens", color=SOFT)
    style(axes, "|difference| of log-probability")
    axes.grid(axis="x", color=LINE, linewidth=0.8)
