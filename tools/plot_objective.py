"""Draws what the two parts of APO do: DADS's factor over difficulty, STCR's over excess length.

    python tools/plot_objective.py [--output docs/images/objective_weights.png]

The curves are those of ``megatron_apo.objective``, computed by its own functions; docs/objective.md shows the picture.
Needs matplotlib (the extra ``demo`` of setup.py).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_apo.objective.dads import CURVES, dads_kl_weights
from megatron_apo.objective.stcr import stcr_weights

OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "images" / "objective_weights.png"
GROUP = 8  # responses per prompt, as in the table of docs/objective.md
FINE = 400  # a group so large that its shares of correct responses draw a smooth line
BASES = (1.00001, 1.02)  # the published one, and the quickstart's
COLOURS = ("#2f6fb0", "#d9822b")


def dads_points(curve: str, group: int) -> tuple[list[float], list[float]]:
    """(difficulty, DADS factor of a positive response) for 0 to ``group`` correct of ``group`` responses."""
    difficulty, factor = [], []
    for correct in range(group + 1):
        mask = (torch.arange(group) < correct)[None]
        weights = dads_kl_weights(torch.ones(1, group, dtype=torch.float64), mask, curve=curve)
        difficulty.append(1 - correct / group)
        factor.append(float(weights[0, 0]))
    return difficulty, factor


def stcr_points(base: float, excess: torch.Tensor) -> torch.Tensor:
    """STCR's factor of a wrong response that is ``excess`` tokens longer than the correct one beside it."""
    lengths = torch.stack((torch.ones_like(excess), 1 + excess), dim=1)
    correct = torch.tensor([True, False]).expand(len(excess), 2)
    return stcr_weights(lengths, correct, base=base)[:, 1]


def draw_dads(axes: Axes) -> None:
    for curve, colour in zip(CURVES, COLOURS, strict=True):
        difficulty, factor = dads_points(curve, FINE)
        # Without the two ends: all correct or all wrong gives 1, which is no part of the curve.
        axes.plot(difficulty[1:-1], factor[1:-1], color=colour, linewidth=1.5)
        difficulty, factor = dads_points(curve, GROUP)
        axes.plot(difficulty[1:-1], factor[1:-1], "o", color=colour, markersize=5, label=curve)
    axes.plot([0, 1], [1, 1], "s", color="#444444", markersize=6, label="all correct, all wrong: 1")
    axes.set_xlabel(f"difficulty of the prompt: 1 - correct / G   (points: G = {GROUP})")
    axes.set_ylabel("DADS: factor of the KL term")
    axes.set_title("Positive responses: a hard prompt may move further", fontsize=10)
    axes.set_ylim(0, 1.08)
    axes.legend(frameon=False, fontsize=9, loc="lower left")


def draw_stcr(axes: Axes) -> None:
    excess = torch.logspace(0, 6, 601, dtype=torch.float64)
    for base, colour in zip(BASES, COLOURS, strict=True):
        axes.plot(excess.tolist(), stcr_points(base, excess).tolist(), color=colour, linewidth=1.8, label=f"b = {base}")
    axes.axvspan(1, 4096, color="#999999", alpha=0.12, linewidth=0)
    axes.text(3600, 1.5, "responses of up to\n4096 tokens", ha="right", va="center", fontsize=9, color="#555555")
    axes.set_xscale("log")
    axes.set_xlim(1, 1e6)
    axes.set_ylim(0.97, 2.03)
    axes.set_xlabel("excess over the mean correct length, tokens")
    axes.set_ylabel("STCR: factor of the advantage, 1 + w")
    axes.set_title("Wrong responses: longer than the correct ones counts more", fontsize=10)
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="PNG file")
    options = parser.parse_args()
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_dads(left)
    draw_stcr(right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=110)
    print(options.output)


if __name__ == "__main__":
    main()
