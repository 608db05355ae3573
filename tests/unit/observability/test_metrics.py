"""Means of a step and seconds of its phases."""

from __future__ import annotations

import time

import pytest

from megatron_apo.observability.metrics import StepMetrics, rollout_metrics
from megatron_apo.observability.timers import PhaseTimer
from megatron_apo.records import Outcome, Prompt, Rollout, RolloutGroup, Score


def test_weighted_means_and_single_values() -> None:
    metrics = StepMetrics()
    metrics.add("kl/raw", 1.0, weight=1)
    metrics.add("kl/raw", 4.0, weight=3)
    metrics.add("rollout/response_length_wrong", 7.0, weight=0)
    metrics.update({"sync/version": 3})
    assert metrics.collect() == {"kl/raw": 3.25, "sync/version": 3.0}
    assert metrics.collect() == {}
    with pytest.raises(ValueError, match="kl/raw"):
        metrics.add("kl/raw", 1.0, weight=-1)


def group(*responses: tuple[Outcome, int, float]) -> RolloutGroup:
    """Responses as (outcome, tokens, total reward)."""
    rollouts = tuple(
        Rollout("p", i, (1,) * n, (0.0,) * n, "", "length" if n > 9 else "stop", 0)
        for i, (_, n, _) in enumerate(responses)
    )
    scores = tuple(Score(total, {"accuracy": float(o == "correct"), "format": 1.0}, o) for o, _, total in responses)
    return RolloutGroup(Prompt("p", (1,), (1,), (), "?", "1"), rollouts, scores)


def test_rollout_metrics_leave_out_what_was_not_judged() -> None:
    groups = [
        group(("correct", 4, 1.5), ("wrong", 10, 0.5), ("grader_error", 100, 0.5)),
        group(("no_answer", 6, 0.5), ("correct", 4, 1.5)),
    ]
    assert rollout_metrics(groups) == pytest.approx(
        {
            "reward/accuracy": 0.5,
            "reward/format": 1.0,
            "reward/total": 1.0,
            "reward/grader_error": 0.2,
            "reward/no_answer": 0.2,
            "rollout/response_length": 6.0,
            "rollout/response_length_wrong": 8.0,
            "rollout/truncated": 0.25,
            "apo/difficulty": 0.5,
        }
    )
    assert "rollout/response_length_wrong" not in rollout_metrics([group(("correct", 4, 1.5))])


def test_phases_add_up_and_start_anew() -> None:
    timer = PhaseTimer()
    for _ in range(2):
        with timer.phase("rollout"):
            time.sleep(0.02)
    with pytest.raises(KeyError), timer.phase("update"):
        raise KeyError
    seconds = timer.collect()
    assert seconds["time/rollout"] >= 0.04
    assert 0 <= seconds["time/update"] < seconds["time/rollout"] <= seconds["time/step"]
    assert set(timer.collect()) == {"time/step"}
