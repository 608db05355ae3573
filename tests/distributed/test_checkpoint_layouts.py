"""A checkpoint of any layout continues in any other: every weight, and what Adam makes of the next gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.launcher import Case, run_cases
from tests.distributed.layouts import randomised_checkpoint

SAVE, LOAD = "tests.distributed.checkpoints:save", "tests.distributed.checkpoints:load"
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "one": (1, []),
    "tp2": (2, ["--parallel.tensor=2"]),
    "pp2": (2, ["--parallel.pipeline=2"]),
    "dp2_sharded": (2, ["--parallel.distributed_optimizer=true"]),
}
# The sharded optimizer writes its state in a form of its own: only jobs that shard it read it.
WAYS = [("tp2", "one"), ("tp2", "pp2"), ("pp2", "tp2"), ("dp2_sharded", "dp2_sharded")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    policy = randomised_checkpoint(tiny_policy, root / "policy", seed=4)
    cases = []
    for name in dict.fromkeys(source for source, _ in WAYS):
        world, overrides = LAYOUTS[name]
        cases.append(Case(SAVE, world, str(root / name), {"policy": str(policy), "overrides": overrides}))
    for source, target in WAYS:
        world, overrides = LAYOUTS[target]
        arguments = {"policy": str(policy), "overrides": overrides, "source": str(root / source)}
        cases.append(Case(LOAD, world, str(root / f"{source}-{target}"), arguments))
    run_cases(cases)
    return root


@pytest.mark.parametrize("moment", ["at_checkpoint", "after"])
@pytest.mark.parametrize(("source", "target"), WAYS)
def test_continues_in_another_layout(runs: Path, source: str, target: str, moment: str) -> None:
    saved = load_file(runs / source / f"{moment}.safetensors")
    found = load_file(runs / f"{source}-{target}" / f"{moment}.safetensors")
    assert set(found) == set(saved)
    for name, tensor in saved.items():
        torch.testing.assert_close(found[name], tensor, rtol=0.0, atol=1e-6, msg=name)


def test_the_updates_moved_the_weights(runs: Path) -> None:
    before, after = (load_file(runs / "tp2" / f"{moment}.safetensors") for moment in ("at_checkpoint", "after"))
    assert all(float((before[name] - after[name]).abs().min()) > 1e-4 for name in before)
