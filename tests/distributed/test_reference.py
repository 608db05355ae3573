"""A reference on the host gives the resident one's log-probabilities, bit for bit, and leaves the policy as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launcher import Case, run_cases
from tests.unit.model_providers.reference import make_checkpoint

ONE, TWO = [[[0, 2], [4, 5]]], [[[0], [5]], [[2], [4]]]
BF16, SHARDED = "--model.dtype=bfloat16", "--parallel.distributed_optimizer=true"
TP, PP, CP = "--parallel.tensor=2", "--parallel.pipeline=2", "--parallel.context=2"
# The embedding is tied: with a pipeline its last stage holds a copy.
LAYOUTS: dict[str, tuple[int, list[str], list[list[list[int]]]]] = {
    "tp2_full_recompute": (2, [TP, "--model.recompute=full"], ONE),
    "pp2_vpp2_frozen_vision": (2, [PP, "--parallel.virtual_pipeline=2", "--model.freeze_vision=true"], ONE),
    "dp2_bf16_sharded": (2, [SHARDED, BF16], TWO),
    "pp2_cp2_bf16": (4, [PP, CP, BF16], ONE),
}
SLOW = ("tp2_full_recompute", "pp2_cp2_bf16")
FOUND = (
    *("same_logprobs", "restored", "restored_after_an_error", "policy_is_another", "same_after_a_resume"),
    *("same_metrics", "same_update", "moved"),
)


def compare(root: Path, layouts: list[str]) -> dict[str, list[dict[str, Any]]]:
    checkpoint = str(make_checkpoint(root / "policy", tied=True, layers=4))
    cases = []
    for name in layouts:
        world, overrides, plan = LAYOUTS[name]
        arguments = {"checkpoint": checkpoint, "overrides": overrides, "plan": plan}
        cases.append(Case("tests.distributed.references:compare", world, str(root / name), arguments))
    run_cases(cases)
    return {
        name: [json.loads((root / name / f"found_{rank}.json").read_text()) for rank in range(LAYOUTS[name][0])]
        for name in layouts
    }


def check(ranks: list[dict[str, Any]]) -> None:
    for rank, answer in enumerate(ranks):
        assert answer["found"] == dict.fromkeys(FOUND, True), rank
        assert answer["kl"] > 1e-4


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return compare(tmp_path_factory.mktemp("reference"), [name for name in LAYOUTS if name not in SLOW])


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in SLOW])
def test_the_host_s_reference_is_the_resident_one(quick: dict[str, list[dict[str, Any]]], layout: str) -> None:
    check(quick[layout])


@pytest.mark.slow
def test_more_layouts(tmp_path: Path) -> None:
    for ranks in compare(tmp_path, list(SLOW)).values():
        check(ranks)
