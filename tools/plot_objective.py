"""Draws every weight curve of the objective: DADS, STCR, GRPO-D's coefficient, KL, clipping, corrections, punishment.

    python tools/plot_objective.py [--directory docs/images]

The curves are those of ``megatron_apo``, computed by its own functions; docs/objective.md shows the pictures.
Needs matplotlib (the extra ``demo`` of setup.py).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_apo.config import MismatchConfig
from megatron_apo.objective.dads import CURVES, dads_kl_weights
from megatron_apo.objective.kl import ESTIMATORS, kl_divergence
from megatron_apo.objective.kl_schedule import grpo_d_coefficient
from megatron_apo.objective.mismatch import corrected
from megatron_apo.objective.policy_loss import clipped_policy_loss
from megatron_apo.objective.stcr import stcr_weights
from megatron_apo.rewards.overlong import OverlongPunishment

DIRECTORY = Path(__file__).resolve().parents[1] / "docs" / "images"
GROUP = 8  # responses per prompt, as in the table of docs/objective.md
FINE = 400  # a group so large that its shares of correct responses draw a smooth line
BASES = (1.00001, 1.02)  # the published one, and the quickstart's
GRPO_D = ((0.04, 0.10, "visual counting"), (0.0, 0.02, "geometry"))  # the published ranges
COLOURS = ("#2f6fb0", "#d9822b")


def dads_points(curve: str, group: int) -> tuple[list[float], list[float]]:
    """(accuracy, DADS factor of a positive response) for 0 to ``group`` correct of ``group`` responses."""
    accuracy, factor = [], []
    for correct in range(group + 1):
        mask = (torch.arange(group) < correct)[None]
        weights = dads_kl_weights(torch.ones(1, group, dtype=torch.float64), mask, curve=curve)
        accuracy.append(correct / group)
        factor.append(float(weights[0, 0]))
    return accuracy, factor


def stcr_points(base: float, excess: torch.Tensor) -> torch.Tensor:
    """STCR's factor of a wrong response that is ``excess`` tokens longer than the correct one beside it."""
    lengths = torch.stack((torch.ones_like(excess), 1 + excess), dim=1)
    correct = torch.tensor([True, False]).expand(len(excess), 2)
    return stcr_weights(lengths, correct, base=base)[:, 1]


def draw_dads(axes: Axes) -> None:
    for curve, colour in zip(CURVES, COLOURS, strict=True):
        accuracy, factor = dads_points(curve, FINE)
        # Without the two ends: all correct or all wrong gives 1, which is no part of the curve.
        axes.plot(accuracy[1:-1], factor[1:-1], color=colour, linewidth=1.5)
        accuracy, factor = dads_points(curve, GROUP)
        axes.plot(accuracy[1:-1], factor[1:-1], "o", color=colour, markersize=5, label=curve)
    axes.plot([0, 1], [1, 1], "s", color="#444444", markersize=6, label="all correct, all wrong: 1")
    axes.set_xlabel(f"accuracy of the group: correct / G = 1 - d   (points: G = {GROUP})")
    axes.set_ylabel("DADS: factor of the KL term")
    axes.set_title("Positive responses: a hard prompt may move further", fontsize=10)
    axes.set_ylim(0, 1.08)
    axes.legend(frameon=False, fontsize=9, loc="lower right")


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


def draw_relative_stcr(axes: Axes) -> None:
    """Several correct lengths: the same relative excess weighs more where answers are long."""
    relative = torch.linspace(0.5, 4, 200, dtype=torch.float64)
    shown = ((1.001, 1000, "-"), (1.001, 400, "--"), (1.001, 100, ":"), (1.00001, 1000, "-"))
    for base, correct, dashes in shown:
        lengths = torch.stack((torch.full_like(relative, correct), correct * relative), dim=1)
        pairs = torch.tensor([True, False]).expand(len(relative), 2)
        weights = stcr_weights(lengths, pairs, base=base)[:, 1]
        colour, label = COLOURS[base == 1.001], f"b = {base}, correct ones {correct} long"
        axes.plot(relative.tolist(), weights.tolist(), dashes, color=colour, linewidth=1.6, label=label)
    axes.set_ylim(0.97, 2.5)
    axes.set_xlabel("length of a wrong response / mean correct length")
    axes.set_ylabel("STCR: factor of the advantage")
    axes.set_title("STCR over relative length", fontsize=10)


