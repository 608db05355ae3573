"""Alarms ring on a collapse, say so once, and are silent on a healthy run."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from megatron_apo.config import AlarmLimits, AlarmsConfig, Config, WarningLimits
from megatron_apo.config_loading import load_config
from megatron_apo.observability.alarms import WATCHED, Alarms, Event, Ring, build_alarms, rings, stop_metrics
from megatron_apo.observability.progress import watched_line
from megatron_apo.observability.report import write_report
from megatron_apo.observability.writers import read_metrics

ROOT = Path(__file__).resolve().parents[3]
# 450 steps of the digits task (examples/digits, seed 1); its KL jumps to 2.27 in one single step.
HEALTHY = read_metrics(ROOT / "tests" / "fixtures" / "healthy_run")
# With four updates a rollout, in bfloat16, its mismatch corrected; and one that blows up (README.md beside them).
BFLOAT16 = read_metrics(ROOT / "tests" / "fixtures" / "recorded" / "healthy")
BLOW_UP = read_metrics(ROOT / "tests" / "fixtures" / "recorded" / "blow_up")
# name -> (value of a healthy step, of a collapsed one)
COLLAPSES = {
    "entropy": (0.2, 0.001),
    "zero_variance_groups": (0.5, 1.0),
    "clip_fraction": (0.02, 0.6),
    "truncated": (0.01, 0.9),
    "kl": (0.05, 30.0),
    "kl_old": (0.0003, 3.0),
    "logprob_difference": (0.002, 0.3),
    "logprob_difference_max": (0.3, 9.0),
    "weight_mean": (1.0008, 0.3),
    "effective_sample_size": (0.999, 0.1),
    "corrected": (0.001, 0.7),
}


# Every default, and a limit for the one metric that has none.
LIMITS = asdict(WarningLimits()) | {"logprob_difference_max": 1.0}
WARN = WarningLimits(**LIMITS)


def run(alarms: Alarms, rows: list[dict[str, Any]]) -> tuple[Alarms, list[tuple[int, Event]], list[dict[str, Any]]]:
    """The alarms after all rows, what was said at which step, and the rows with the alarms' metrics."""
    said, written = [], []
    for row in rows:
        alarms, events = alarms.after(row)
        said += [(row["step"], event) for event in events]
        written.append(row | alarms.metrics() | stop_metrics(events))
    return alarms, said, written


def rows_of(name: str, values: list[float | None]) -> list[dict[str, Any]]:
    metric = WATCHED[name].metric
    return [{"step": step} | ({} if value is None else {metric: value}) for step, value in enumerate(values, start=1)]


def test_every_alarm_has_a_limit_and_every_limit_an_alarm() -> None:
    assert set(WATCHED) == set(asdict(AlarmLimits())) == set(asdict(WarningLimits())) == set(COLLAPSES)
    page = (ROOT / "docs" / "metrics.md").read_text()
    for name, watched in WATCHED.items():
        assert f"`alarms.warn.{name}`" in page and f"`{watched.metric}`" in page


def test_a_healthy_run_is_silent() -> None:
    assert len(HEALTHY) == 450 and max(row["kl/raw"] for row in HEALTHY) > 2
    alarms = build_alarms(AlarmsConfig())
    assert {limit.name for limit in alarms.limits} == set(WATCHED) - {"logprob_difference_max"}
    _, said, written = run(alarms, HEALTHY)
    assert said == [] and rings(written) == []
    assert {row["alarm/active"] for row in written} == {0.0}


