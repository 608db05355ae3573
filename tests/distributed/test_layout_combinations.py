"""Context parallelism, interleaved and uneven pipelines, and their combinations equal one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from examples.digits.make_policy import PolicySize, make_policy
from megatron_apo.rollout.record_files import read_step
from tests.distributed.launcher import Case, run_cases
from tests.distributed.layouts import randomised_checkpoint, record_rollouts, replay_config
from tests.distributed.test_checkpoint_layouts import LOAD, SAVE
from tests.distributed.test_layouts import MOVING, REPLAY, STILL, metrics_of
from tests.gradients import assert_same_gradients

CONVERT = "tests.distributed.conversions:command"
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "cp2": (2, ["--parallel.context=2"]),
    "pp2_uneven": (2, ["--parallel.pipeline=2", "--parallel.first_stage_layers=1"]),
    "pp2_vpp3": (2, ["--parallel.pipeline=2", "--parallel.virtual_pipeline=3"]),
    "pp2_vpp2_uneven": (
        2,
        ["--parallel.pipeline=2", "--parallel.virtual_pipeline=2", "--parallel.first_stage_layers=4"],
    ),
    "tp2_cp2_sequence": (4, ["--parallel.tensor=2", "--parallel.context=2", "--parallel.sequence=true"]),
    "cp2_dp2": (4, ["--parallel.context=2"]),
    "pp2_vpp3_cp2": (4, ["--parallel.pipeline=2", "--parallel.virtual_pipeline=3", "--parallel.context=2"]),
}

# With the sharded optimizer no rank has a whole gradient to compare: its updates are.
MOVED: dict[str, tuple[int, list[str]]] = {
    "pp2_vpp2_uneven": LAYOUTS["pp2_vpp2_uneven"],
    "cp2_sharded": (2, ["--parallel.context=2", "--parallel.distributed_optimizer=true"]),
}
# (written by, read by); the sharded optimizer's form is read by jobs that shard it.
CHECKPOINTS = [("pp2_vpp3", "tp2_cp2_sequence"), ("cp2", "pp2_vpp2_uneven"), ("cp2_sharded", "cp2_sharded")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, digits_task: Path) -> Path:
    """Two updates of every layout from the same weights, two steps with moving ones; checkpoints written and read."""
    root = tmp_path_factory.mktemp("combinations")
    size = PolicySize(hidden=64, layers=6, heads=2, feed_forward=96, vision_hidden=64, vision_heads=2)
    policy = randomised_checkpoint(make_policy(root / "untrained", seed=0, size=size), root / "policy", seed=5)
    recorded = record_rollouts(policy, digits_task, root / "rollouts", steps=2, prompts=6, group=4)
    config = replay_config(root, policy, digits_task, recorded, steps=2)
    cases = []
    kinds = {"still": (LAYOUTS, [STILL, "--run.steps=1"]), "moving": (MOVED, [MOVING])}
    for kind, (layouts, settings_of_kind) in kinds.items():
        for name, (world, layout) in {"one": (1, []), **layouts}.items():
            overrides = {"config": str(config), "overrides": [*layout, *settings_of_kind]}
            cases.append(Case(REPLAY, world, str(root / kind / name), overrides))
    known = {**LAYOUTS, **MOVED}
    for source, target in CHECKPOINTS:
        saved = root / "checkpoints" / source
        writing = {"policy": str(policy), "overrides": known[source][1]}
        cases.append(Case(SAVE, known[source][0], str(saved), writing))
        reading = {"policy": str(policy), "overrides": known[target][1], "source": str(saved)}
        cases.append(Case(LOAD, known[target][0], str(root / "checkpoints" / f"{source}-{target}"), reading))
        converting = [
            "megatron-to-hf",
            str(saved / "checkpoints" / "step_000002"),
            str(root / "converted" / source),
            "--hf-files",
            str(policy),
        ]
        cases.append(Case(CONVERT, 1, str(root / "converting" / source), {"arguments": converting}))
    run_cases(cases)
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_metrics_equal_one_process(runs: Path, layout: str) -> None:
    expected, found = metrics_of(runs / "still" / "one"), metrics_of(runs / "still" / layout)
    assert len(found) == len(expected) == 1
    assert found[0].keys() == expected[0].keys()
    for name, value in expected[0].items():
        assert found[0][name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_each_update_equal_one_process(runs: Path, layout: str) -> None:
    for update in (1, 2):
        name = f"gradients_{update}.safetensors"
        assert_same_gradients(runs / "still" / layout / name, runs / "still" / "one" / name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rank_names_the_token_that_engine_and_trainer_differ_most_about(runs: Path, layout: str) -> None:
    rollout = read_step(runs / "rollouts", 1)[3].rollouts[1]
    token = len(rollout.token_ids) - 1
    expected = [f"prompt {rollout.prompt_id!r}, response token {token} (id {rollout.token_ids[token]})"]
    found = [path.read_text().splitlines() for path in sorted((runs / "still" / layout).glob("worst_*.txt"))]
    assert found == [expected] * LAYOUTS[layout][0]


@pytest.mark.parametrize("moment", ["at_checkpoint", "after"])
@pytest.mark.parametrize(("source", "target"), CHECKPOINTS)
def test_a_checkpoint_continues_in_another_layout(runs: Path, source: str, target: str, moment: str) -> None:
    places = (runs / "checkpoints" / name / f"{moment}.safetensors" for name in (source, f"{source}-{target}"))
    saved, found = (load_file(place) for place in places)
    assert set(found) == set(saved)
    for name, tensor in saved.items():
        torch.testing.assert_close(found[name], tensor, rtol=0.0, atol=1e-6, msg=name)


@pytest.mark.parametrize("source", [source for source, _ in CHECKPOINTS])
def test_a_checkpoint_of_training_converts_bit_for_bit(runs: Path, source: str) -> None:
    """Interleaved, shared sequences, sharded optimizer: to Hugging Face's form without the layout that wrote it."""
    saved = load_file(runs / "checkpoints" / source / "at_checkpoint.safetensors")
    found = load_file(runs / "converted" / source / "model.safetensors")
    assert found.keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("layout", MOVED)
def test_moving_weights_stay_together(runs: Path, layout: str) -> None:
    expected, found = metrics_of(runs / "moving" / "one"), metrics_of(runs / "moving" / layout)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["loss/total"] == pytest.approx(theirs["loss/total"], abs=1e-4)
    assert abs(expected[-1]["kl/raw"]) > 1e-3, "the updates must have moved the policy, or this test shows nothing"
    reference = load_file(runs / "moving" / "one" / "run" / "export" / "model.safetensors")
    exported = load_file(runs / "moving" / layout / "run" / "export" / "model.safetensors")
    assert exported.keys() == reference.keys()
    for name, tensor in reference.items():
        # Adam moves a weight whose gradient is rounding noise by up to lr an update, whatever the noise's size.
        assert (exported[name] - tensor).norm() <= 1e-2 * tensor.norm(), name