def draw_grpo_d(axes: Axes) -> None:
    steps = 100
    for (low, high, label), colour in zip(GRPO_D, COLOURS, strict=True):
        values = [
            grpo_d_coefficient(step, total_steps=steps, exploration_steps=30, minimum=low, maximum=high)
            for step in range(steps + 1)
        ]
        axes.plot(range(steps + 1), values, color=colour, linewidth=1.8, label=f"{label}: {low} to {high}")
    axes.axvline(30, color="#999999", linewidth=1, linestyle="--")
    axes.set_ylim(0, 0.108)
    axes.set_xlabel("step of 100, the first 30 of them exploration")
    axes.set_ylabel("KL coefficient")
    axes.set_title("GRPO-D: down from the middle, then up", fontsize=10)


def draw_estimators(axes: Axes) -> None:
    x = torch.linspace(-2, 2, 201, dtype=torch.float64)
    for estimator, colour in zip(ESTIMATORS, (*COLOURS, "#4a9e5c"), strict=True):
        values = kl_divergence(torch.zeros_like(x), x, estimator=estimator)
        axes.plot(x.tolist(), values.tolist(), color=colour, linewidth=1.8, label=estimator)
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.set_xlabel("x = log of reference over policy, of a sampled token")
    axes.set_ylabel("estimate of the KL, nats")
    axes.set_title("KL estimators", fontsize=10)


def draw_clip(axes: Axes) -> None:
    ratio = torch.linspace(0.4, 1.8, 281, dtype=torch.float64)
    shown = ((1.0, 0.2, "-", COLOURS[0]), (1.0, 0.28, "--", COLOURS[0]), (-1.0, 0.2, "-", COLOURS[1]))
    for advantage, high, dashes, colour in shown:
        loss = clipped_policy_loss(ratio.log(), torch.full_like(ratio, advantage), clip_low=0.2, clip_high=high)
        label = f"A' = {advantage:+g}, clip 0.2 / {high}" if advantage > 0 else "A' = -1, clip 0.2"
        axes.plot(ratio.tolist(), loss.tolist(), dashes, color=colour, linewidth=1.6, label=label)
    axes.axvline(1, color="#999999", linewidth=0.8)
    axes.set_xlabel("ratio of the policy to the old one")
    axes.set_ylabel("PG")
    axes.set_title("The clipped loss: flat is without a gradient", fontsize=10)


def draw_corrections(axes: Axes) -> None:
    weights = torch.linspace(0, 4, 801, dtype=torch.float64)
    shown = (("none", "#999999"), ("truncate", COLOURS[0]), ("mask", COLOURS[1]))
    for correction, colour in shown:
        settings = MismatchConfig(correction=correction, upper=2.0, lower=0.5)
        factor = corrected(weights, settings)
        axes.plot(weights.tolist(), factor.tolist(), color=colour, linewidth=1.8, label=correction)
    axes.set_ylim(-0.1, 2.4)
    axes.set_xlabel("importance weight, trainer over engine (lower 0.5, upper 2)")
    axes.set_ylabel("factor of the policy loss")
    axes.set_title("Correction of mismatch", fontsize=10)


def draw_overlong(axes: Axes) -> None:
    cap = 20480
    lengths = list(range(12000, cap + 1, 40))
    for buffer, colour in zip((0.2, 0.1), COLOURS, strict=True):
        punishment = OverlongPunishment(cap, buffer, 1.0)
        values = [punishment.part(length) for length in lengths]
        axes.plot(lengths, values, color=colour, linewidth=1.8, label=f"buffer {buffer}")
    axes.set_xlabel(f"response tokens, the cap at {cap}")
    axes.set_ylabel("part of the reward")
    axes.set_title("Soft overlong punishment", fontsize=10)


def save(figure: Figure, path: Path) -> None:
    """Writes ``figure``, its axes tidied."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(path)


def main() -> None:
    """Writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="where the PNG files go")
    directory = parser.parse_args().directory
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_dads(left)
    draw_stcr(right)
    save(figure, directory / "objective_weights.png")
    figure = Figure(figsize=(13, 7), layout="constrained")
    draws = (draw_relative_stcr, draw_grpo_d, draw_estimators, draw_clip, draw_corrections, draw_overlong)
    for axes, draw in zip(figure.subplots(2, 3).flat, draws, strict=True):
        draw(axes)
        axes.legend(frameon=False, fontsize=8)
    save(figure, directory / "objective_curves.png")


if __name__ == "__main__":
    main()
