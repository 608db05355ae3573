"""A NaN or an infinity on one rank moves nothing on any: weights, Adam's state and schedule, bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_apo.rollout.engine import SamplingSettings
from megatron_apo.rollout.record_files import read_step, write_step
from tests.distributed.finite import LIMIT, PLACES
from tests.distributed.launcher import Case, run_cases
from tests.distributed.layouts import record_rollouts, replay_config
from tests.end_to_end.commands import answers
from tests.unit.model_providers.reference import make_checkpoint

ONE, TWO = [[[0, 2], [4, 5]]], [[[0], [5]], [[2], [4]]]
BF16, SHARDED = "--model.dtype=bfloat16", "--parallel.distributed_optimizer=true"
TP, PP, CP = "--parallel.tensor=2", "--parallel.pipeline=2", "--parallel.context=2"
LAYOUTS: dict[str, tuple[int, list[str], list[list[list[int]]]]] = {
    "one": (1, [], ONE),
    "tp2_bf16": (2, [TP, "--parallel.sequence=true", BF16], ONE),
    "pp2_frozen_language": (2, [PP, "--model.freeze_language=true"], ONE),  # the last stage has no optimizer
    "cp2": (2, [CP], ONE),
    "dp2_bf16_sharded": (2, [SHARDED, BF16], TWO),
    "tp2_pp2": (4, [TP, PP], ONE),
    "dp2": (2, [], TWO),
}


SLOW = ("one", "cp2", "dp2", "tp2_pp2")
EACH = [pytest.param(layout, marks=[pytest.mark.slow] if layout in SLOW else []) for layout in LAYOUTS]
STOPPING = ["--run.steps=4", "--alarms.steps=3", "--run.save_every=2", "--run.keep_checkpoints=1"]
STOPPING += ["--training.max_skipped_in_a_row=9"]
Found = list[dict[str, Any]]


def run_layouts(root: Path, layouts: Iterable[str]) -> dict[str, Found]:
    """What each rank of each layout found."""
    checkpoint = str(make_checkpoint(root / "policy", tied=True))
    cases = []
    for name in layouts:
        world, overrides, plan = LAYOUTS[name]
        arguments = {"checkpoint": checkpoint, "overrides": overrides, "plan": plan}
        cases.append(Case("tests.distributed.finite:skip", world, str(root / name), arguments))
    run_cases(cases)
    return {
        Path(case.directory).name: [
            json.loads((Path(case.directory) / f"results_{rank}.json").read_text()) for rank in range(case.world)
        ]
        for case in cases
    }


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    return run_layouts(tmp_path_factory.mktemp("finite"), [name for name in LAYOUTS if name not in SLOW])


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    return run_layouts(tmp_path_factory.mktemp("finite_slow"), SLOW)


@pytest.fixture
def ranks(layout: str, request: pytest.FixtureRequest) -> Found:
    """What each rank of ``layout`` found."""
    found: Found = request.getfixturevalue("slow" if layout in SLOW else "quick")[layout]
    return found


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("layout", EACH)
def test_nothing_moves_on_any_rank_and_the_update_is_counted(ranks: Found, layout: str, place: str) -> None:
    updates = PLACES[place][1]
    for rank, found in enumerate(ranks):
        assert found[place] == {
            "moved": [],
            "metrics": [{"optimizer/skipped_updates": 1.0}] * updates,
            "in_a_row": updates,
            "gates": 1,
        }, rank


@pytest.mark.parametrize("layout", EACH)
def test_a_healthy_update_moves_every_rank_and_ends_the_row(ranks: Found, layout: str) -> None:
    # A rank without anything to train still follows the learning rate.
    frozen = "freeze_language" in "".join(LAYOUTS[layout][1])
    for rank, found in enumerate(ranks):
        healthy = found["healthy"]
        assert healthy["in_a_row"] == 0 and healthy["metrics"][0]["optimizer/skipped_updates"] == 0
        kinds = {name.split()[0] for name in healthy["moved"]}
        assert kinds == ({"scheduler", "optimizer"} if frozen and rank == 1 else {"scheduler", "weight", "optimizer"})


@pytest.mark.parametrize("layout", EACH)
def test_too_many_in_a_row_stop_every_rank_with_the_reason(ranks: Found, layout: str) -> None:
    for found in ranks:
        message = found["stopped"]["message"]
        assert f"the loss (first on rank {LAYOUTS[layout][0] - 1})" in message
        assert f"training.max_skipped_in_a_row={LIMIT}" in message
        assert found["stopped"]["moved"] == []


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path, digits_task: Path) -> Path:
    """Runs on rollouts of which steps 2 to 4 hold a NaN among the engine's log-probabilities."""
    root = tmp_path_factory.mktemp("replayed")
    recorded = record_rollouts(tiny_policy, digits_task, root / "rollouts", steps=4, prompts=4, group=2)
    for step in (2, 3, 4):
        first, *others = read_step(recorded, step)
        spoilt = replace(first.rollouts[0], logprobs=(math.nan, *first.rollouts[0].logprobs[1:]))
        groups = [replace(first, rollouts=(spoilt, *first.rollouts[1:])), *others]
        write_step(recorded, step, groups, weight_version=0, sampling=SamplingSettings(2, 32, 1.0))
    config = replay_config(root, tiny_policy, digits_task, recorded, steps=3)
    words = ["train", "--config", str(config), "--training.updates_per_rollout=1"]
    words += ["--data.max_prompt_tokens=512", "--sampling.max_tokens=64"]
    first, alarmed = f"--run.directory={root / 'run'}", f"--run.directory={root / 'alarmed_run'}"
    command = "tests.end_to_end.commands:command"
    run_cases(
        [
            Case(command, 1, str(root / "first"), {"words": [*words, first]}),
            Case(command, 1, str(root / "resumed"), {"words": [*words, first, "--run.steps=4", "--resume"]}),
            Case(
                command,
                2,
                str(root / "alarmed"),
                {"words": [*words, *STOPPING, alarmed, "--alarms.stop.effective_sample_size=1"]},
            ),
            Case("tests.distributed.finite:copy", 1, str(root / "stopped"), {"source": str(root / "alarmed_run")}),
            Case(command, 2, str(root / "relieved"), {"words": [*words, *STOPPING, alarmed, "--resume"]}),
        ]
    )
    return root


