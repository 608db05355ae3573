"""How pictures look: one palette, no frame, a faint grid. Needs matplotlib, which is imported when one is drawn."""

from __future__ import annotations

from typing import Any

COLOURS = ("#2563eb", "#d97706", "#0d9488", "#9333ea", "#dc2626", "#64748b")
INK, SOFT, LINE = "#16202c", "#5d6b7c", "#e2e6ec"


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches, drawn without a display. ValueError when matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("the picture needs the package matplotlib, which is not installed; install it") from error
    figure = Figure(figsize=(width, height), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style(axes: Any, label: str) -> None:
    """Only the bottom line stays; ``label`` says what runs along it."""
    axes.set_xlabel(label, color=SOFT)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=SOFT, length=0)
    for side, spine in axes.spines.items():
        spine.set(visible=side == "bottom", color=LINE)
