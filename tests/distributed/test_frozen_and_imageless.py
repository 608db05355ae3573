"""Frozen parts, microbatches and ranks without an image, and recompute, in layouts: all equal one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_apo.planning.state import Parameter, state_bytes
from tests.distributed.launcher import Case, run_cases
from tests.unit.model_providers.reference import make_checkpoint

UPDATE, RESUME = "tests.distributed.supervised:update", "tests.distributed.supervised:resume"
ALL = [[[0, 1, 2], [3, 4, 5], [6, 7]]]  # 6 has a video, 7 two and an image
APART = [[[0, 1, 7], [2], [3, 4], [6], [5]]]  # the second and last without an image, the fourth with a video
TWO_RANKS = [[[0, 1, 6], [3, 4, 7]], [[2], [5]]]  # the second data rank has none
TP2, CP2, PP2 = ["--parallel.tensor=2", "--parallel.sequence=true"], ["--parallel.context=2"], ["--parallel.pipeline=2"]
SHARDED = "--parallel.distributed_optimizer=true"
FULL, SELECTIVE = "--model.recompute=full", "--model.recompute=selective"
VISION, MERGER, LANGUAGE = (f"--model.freeze_{part}=true" for part in ("vision", "merger", "language"))

Plan = list[list[list[int]]]
CASES: dict[str, tuple[int, list[str], Plan]] = {
    "dp2_no_image_on_a_rank": (2, [], TWO_RANKS),
    "cp2_no_image_in_a_microbatch": (2, CP2, APART),
    "pp2_no_image_in_a_microbatch": (2, PP2, APART),
    "cp2_full_recompute": (2, [*CP2, FULL], ALL),
    "pp2_selective_recompute": (2, [*PP2, SELECTIVE], APART),
    "frozen_vision": (1, [VISION], APART),
    "frozen_merger": (1, [MERGER], APART),
    "frozen_language": (1, [LANGUAGE], APART),
    "frozen_vision_and_merger_tp2_full_recompute": (2, [VISION, MERGER, *TP2, FULL], APART),
    "frozen_vision_and_language_cp2_selective_recompute": (2, [VISION, LANGUAGE, *CP2, SELECTIVE], APART),
    "frozen_language_pp2": (2, [LANGUAGE, *PP2], APART),  # the last stage trains nothing
    "frozen_language_dp2_sharded": (2, [LANGUAGE, SHARDED], TWO_RANKS),
}
# Memory alone: in bfloat16 the numbers are compared elsewhere.
BFLOAT16 = "--model.dtype=bfloat16"
HALF: dict[str, tuple[int, list[str], Plan]] = {
    "frozen_vision_bf16": (1, [VISION, BFLOAT16], APART),
    "frozen_vision_and_merger_dp2_sharded_bf16": (2, [VISION, MERGER, BFLOAT16, SHARDED], TWO_RANKS),
    "frozen_language_dp2_sharded_bf16": (2, [LANGUAGE, BFLOAT16, SHARDED], TWO_RANKS),
}
FROZEN = [name for name in CASES if name.startswith("frozen")]
RESUMED = {
    "frozen_language_pp2": (2, [LANGUAGE, *PP2], APART),
    "frozen_vision_dp2_sharded": (2, [VISION, SHARDED], TWO_RANKS),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One update of every case, from the same weights on the same sequences; and the resumed runs."""
    root = tmp_path_factory.mktemp("updates")
    checkpoint = str(make_checkpoint(root / "policy", tied=True))
    cases = []
    for name, (world, overrides, plan) in {"one": (1, [], ALL), **CASES, **HALF}.items():
        arguments = {"checkpoint": checkpoint, "overrides": overrides, "plan": plan}
        cases.append(Case(UPDATE, world, str(root / name), arguments))
    for name, (world, overrides, plan) in RESUMED.items():
        arguments = {"checkpoint": checkpoint, "overrides": overrides, "plan": plan}
        cases.append(Case(RESUME, world, str(root / "resumed" / name), arguments))
    run_cases(cases)
    return root


def is_frozen(case: str, name: str) -> bool:
    """Whether ``case`` freezes the published tensor ``name``."""
    overrides = CASES[case][1]
    if not name.startswith("visual."):
        return LANGUAGE in overrides
    return (MERGER if name.startswith("visual.merger.") else VISION) in overrides


