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


def write_picture(comparison: Comparison, path: Path, *, limit: float | None) -> None:
    """Writes a PNG with a row per pair. Left: |difference| of every token against its position in the response; right:
    the number of tokens by |difference|. Both logarithmic; equal tokens are counted beside the title, not drawn.

    ValueError when matplotlib is not installed.
    """
    pairs = comparison.pairs()
    positions = np.array([position for _, position in token_places(comparison.samples)])
    figure = new_figure(11, 0.7 + 3.3 * len(pairs))
    rows = figure.subplots(len(pairs), 2, squeeze=False, width_ratios=(3, 2))
    for row, pair, colour in zip(rows, pairs, COLOURS, strict=False):
        distances = (comparison.scores[pair.first] - comparison.scores[pair.second]).abs().double().numpy()
        drawn = np.isfinite(distances) & (distances > 0)
        low, high = _decades(distances[drawn], limit)
        _draw_positions(row[0], pair, positions, distances, drawn, colour)
        _draw_sizes(row[1], pair, distances[drawn], colour, low, high)
        row[0].set_ylim(low, high)
        row[1].set_xlim(low, high)
        if limit is not None:
            row[0].axhline(limit, color=COLOURS[4], linewidth=1, linestyle="--")
            row[1].axvline(limit, color=COLOURS[4], linewidth=1, linestyle="--", label=f"limit {limit:.0e}")
        row[1].legend(frameon=False, labelcolor=SOFT, fontsize=8)
    about = ", ".join(comparison.about.values())
    figure.suptitle(about, x=0.01, ha="left", color=SOFT, fontsize=9)
    figure.savefig(path)


def _decades(distances: np.ndarray, limit: float | None) -> tuple[float, float]:
    """Whole powers of ten around the distances and the limit."""
    shown = [*([distances.min(), distances.max()] if len(distances) else []), *([limit] if limit else [])] or [1e-6]
    low, high = (float(np.log10(value)) for value in (min(shown), max(shown)))
    return 10.0 ** np.floor(low), 10.0 ** max(np.ceil(high + 0.1), np.floor(low) + 1)


def _draw_positions(
    axes: Any, pair: PairStatistics, positions: np.ndarray, distances: np.ndarray, drawn: np.ndarray, colour: str
) -> None:
    axes.set_yscale("log")
    size = 10 if drawn.sum() < 2000 else 3
    axes.scatter(positions[drawn], distances[drawn], s=size, color=colour, alpha=0.45, linewidths=0, rasterized=True)
    if drawn[pair.worst]:
        place = (positions[pair.worst], distances[pair.worst])
        axes.scatter(*place, s=60, facecolors="none", edgecolors=INK, linewidths=1.2)
    notes = [f"{pair.tokens:,} tokens"]
    if equal := int((distances == 0).sum()):
        notes.append(f"{equal:,} equal to the last bit")
    if strange := int((~np.isfinite(distances)).sum()):
        notes.append(f"{strange:,} not a finite number")
    axes.set_title(f"{pair.name}", loc="left", color=INK, fontweight="bold", fontsize=12)
    axes.set_title(", ".join(notes), loc="right", color=SOFT, fontsize=8)
    axes.set_ylabel("|difference| of log-probability", color=SOFT)
    style(axes, "position in the response")


def _draw_sizes(axes: Any, pair: PairStatistics, distances: np.ndarray, colour: str, low: float, high: float) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    count = max(1, round(np.log10(high / low) * _BINS_PER_DECADE))
    axes.hist(
        distances, bins=np.geomspace(low, high, count + 1), color=colour, alpha=0.8, edgecolor="white", linewidth=0.5
    )
    for label, value, line in (
        ("mean", pair.mean, ":"),
        ("99 %", pair.percentile_99, "-."),
        ("max", pair.maximum, "-"),
    ):
        if np.isfinite(value) and value > 0:
            axes.axvline(value, color=INK, linewidth=1, linestyle=line, label=f"{label} {value:.1e}")
    axes.set_ylim(bottom=0.7)
    axes.set_ylabel("tokens", color=SOFT)
    style(axes, "|difference| of log-probability")
    axes.grid(axis="x", color=LINE, linewidth=0.8)
