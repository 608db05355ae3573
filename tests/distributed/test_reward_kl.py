"""A KL in the reward (RLOO): the same penalties, losses and metrics in every layout as on one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launcher import Case, run_cases
from tests.distributed.layouts import randomised_checkpoint, record_rollouts, replay_config
from tests.distributed.test_layouts import MOVING, REPLAY, metrics_of

LAYOUTS = {
    "tp2_sequence": (2, ["--parallel.tensor=2", "--parallel.sequence=true"]),
    "pp2": (2, ["--parallel.pipeline=2"]),
    "cp2": (2, ["--parallel.context=2"]),
    "dp2": (2, []),
}
RLOO = ["--objective.name=rloo", "--objective.stcr.enabled=false", MOVING]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path, digits_task: Path) -> Path:
    """Two steps of two updates each; the second's penalties are those of a policy that has moved."""
    root = tmp_path_factory.mktemp("reward_kl")
    policy = randomised_checkpoint(tiny_policy, root / "policy", seed=3)
    recorded = record_rollouts(policy, digits_task, root / "rollouts", steps=2, prompts=6, group=4)
    config = replay_config(root, policy, digits_task, recorded, steps=2)
    run_cases(
        [
            Case(REPLAY, world, str(root / name), {"config": str(config), "overrides": [*layout, *RLOO]})
            for name, (world, layout) in {"one": (1, []), **LAYOUTS}.items()
        ]
    )
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_penalties_and_losses_equal_one_process(runs: Path, layout: str) -> None:
    expected, found = metrics_of(runs / "one"), metrics_of(runs / layout)
    assert len(expected) == len(found) == 2
    assert expected[0]["kl/penalty"] == pytest.approx(0.0, abs=1e-6)  # the reference is the policy still
    assert abs(expected[1]["kl/penalty"]) > 1e-3
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True), start=1):
        assert ours.keys() == theirs.keys()
        for name in ("kl/raw", "kl/penalty", "loss/total", "policy/entropy", "optimizer/gradient_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), f"step {step}: {name}"