@pytest.mark.parametrize("case", [name for name in CASES if "sharded" not in name])
def test_gradients_equal_one_process(runs: Path, case: str) -> None:
    reference, found = (load_file(runs / name / "gradients.safetensors") for name in ("one", case))
    assert found.keys() == reference.keys()
    total = torch.stack([tensor.double().norm() for tensor in reference.values()]).norm()
    for name, tensor in reference.items():
        assert bool(tensor.any()), name
        expected = torch.zeros_like(tensor) if is_frozen(case, name) else tensor
        assert (found[name] - expected).norm() <= 1e-5 * max(expected.norm(), 1e-3 * total), name


@pytest.mark.parametrize("case", CASES)
def test_loss_and_token_count_equal_one_process(runs: Path, case: str) -> None:
    expected = json.loads((runs / "one" / "metrics_0.json").read_text())
    for rank in range(CASES[case][0]):
        found = json.loads((runs / case / f"metrics_{rank}.json").read_text())
        for name in ("loss/total", "count/tokens", "policy/entropy", "optimizer/learning_rate"):
            assert found[name] == pytest.approx(expected[name], rel=1e-5), (rank, name)


@pytest.mark.parametrize("case", FROZEN)
def test_only_trained_parts_move_and_all_are_exported(runs: Path, case: str) -> None:
    before, after = load_file(runs / "policy" / "model.safetensors"), load_file(runs / case / "weights.safetensors")
    assert set(after) == {name.replace("model.visual.", "visual.").replace("language_model.", "") for name in before}
    for name, tensor in before.items():
        published = name.replace("model.visual.", "visual.").replace("language_model.", "")
        assert torch.equal(after[published], tensor) == is_frozen(case, published), published


def test_the_sharded_optimizer_makes_the_same_update(runs: Path) -> None:
    expected = load_file(runs / "frozen_language" / "weights.safetensors")
    found = load_file(runs / "frozen_language_dp2_sharded" / "weights.safetensors")
    for name, tensor in expected.items():
        # Adam moves a weight whose gradient is rounding noise by up to lr, whatever the noise's size.
        assert (found[name] - tensor).norm() <= 1e-2 * tensor.norm(), name


@pytest.mark.parametrize("case", [*FROZEN, *HALF])
def test_frozen_parts_take_no_gradient_buffer_and_no_optimizer_memory(runs: Path, case: str) -> None:
    """To the byte: float32 moments of the trained numbers alone (bfloat16: and float32 main parameters of them), one
    step counter a tensor, and the gradient buffer, which the sharded optimizer aligns as the planner says."""
    world, overrides, _ = {**CASES, **HALF}[case]
    ranks = [json.loads((runs / case / f"sizes_{rank}.json").read_text()) for rank in range(world)]
    sharded, half = SHARDED in overrides, BFLOAT16 in overrides
    for size in ranks:
        trained = sum(count for _, count in size["trained"])
        assert trained < size["all"]
        held = ranks if sharded else [size]  # the ranks that hold one copy of the optimizer's state together
        assert sum(one["moments"] for one in held) == 2 * 4 * trained
        assert sum(one["main"] for one in held) == (4 * trained if half else 0)
        planned = state_bytes(
            [Parameter(name, count) for name, count in size["trained"]],
            dtype="bfloat16" if half else "float32",
            data=world if sharded else 1,
            distributed=sharded,
            rank=size["data_rank"] if sharded else None,
        )
        assert size["main"] + size["moments"] + size["steps"] == planned.optimizer
        assert size["buffers"] == planned.gradients


@pytest.mark.parametrize("case", RESUMED)
def test_a_run_with_frozen_parts_resumes(runs: Path, case: str) -> None:
    states = {
        name: load_file(runs / "resumed" / case / f"{name}.safetensors") for name in ("in_one_go", "loaded", "resumed")
    }
    for name, tensor in states["in_one_go"].items():
        assert torch.equal(states["resumed"][name], tensor), name
    assert any(not torch.equal(states["loaded"][name], tensor) for name, tensor in states["resumed"].items())
