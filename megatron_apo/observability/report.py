"""``report.html``: what a run did, in one file that opens offline."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from megatron_apo.config import LoggingConfig
from megatron_apo.evaluation.scoring import Evaluation
from megatron_apo.evaluation.tables import read_evaluations
from megatron_apo.observability.alarms import WATCHED, Ring, rings
from megatron_apo.observability.curves import VALIDATION_ACCURACY, curve, write_curves_png
from megatron_apo.observability.report_charts import Series, interval_bar, line_chart, stacked_chart
from megatron_apo.observability.report_samples import sample_sections
from megatron_apo.observability.report_style import SCRIPT, STYLE
from megatron_apo.observability.writers import read_metrics

__all__ = ["write_curves_png", "write_report"]

Metrics = Sequence[Mapping[str, Any]]

# title, (metric, name in the legend) …, note, value the axis must include at the bottom
CHARTS: tuple[tuple[str, tuple[tuple[str, str], ...], str, float | None], ...] = (
    (
        "Reward",
        (("reward/total", "total"), ("reward/accuracy", "accuracy"), ("reward/format", "format")),
        "Accuracy and format are shares of the responses; the total is their weighted sum.",
        0.0,
    ),
    (
        "Response length",
        (("rollout/response_length", "all"), ("rollout/response_length_wrong", "wrong")),
        "Mean tokens of a response, end-of-sequence included.",
        0.0,
    ),
    (
        "KL divergence",
        (("kl/raw", "raw"), ("kl/weighted", "DADS-weighted")),
        "Against the initial policy, mean over responses of the mean per token.",
        0.0,
    ),
    ("Entropy", (("policy/entropy", "entropy"),), "Of the policy, in nats per response token.", 0.0),
    ("Clip fraction", (("policy/clip_fraction", "clipped"),), "Share of tokens whose ratio was clipped.", 0.0),
    ("Learning rate", (("optimizer/learning_rate", "learning rate"),), "", 0.0),
    ("Loss", (("loss/total", "loss"),), "", None),
    ("Gradient norm", (("optimizer/gradient_norm", "gradient norm"),), "Before clipping.", 0.0),
    (
        "Validation loss",
        (("evaluation/loss", "loss"),),
        "Of the demonstrations of data.validation, nats per token.",
        0.0,
    ),
    (
        "Validation token accuracy",
        (("evaluation/token_accuracy", "token accuracy"),),
        "Share of the demonstrations' tokens that are the likeliest.",
        0.0,
    ),
    (
        "Shaping",
        (("apo/difficulty", "difficulty"), ("apo/dads_weight", "DADS weight"), ("apo/stcr_weight", "STCR weight")),
        "Means over the step's responses; difficulty is the share of a group that is not correct.",
        0.0,
    ),
    (
        "Engine against trainer",
        (("sync/logprob_difference_mean", "mean |Δ log p|"),),
        "Log-probability of the sampled tokens: what the gate before each update compares.",
        0.0,
    ),
    (
        "Engine against trainer, largest",
        (("sync/logprob_difference_max", "largest |Δ log p|"),),
        "Of the sampled token they differ most about.",
        0.0,
    ),
    (
        "Importance weights, trainer over engine",
        (
            ("mismatch/effective_sample_size", "effective sample size"),
            ("mismatch/weight_mean", "mean weight"),
            ("mismatch/corrected_share", "corrected share"),
        ),
        "Size as a share of the samples and weight are 1 where they agree; objective.mismatch corrects a share.",
        0.0,
    ),
)


def write_report(run_dir: str | Path, *, output: str | Path | None = None) -> Path:
    """Writes ``run_dir/report.html`` (or ``output``) from what the run directory holds, and returns its path.

    Reads ``config.yaml``, ``metrics.jsonl``, ``rollouts/step_*.jsonl`` and ``evaluations.json``; a part whose file
    is missing is left out. Every text of a model or a data row is escaped; pictures are embedded as they are on disk.
    Raises ValueError when there are neither metrics nor evaluations, or when a file cannot be understood.
    """
    run_dir = Path(run_dir)
    metrics = read_metrics(run_dir)
    evaluations = read_evaluations(run_dir)
    if not metrics and not evaluations:
        raise ValueError(f"{run_dir}: holds neither metrics.jsonl nor evaluations.json; give a run's directory")
    config_file = run_dir / "config.yaml"
    config_text = config_file.read_text(encoding="utf-8") if config_file.exists() else ""
    config = yaml.safe_load(config_text) or {}
    wanted = _setting(config, "logging", "report_samples")
    samples = sample_sections(run_dir, LoggingConfig.report_samples if wanted is None else int(wanted))
    name = html.escape(run_dir.resolve().name)
    body = [
        f"<h1>{name}</h1>",
        f'<p class="soft">{_subtitle(config, metrics)}</p>',
        _facts(config),
        _tiles(metrics, evaluations),
        _evaluation_table(evaluations),
        _alarm_table(metrics),
        _charts(metrics),
    ]
    if samples:
        body.append(
            "<h2>Sampled responses</h2><p class=soft>From the training rollouts: of each group the response with the "
            "highest and the one with the lowest advantage (STCR applied), with what the objective made of them. "
            "STCR multiplies the advantage, DADS the weight of the KL term.</p>" + samples
        )
    if config_text:
        body.append(f"<details><summary>Configuration</summary><pre>{html.escape(config_text)}</pre></details>")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{name} · training report</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main><script>{SCRIPT}</script></body></html>\n"
    )
    path = Path(output) if output is not None else run_dir / "report.html"
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _setting(config: Mapping[str, Any], *keys: str) -> Any:
    value: Any = config
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _subtitle(config: Mapping[str, Any], metrics: Metrics) -> str:
    objective = str(_setting(config, "objective", "name") or "").upper().replace("_", "-")
    model = Path(str(_setting(config, "model", "path") or "")).name
    parts = ["Training report"]
    if objective and model:
        parts.append(f"{html.escape(objective)} on {html.escape(model)}")
    if metrics:
        parts.append(f"{metrics[-1]['step']} steps")
    return " · ".join(parts)


def _facts(config: Mapping[str, Any]) -> str:
    layout = [
        f"{label} {size}"
        for label, key in (("TP", "tensor"), ("PP", "pipeline"), ("CP", "context"))
        if (size := _setting(config, "parallel", key)) not in (None, 1)
    ]
    prompts, group_size = _setting(config, "rollout", "prompts_per_step"), _setting(config, "sampling", "group_size")
    facts = {
        "objective": _setting(config, "objective", "name"),
        "responses a step": f"{prompts} × {group_size}" if prompts and group_size else None,
        "learning rate": _setting(config, "optimizer", "learning_rate"),
        "updates a rollout": _setting(config, "training", "updates_per_rollout"),
        "temperature": _setting(config, "sampling", "temperature"),
        "KL": _kl_fact(_setting(config, "objective", "kl")),
        "engine": _setting(config, "rollout", "engine"),
        "layout": " × ".join(layout) if layout else None,
        "precision": _setting(config, "model", "dtype"),
        "seed": _setting(config, "run", "seed"),
    }
    items = "".join(
        f"<li><span>{html.escape(name)}</span> <b>{html.escape(str(value))}</b></li>"
        for name, value in facts.items()
        if value is not None
    )
    return f'<ul class="facts">{items}</ul>' if items else ""


def _kl_fact(kl: Any) -> str | None:
    if not isinstance(kl, Mapping):
        return None
    if kl.get("schedule") == "grpo_d":
        return f"{kl.get('estimator')}, {kl.get('minimum')} to {kl.get('maximum')}"
    return f"{kl.get('estimator')}, {kl.get('coefficient')}" if kl.get("coefficient") else "none"


def _tiles(metrics: Metrics, evaluations: Mapping[str, Evaluation]) -> str:
    tiles = []
    before, after = evaluations.get("before"), evaluations.get("after")
    if before and after:
        tiles.append(_tile("Held-out accuracy", before.accuracy, after.accuracy, f"{after.rows} rows", share=True))
        tiles.append(_tile("Held-out format", before.format, after.format, "well-formed responses", share=True))
    rewards = curve(metrics, "reward/total")
    if rewards:
        window = max(1, len(rewards) // 20)
        first, last = (sum(v for _, v in part) / len(part) for part in (rewards[:window], rewards[-window:]))
        tiles.append(_tile("Reward in training", first, last, f"mean of the first and last {window} steps"))
    seconds = [value for _, value in curve(metrics, "time/step")]
    if seconds:
        tiles.append(
            f'<div class="tile"><div class="name">Seconds a step</div><div class="value">{median(seconds):.2f}</div>'
            f'<div class="more">median; {_duration(sum(seconds))} in all</div></div>'
        )
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _tile(name: str, before: float, after: float, more: str, *, share: bool = False) -> str:
    change = after - before
    change_text = f"{change * 100:+.1f} points" if share else f"{change:+.2f}"
    direction = "up" if change > 0 else "down" if change < 0 else ""
    first, last = (f"{100 * v:.1f} %" if share else f"{v:.2f}" for v in (before, after))
    return (
        f'<div class="tile"><div class="name">{name}</div><div class="value"><small>{first} →</small> {last}</div>'
        f'<div class="more"><span class="{direction}">{change_text}</span> · {html.escape(more)}</div></div>'
    )


def _evaluation_table(evaluations: Mapping[str, Evaluation]) -> str:
    if not evaluations:
        return ""
    rows = []
    for label, one in evaluations.items():
        low, high = one.accuracy_interval
        rows.append(
            f"<tr><td><b>{html.escape(label)}</b></td><td><b>{100 * one.accuracy:.1f} %</b></td>"
            f"<td>{100 * low:.1f} to {100 * high:.1f}</td><td class=bar>{interval_bar(one.accuracy, low, high)}</td>"
            f"<td>{100 * one.format:.1f} %</td><td>{one.mean_length:.1f}</td><td>{one.rows}</td>"
            f"<td>{one.responses}</td></tr>"
        )
    return (
        '<h2>Held-out evaluation</h2><p class="soft">Rows that training and the choice of settings never saw; the '
        "interval is a 95 % bootstrap over rows.</p>"
        '<div class="panel"><table><tr><th></th><th>accuracy</th><th>95 % interval</th><th class=bar></th>'
        f"<th>format</th><th>mean length</th><th>rows</th><th>responses</th></tr>{''.join(rows)}</table></div>"
    )


def _alarm_table(metrics: Metrics) -> str:
    """When which alarm rang, and how many updates were skipped or empty; nothing of a run without any of it."""
    rows = [
        f"<tr><td><b>{ring.name}</b></td><td>{WATCHED[ring.name].metric}</td><td>{_steps(ring, metrics)}</td>"
        f"<td>{'' if ring.worst is None else f'{ring.worst:.4g}'}</td></tr>"
        for ring in rings(metrics)
    ]
    skipped = sum(count for _, count in curve(metrics, "optimizer/skipped_updates"))
    empty = sum(count for _, count in curve(metrics, "optimizer/empty_updates"))
    if not rows and not skipped and not empty:
        return ""
    parts = ['<h2>Alarms</h2><p class="soft">Metrics that stayed beyond their limits of alarms.warn or alarms.stop.']
    if skipped:
        parts.append(f" {skipped:.0f} updates were skipped: something was NaN or infinite, and nothing was moved.")
    if empty:
        parts.append(f" {empty:.0f} updates had no response to train on and were left out.")
    parts.append("</p>")
    if rows:
        head = "<tr><th>alarm</th><th>metric</th><th>steps</th><th>farthest value</th></tr>"
        parts.append(f'<div class="panel"><table>{head}{"".join(rows)}</table></div>')
    return "".join(parts)


def _steps(ring: Ring, metrics: Metrics) -> str:
    if ring.stopped:
        return f"stopped the run after {ring.last}"
    return f"{ring.first} to {ring.last}" + (", still ringing" if ring.last == metrics[-1]["step"] else "")


def _charts(metrics: Metrics) -> str:
    validation = Series("validation accuracy", curve(metrics, VALIDATION_ACCURACY), 2, markers=True)
    charts = [
        line_chart(
            "Validation accuracy",
            [validation],
            note="On data.validation during training, sampled as evaluation.* says.",
        )
    ]
    for title, lines, note, low in CHARTS:
        series = [Series(name, curve(metrics, key), index) for index, (key, name) in enumerate(lines, start=1)]
        charts.append(line_chart(title, series, note=note, low=low))
    # The reward's picture comes first, the validation's beside it.
    charts[0], charts[1] = charts[1], charts[0]
    phases = sorted({key for row in metrics for key in row if key.startswith("time/") and key != "time/step"})
    totals = {key: sum(value for _, value in curve(metrics, key)) for key in phases}
    largest = sorted(phases, key=lambda key: -totals[key])[:6]
    seconds = [Series(key.removeprefix("time/"), curve(metrics, key), i) for i, key in enumerate(largest, start=1)]
    charts.append(stacked_chart("Seconds by phase", seconds, note="Wall-clock seconds of a step, stacked."))
    drawn = "".join(charts)
    return f'<h2>Training</h2><div class="charts">{drawn}</div>' if drawn else ""


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
