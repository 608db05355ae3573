"""Updates and whole steps without any response to train on: left out on every rank alike, and the run goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_apo.records import RolloutGroup
from megatron_apo.rollout.engine import SamplingSettings
from megatron_apo.rollout.record_files import read_step, write_step
from tests.distributed.launcher import Case, run_cases
from tests.distributed.layouts import record_rollouts, replay_config
from tests.distributed.test_layouts import MOVING, metrics_of
from tests.end_to_end.commands import answers

COMMAND = "tests.end_to_end.commands:command"
DROPPING = ["--objective.drop_zero_variance=true"]
RLOO = ["--objective.name=rloo", "--objective.stcr.enabled=false"]
CASES = {
    "one": (1, DROPPING),
    "pp2": (2, [*DROPPING, "--parallel.pipeline=2"]),
    "rloo_dp2": (2, RLOO),
}


def _aborted(group: RolloutGroup) -> RolloutGroup:
    return replace(group, rollouts=tuple(replace(rollout, finish_reason="abort") for rollout in group.rollouts))


def _all_wrong(group: RolloutGroup) -> RolloutGroup:
    return replace(group, rollouts=tuple(replace(rollout, text="") for rollout in group.rollouts))


def _one_right(group: RolloutGroup) -> RolloutGroup:
    right = replace(group.rollouts[0], text=group.prompt.demonstration)
    return replace(group, rollouts=(right, *_all_wrong(group).rollouts[1:]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path, digits_task: Path) -> Path:
    """Step 2 has aborted responses alone, step 3 one group with contrast for its two updates."""
    root = tmp_path_factory.mktemp("empty_updates")
    recorded = record_rollouts(tiny_policy, digits_task, root / "rollouts", steps=3, prompts=4, group=4)
    second, third = read_step(recorded, 2), read_step(recorded, 3)
    changed = {2: [_aborted(group) for group in second], 3: [_one_right(third[0]), *map(_all_wrong, third[1:])]}
    for step, groups in changed.items():
        write_step(recorded, step, groups, weight_version=0, sampling=SamplingSettings(4, 32, 1.0))
    config = replay_config(root, tiny_policy, digits_task, recorded, steps=3)
    words = ["train", "--config", str(config), "--data.max_prompt_tokens=512", "--sampling.max_tokens=64", MOVING]
    run_cases(
        [
            Case(COMMAND, world, str(root / name), {"words": [*words, f"--run.directory={root / name / 'run'}", *more]})
            for name, (world, more) in CASES.items()
        ]
    )
    return root


@pytest.mark.parametrize("name", CASES)
def test_the_run_goes_on_and_says_so_once(runs: Path, name: str) -> None:
    for rank, answer in enumerate(answers(runs / name)):
        assert answer["status"] == 0, answer["stderr"]
        said = [line for line in answer["stderr"].splitlines() if "none of the 16 responses can be trained on" in line]
        assert [line.split(":")[0] for line in said] == ([] if rank else ["step 2"])
    steps = metrics_of(runs / name)
    assert [step["optimizer/empty_updates"] for step in steps] == [0, 2, 0 if "rloo" in name else 1]
    assert [step["optimizer/skipped_updates"] for step in steps] == [0] * 3
    assert ["loss/total" in step for step in steps] == [True, False, True]
    assert steps[2]["optimizer/gradient_norm"] > 1e-3


def test_every_stage_of_a_pipeline_leaves_out_the_same(runs: Path) -> None:
    for ours, theirs in zip(metrics_of(runs / "pp2"), metrics_of(runs / "one"), strict=True):
        assert ours.keys() == theirs.keys()
        for metric in {"loss/total", "kl/raw", "policy/entropy", "optimizer/gradient_norm"} & theirs.keys():
            assert ours[metric] == pytest.approx(theirs[metric], rel=1e-4, abs=1e-5), metric
