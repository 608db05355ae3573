"""Every layout equals one process: loss, metrics and every gradient tensor, on the same recorded rollouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from megatron_apo.rollout.record_files import read_step
from tests.distributed.launcher import Case, run_cases
from tests.distributed.layouts import randomised_checkpoint, record_rollouts, replay_config
from tests.gradients import assert_same_gradients

LAYOUTS = {
    "tp2": (2, ["--parallel.tensor=2"]),
    "tp2_sequence": (2, ["--parallel.tensor=2", "--parallel.sequence=true"]),
    "pp2": (2, ["--parallel.pipeline=2"]),
    "dp2": (2, []),
    # More tensor ranks than key-value heads (2), and a vision FFN (512) padded to 576.
    "tp4_sequence_padded": (4, ["--parallel.tensor=4", "--parallel.sequence=true", "--model.vision_ffn_multiple=96"]),
    "tp2_pp2": (4, ["--parallel.tensor=2", "--parallel.pipeline=2"]),
}
STILL = "--optimizer.learning_rate=1e-12"  # every step from the same weights: gradients can be compared step by step
MOVING = "--optimizer.learning_rate=1e-3"
REPLAY = "tests.distributed.layouts:replay"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path, digits_task: Path) -> Path:
    """Runs of every layout, five steps of two updates each: with still weights and with moving ones."""
    root = tmp_path_factory.mktemp("layouts")
    policy = randomised_checkpoint(tiny_policy, root / "policy", seed=3)
    recorded = record_rollouts(policy, digits_task, root / "rollouts", steps=5, prompts=6, group=4)
    config = replay_config(root, policy, digits_task, recorded, steps=5)
    arguments = {"config": str(config)}
    cases = []
    for name, (world, layout) in {"one": (1, []), **LAYOUTS}.items():
        for kind, rate in (("still", STILL), ("moving", MOVING)):
            place = root / kind / name
            cases.append(Case(REPLAY, world, str(place), {**arguments, "overrides": [*layout, rate]}))
    sharded = ["--parallel.distributed_optimizer=true", MOVING]
    cases.append(Case(REPLAY, 2, str(root / "moving" / "dp2_sharded"), {**arguments, "overrides": sharded}))
    run_cases(cases)
    return root


def metrics_of(run: Path) -> list[dict[str, float]]:
    lines = (run / "run" / "metrics.jsonl").read_text().splitlines()
    timed = ("time/", "throughput/", "sync/seconds")
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(timed)} for line in lines]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_metrics_of_each_step_equal_one_process(runs: Path, layout: str) -> None:
    expected, found = metrics_of(runs / "still" / "one"), metrics_of(runs / "still" / layout)
    assert len(found) == len(expected) == 5
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True), start=1):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-5, abs=1e-5), f"step {step}: {name}"


@pytest.mark.parametrize("layout", ["one", *LAYOUTS])
def test_every_rank_names_the_token_that_engine_and_trainer_differ_most_about(runs: Path, layout: str) -> None:
    expected = []
    for step in range(1, 6):
        rollout = read_step(runs / "rollouts", step)[3].rollouts[1]
        token = len(rollout.token_ids) - 1
        expected.append(f"prompt {rollout.prompt_id!r}, response token {token} (id {rollout.token_ids[token]})")
    found = [path.read_text().splitlines() for path in sorted((runs / "still" / layout).glob("worst_*.txt"))]
    assert found == [expected] * (1 if layout == "one" else LAYOUTS[layout][0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_each_update_equal_one_process(runs: Path, layout: str) -> None:
    for update in range(1, 11):
        name = f"gradients_{update}.safetensors"
        assert_same_gradients(runs / "still" / layout / name, runs / "still" / "one" / name)


@pytest.mark.parametrize("layout", [*LAYOUTS, "dp2_sharded"])
def test_five_chained_steps_stay_together(runs: Path, layout: str) -> None:
    expected, found = metrics_of(runs / "moving" / "one"), metrics_of(runs / "moving" / layout)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["loss/total"] == pytest.approx(theirs["loss/total"], abs=1e-4)
    moved = abs(expected[-1]["kl/raw"])
    assert moved > 1e-3, "the updates must have moved the policy, or this test shows nothing"


def test_gradients_reach_every_weight(runs: Path) -> None:
    gradients = load_file(runs / "still" / "one" / "gradients_1.safetensors")
    assert all(bool(tensor.abs().max() > 0) for tensor in gradients.values())


def test_exported_models_agree(runs: Path) -> None:
    reference = load_file(runs / "moving" / "one" / "run" / "export" / "model.safetensors")
    for layout in LAYOUTS:
        found = load_file(runs / "moving" / layout / "run" / "export" / "model.safetensors")
        assert found.keys() == reference.keys()
        for name, tensor in reference.items():
            # Adam moves a weight whose gradient is rounding noise by up to lr an update, whatever the noise's size.
            assert (found[name] - tensor).norm() <= 1e-2 * tensor.norm(), f"{layout}: {name}"
