"""Qwen2-VL on several ranks, more of them than key-value heads: gradients and export equal one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from examples.digits.make_policy import make_policy
from tests.distributed.launcher import Case, run_cases
from tests.distributed.layouts import randomised_checkpoint, record_rollouts
from tests.gradients import assert_same_gradients

LAYOUTS = {
    "one": (1, []),
    "tp4_sequence_padded": (4, ["--parallel.tensor=4", "--parallel.sequence=true", "--model.vision_ffn_multiple=96"]),
    "tp2_pp2": (4, ["--parallel.tensor=2", "--parallel.pipeline=2"]),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, digits_task: Path) -> Path:
    """One step of each layout, from the same recorded rollouts."""
    root = tmp_path_factory.mktemp("qwen2_vl")
    untrained = make_policy(root / "untrained", seed=0, family="qwen2_vl")
    policy = randomised_checkpoint(untrained, root / "policy", seed=3)
    recorded = record_rollouts(policy, digits_task, root / "rollouts", steps=1, prompts=6, group=4)
    settings = {
        "run": {"steps": 1, "save_every": 0},
        "model": {"path": str(policy)},
        "data": {"train": str(digits_task / "train.jsonl"), "pixel_workers": 0},
        "rollout": {"replay": str(recorded), "prompts_per_step": 6},
        "sampling": {"group_size": 4, "temperature": 0.9},
        "objective": {"name": "apo", "kl": {"coefficient": 0.05}},
        "optimizer": {"learning_rate": 1e-12, "schedule": "constant"},
        "training": {"updates_per_rollout": 2, "tokens_per_microbatch": 300},
        "logging": {"progress": False, "tensorboard": False},
    }
    (root / "config.yaml").write_text(yaml.safe_dump(settings))
    run_cases(
        [
            Case(
                "tests.distributed.layouts:replay",
                world,
                str(root / name),
                {"config": str(root / "config.yaml"), "overrides": layout},
            )
            for name, (world, layout) in LAYOUTS.items()
        ]
    )
    return root


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one"])
def test_gradients_equal_one_process(root: Path, layout: str) -> None:
    for update in (1, 2):
        name = f"gradients_{update}.safetensors"
        assert_same_gradients(root / layout / name, root / "one" / name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_export_is_what_was_loaded(root: Path, layout: str) -> None:
    """At so small a rate no weight moves by more than a rounding: every tensor came back to its name and shape."""
    source = load_file(root / "policy" / "model.safetensors")
    found = load_file(root / layout / "run" / "export" / "model.safetensors")
    assert len(found) == len(source)
    published = {name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
                 for name, tensor in source.items()}  # fmt: skip
    for name, tensor in published.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-9)