def test_a_healthy_run_in_which_everything_watched_moves_is_silent() -> None:
    """Silent though each metric is there and moves: a limit put in the midst of its values does ring."""
    _, said, written = run(build_alarms(AlarmsConfig(warn=WARN)), BFLOAT16)
    assert len(BFLOAT16) == 40 and said == [] and {row["alarm/active"] for row in written} == {0.0}
    for name, watched in WATCHED.items():
        values = [row[watched.metric] for row in BFLOAT16]
        assert len(set(values)) >= 4, name
        middle = sorted(map(watched.outward, values))[len(values) // 2 - 1]
        limit = WarningLimits(**(dict.fromkeys(WATCHED, 0.0) | {name: abs(middle) or 1e-12}))
        assert {event.name for _, event in run(build_alarms(AlarmsConfig(steps=1, warn=limit)), BFLOAT16)[1]} == {name}


def test_a_run_that_blew_up_rings() -> None:
    """What the default limits say of it, and when; a run may be stopped by any of them."""
    _, said, _ = run(build_alarms(AlarmsConfig()), BLOW_UP)
    found = {(step, event.name) for step, event in said if event.kind == "start"}
    assert found == {(3, "kl"), (3, "kl_old"), (6, "zero_variance_groups"), (6, "truncated")}
    stop = AlarmsConfig(steps=2, stop=AlarmLimits(kl_old=1.0))
    _, said, _ = run(build_alarms(stop), BLOW_UP)
    assert [step for step, event in said if event.kind == "stop"] == [2]


@pytest.mark.parametrize("name", COLLAPSES)
def test_a_collapse_rings_once_and_its_end_is_said_once(name: str) -> None:
    healthy, collapsed = COLLAPSES[name]
    rows = rows_of(name, [healthy] * 4 + [collapsed] * 6 + [healthy] * 5)
    _, said, written = run(build_alarms(AlarmsConfig(steps=3, warn=WARN)), rows)
    assert [(step, event.kind, event.name) for step, event in said] == [(7, "start", name), (13, "end", name)]
    start = said[0][1].message
    assert WATCHED[name].metric in start and f"{collapsed:.4g}" in start and "3 steps in a row" in start
    assert f"alarms.warn.{name}={LIMITS[name]:g}" in start and WATCHED[name].advice in start
    assert [row[f"alarm/{name}"] for row in written] == [0.0] * 6 + [1.0] * 6 + [0.0] * 3
    assert [row["alarm/active"] for row in written] == [row[f"alarm/{name}"] for row in written]
    assert rings(written) == [Ring(name, 7, 12, collapsed)]


@pytest.mark.parametrize("name", COLLAPSES)
def test_a_limit_may_stop_the_run(name: str) -> None:
    healthy, collapsed = COLLAPSES[name]
    stop = replace(AlarmLimits(), **{name: LIMITS[name]})
    config = AlarmsConfig(steps=2, warn=WarningLimits(**dict.fromkeys(WATCHED, 0.0)), stop=stop)
    _, said, written = run(build_alarms(config), rows_of(name, [collapsed, healthy, collapsed, collapsed]))
    assert [(step, event.kind) for step, event in said] == [(4, "stop")]
    assert f"alarms.stop.{name}=" in said[0][1].message
    assert [{key for key in row if key.startswith("alarm/")} for row in written] == [set()] * 3 + [
        {f"alarm/stop_{name}"}
    ]
    assert rings(written) == [Ring(name, 4, 4, collapsed, stopped=True)]
    assert "ALARM" not in watched_line(written[3])


def test_a_mean_weight_rings_on_either_side_of_one() -> None:
    alarms = build_alarms(AlarmsConfig(steps=1, warn=WarningLimits(weight_mean=0.25)))
    _, said, written = run(alarms, rows_of("weight_mean", [1.25, 0.75, 1.3, 1.0, 0.7, 0.5, 1.0]))
    assert [(step, event.kind) for step, event in said] == [(3, "start"), (4, "end"), (5, "start"), (7, "end")]
    assert (
        "mismatch/weight_mean is 1.3, farther from 1 than alarms.warn.weight_mean=0.25 for 1 step" in said[0][1].message
    )
    assert rings(written) == [Ring("weight_mean", 3, 3, 1.3), Ring("weight_mean", 5, 6, 0.5)]


def test_a_step_without_the_number_has_no_say() -> None:
    """Neither a skipped update (absent) nor a NaN (null in the file) breaks a row or belongs to one."""
    rows = rows_of("entropy", [0.001, None, 0.001, math.nan, 0.001])
    _, said, _ = run(build_alarms(AlarmsConfig(steps=3)), rows)
    assert [(step, event.kind) for step, event in said] == [(5, "start")]


def test_on_the_limit_is_not_beyond_it() -> None:
    warn = WarningLimits(entropy=0.25, kl=0.5)
    rows = [{"step": step, "policy/entropy": 0.25, "kl/raw": 0.5} for step in range(1, 5)]
    assert run(build_alarms(AlarmsConfig(steps=1, warn=warn)), rows)[1] == []


def test_a_resumed_run_takes_its_alarms_up_where_they_were() -> None:
    rows = rows_of("kl", [0.1, 5.0, 5.0, 5.0, 5.0, 0.1, 0.1, 0.1, 0.1])
    whole, said, _ = run(build_alarms(AlarmsConfig()), rows)
    for cut in range(1, 9):
        lines = [json.loads(json.dumps(row)) for row in rows[:cut]]
        resumed, later, _ = run(build_alarms(AlarmsConfig(), lines), rows[cut:])
        assert resumed == whole
        assert later == [pair for pair in said if pair[0] > cut]


def test_settings_are_checked_and_may_change_alone() -> None:
    assert load_config(None, ["--alarms.stop.kl=20"]).alarms.stop == AlarmLimits(kl=20.0)
    assert load_config(None, ["--alarms.warn.entropy=0"]).alarms.warn == WarningLimits(entropy=0.0)
    assert Config().alarms.stop == AlarmLimits(), "by default nothing stops a run"
    with pytest.raises(ValueError, match=r"alarms.warn.truncated=30.0: must lie between 0 \(none\) and 1"):
        load_config(None, ["--alarms.warn.truncated=30"])
    with pytest.raises(ValueError, match="alarms.stop.kl=-1.0: must be at least 0"):
        load_config(None, ["--alarms.stop.kl=-1"])
    with pytest.raises(ValueError, match="alarms.steps=0"):
        load_config(None, ["--alarms.steps=0"])


def test_progress_and_report_show_what_rings(tmp_path: Path) -> None:
    rows = rows_of("truncated", [0.1, 0.9, 0.95, 0.9, 0.1]) + [{"step": 6, "optimizer/skipped_updates": 2.0}]
    _, _, written = run(build_alarms(AlarmsConfig(steps=1)), rows)
    assert watched_line(written[1]).endswith("ALARM truncated") and "ALARM" not in watched_line(written[0])
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    page = write_report(tmp_path).read_text()
    assert "<td><b>truncated</b></td><td>rollout/truncated</td><td>2 to 4</td><td>0.95</td>" in page
    assert "2 updates were skipped" in page
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written[:4]))
    assert "<td>2 to 4, still ringing</td>" in write_report(tmp_path).read_text()
    stopped = [*written[:3], written[3] | {"alarm/stop_truncated": 1.0, "optimizer/empty_updates": 3.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in stopped))
    page = write_report(tmp_path).read_text()
    assert "<td>stopped the run after 4</td><td>0.9</td>" in page and "3 updates had no response" in page
    (tmp_path / "metrics.jsonl").write_text(json.dumps(written[0]) + "\n")
    assert "<h2>Alarms</h2>" not in write_report(tmp_path).read_text()


def test_a_stop_limit_that_was_lowered_before_a_resume_stops_at_the_next_step() -> None:
    """Ten steps beyond it are behind: one more is enough; one within it and the count begins anew."""
    config = AlarmsConfig(steps=3, stop=AlarmLimits(kl=0.5))
    history = rows_of("kl", [0.8] * 10)
    _, events = build_alarms(config, history).after({"kl/raw": 0.8})
    assert [event.kind for event in events] == ["stop"]
    alarms, events = build_alarms(config, history).after({"kl/raw": 0.4})
    assert not events
    said = []
    for _ in range(3):
        alarms, events = alarms.after({"kl/raw": 0.8})
        said.append([event.kind for event in events])
    assert said == [[], [], ["stop"]]