def test_the_row_of_skipped_updates_goes_on_after_a_resume(replayed: Path) -> None:
    """Two are skipped before the checkpoint, the third after it stops the run."""
    (first,), (resumed,) = answers(replayed / "first"), answers(replayed / "resumed")
    assert first["status"] == 0, first["stderr"]
    steps = [json.loads(line) for line in (replayed / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [step["optimizer/skipped_updates"] for step in steps] == [0, 1, 1]
    assert ["loss/total" in step for step in steps] == [True, False, False]
    said = "update skipped (2 in a row, the run stops at 3): NaN or infinity in the rollout engine's log-probabilities"
    assert said in first["stderr"]
    assert resumed["status"] == 3
    assert "3 update(s) skipped in a row" in resumed["stderr"] and "response token 0" in resumed["stderr"]


def test_an_alarm_that_stops_reaches_every_rank_once_all_is_saved(replayed: Path) -> None:
    """The third step is written and saved, in metrics and report too; what was there before it stays."""
    for rank, answer in enumerate(answers(replayed / "alarmed")):
        assert answer["status"] == 3, answer["stderr"]
        assert ("rank 0 failed in phase 'alarms': AlarmError: " in answer["stderr"]) == (rank == 1)
        assert "below alarms.stop.effective_sample_size=1 for 3 steps in a row" in answer["stderr"]
        assert "checkpoints/step_000003: go on with --resume" in answer["stderr"]
    run = replayed / "stopped" / "run"
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [step.get("alarm/stop_effective_sample_size", 0) for step in steps] == [0, 0, 1]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_000002", "step_000003"]
    assert "stopped the run after 3" in (run / "report.html").read_text()
    assert (run / "rollouts" / "step_000003.jsonl").exists() and not (run / "export").exists()


def test_a_run_that_an_alarm_stopped_goes_on_with_other_limits(replayed: Path) -> None:
    """From the step after the one that stopped it, as if nothing had been."""
    for answer in answers(replayed / "relieved"):
        assert answer["status"] == 0, answer["stderr"]
    run, stopped = replayed / "alarmed_run", replayed / "stopped" / "run"
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert (run / "metrics.jsonl").read_text().startswith((stopped / "metrics.jsonl").read_text())
    assert "alarm/stop_effective_sample_size" not in steps[3]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000004"]
    assert (run / "export").is_dir()
